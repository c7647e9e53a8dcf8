from __future__ import annotations

from penstock.elements.errors import UserCodeError
from penstock.runtime.failures import TEXT_CHARS_MAX, failure_of, report_text
from penstock.runtime.messages import encode


def raised(**where: str) -> UserCodeError:
    return UserCodeError("score", 0, "process", "ValueError: no", **where)  # type: ignore[arg-type]


def test_the_same_row_is_the_same_poison_and_another_is_not() -> None:
    first, again, other = (failure_of(raised(row=row)) for row in ("1", "1", "2"))
    assert first.identity == again.identity != other.identity
    assert first.identity


def test_rows_without_a_name_are_told_by_where_they_were_read() -> None:
    error = raised(source="row 7")
    error.poison = b"rows"
    assert failure_of(error).identity.endswith("|row 7")


def test_a_position_without_rows_is_no_poison() -> None:
    """What a feed raises that is down: job.py leaves an identity without a place alone."""
    assert failure_of(raised(source="after position 7")).identity == "score|ValueError|"


def test_any_report_can_be_sent() -> None:
    """Names of files may hold bytes that are no text, which Python keeps as half characters."""
    failure = failure_of(FileNotFoundError("caf\udce9.csv"))
    assert r"caf\udce9.csv" in failure.text
    assert encode(failure)
    long = report_text("begin" + "x" * 10 * TEXT_CHARS_MAX + "end")
    assert len(long) <= TEXT_CHARS_MAX + 3
    assert long.startswith("begin")
    assert long.endswith("end")
