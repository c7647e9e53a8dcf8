"""What a person sees while a job runs, and what Ctrl-C does."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psutil
import pytest
from command_line import LEDGER, PATIENCE_S, penstock, running

from penstock.testing.ledger import check_ledger

SPLITS, ROWS = 2, 8000
COMMAND = ("run", "ledger.py", "--state-dir", "the state", "--checkpoint-interval", "200 ms")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "ledger.py").write_text(LEDGER)
    return tmp_path


def test_ctrl_c_stops_with_a_checkpoint_and_the_same_command_goes_on(here: Path) -> None:
    with running(*COMMAND, "--fresh", cwd=here) as run:
        run.until("checkpoint 2 is complete")
        run.interrupt()
        assert run.end() == 0, run.text
    assert "stopping with a checkpoint; Ctrl-C again stops at once" in run.text
    again = "penstock run ledger.py --state-dir 'the state' --checkpoint-interval '200 ms'"
    assert f"resume with:  {again}\n" in run.text
    stopped = re.search(r"ledger: stopped at epoch (\d+)", run.text)
    assert stopped is not None, run.text

    resumed = penstock(*COMMAND, cwd=here)
    assert resumed.returncode == 0, resumed.stderr
    assert f"ledger resumes from checkpoint {stopped[1]}" in resumed.stderr
    report = check_ledger(here / "out", SPLITS, ROWS)
    assert (report.rows, report.problems) == (SPLITS * ROWS, []), report


def test_a_second_ctrl_c_stops_at_once_and_nothing_is_lost(here: Path) -> None:
    """A stopped subtask holds the checkpoint up, so the second comes before the first is done."""
    with running(*COMMAND, cwd=here) as run:
        run.until("checkpoint 1 is complete")
        agent = psutil.Process(run.process.pid).children(recursive=True)
        stuck = next(p for p in agent if "count_per_key" in " ".join(p.cmdline()))
        stuck.send_signal(signal.SIGSTOP)
        run.interrupt()
        run.until("Ctrl-C again stops at once")
        run.interrupt()
        assert run.end() == 0, run.text
    assert "resume with:" in run.text
    assert not [p for p in agent if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    resumed = penstock(*COMMAND, cwd=here)
    assert resumed.returncode == 0, resumed.stderr
    report = check_ledger(here / "out", SPLITS, ROWS)
    assert (report.rows, report.problems) == (SPLITS * ROWS, []), report


def test_without_a_state_directory_ctrl_c_says_that_nothing_is_kept(here: Path) -> None:
    with running("run", "ledger.py", cwd=here) as run:
        run.until("attempt 1 starts")
        run.interrupt()
        assert run.end() == 0, run.text
    assert "without --state-dir nothing is kept" in run.text
    assert "resume with" not in run.text


def test_ctrl_c_before_the_job_has_started_ends_the_command(here: Path) -> None:
    (here / "slow.py").write_text(
        "import signal, sys\nsys.stderr.write('importing\\n')\nsignal.pause()\n"
    )
    with running("run", "slow.py", cwd=here) as run:
        run.until("importing")
        family = psutil.Process(run.process.pid).children(recursive=True)
        run.interrupt()
        assert run.end() == 130, run.text
    assert "Traceback" not in run.text
    # What its agent had only just begun to start dies of the agent's death.
    assert not psutil.wait_procs(family, PATIENCE_S)[1]


def test_a_terminal_shows_rates_lag_checkpoints_restarts_and_back_pressure(here: Path) -> None:
    with running(*COMMAND, cwd=here, terminal=True) as run:
        line = run.until(
            r"ledger running  in ([\d,]+)/s \([\d,]+\)  out ([\d,]+)/s \([\d,]+\)  "
            r"watermark lag \S+  checkpoint [1-9]\d* \([\d.]+ s ago\)  restarts \d+"
        )
        # How fast depends on the machine (tests/cli/test_live.py reckons); that rows flow does not.
        assert int(line[1].replace(",", "")) > 0, line[0]
        assert int(line[2].replace(",", "")) > 0, line[0]
        run.until(r"operators +x +rows in +rows out +busy +blocked")
        run.until(r"count_per_key > book +1 +[\d,]+ +[\d,]+ +\d+% +\d+%")
        run.interrupt()
        assert run.end() == 0, run.text
    assert "resume with:" in run.text
    assert "is complete" not in run.text


def test_without_a_terminal_there_are_plain_lines(here: Path) -> None:
    with running(*COMMAND, cwd=here) as run:
        run.until("checkpoint 1 is complete")
        run.interrupt()
        run.end()
    assert "\x1b" not in run.text
    assert re.search(r"^\S+ \S+ INFO ledger: attempt 1 starts from the beginning$", run.text, re.M)
