"""The rates that a terminal shows, reckoned from statistics that come in steps."""

from __future__ import annotations

from penstock.cli.live import Rates, one_line
from penstock.dataflow.launcher import JobStatus


def job(rows_in: int, rows_out: int, state: str = "running") -> JobStatus:
    return JobStatus("j", state, 1, 0, 0, rows_in, rows_out, 0, 0, None, None)


def looked(*statuses: JobStatus, apart_s: float = 0.5) -> Rates:
    rates = Rates()
    for number, status in enumerate(statuses):
        rates.look(status, int(number * apart_s * 1e9))
    return rates


def test_statistics_that_come_once_in_a_second_make_an_even_rate() -> None:
    """A source of 4,000 rows a second whose rows are told of at once every second."""
    steps = [job(4000 * (look // 4), 0) for look in range(41)]
    for count in range(21, 41):
        rate = looked(*steps[:count], apart_s=0.25).in_per_s
        assert rate is not None
        assert 3200 <= rate <= 4800, (count, rate)


def test_a_rate_is_not_known_before_its_first_statistics() -> None:
    """Those of a sink may come before those of its source: its rate is no 0 then."""
    status = job(0, 300)
    rates = looked(job(0, 0), status)
    assert (rates.in_per_s, rates.out_per_s) == (None, 600.0)
    assert "in - (0)  out 600/s (300)" in one_line(status, rates, 0)


def test_the_rate_of_a_job_that_stands_still_sinks_to_none() -> None:
    assert looked(job(0, 0), *[job(100, 100)] * 20).in_per_s == 0


def test_starting_is_no_part_of_the_rate() -> None:
    starting = [job(0, 0, "starting")] * 10
    assert looked(*starting, job(0, 0), job(100, 0)).in_per_s == 100.0


def test_counters_that_go_back_begin_the_rates_anew() -> None:
    rates = looked(job(0, 0), job(900, 900), job(10, 0))
    assert (rates.in_per_s, rates.out_per_s) == (None, None)
    rates.look(job(60, 0), int(2e9))
    assert (rates.in_per_s, rates.out_per_s) == (50.0, None)
