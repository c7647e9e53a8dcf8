"""SIGTERM, as supervisors send it, stops `penstock run` the way Ctrl-C does."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
from command_line import LEDGER, penstock, running

from penstock.testing.ledger import check_ledger

COMMAND = ("run", "ledger.py", "--state-dir", "state", "--checkpoint-interval", "200 ms")


def test_a_termination_stops_with_a_checkpoint_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "ledger.py").write_text(LEDGER)
    with running(*COMMAND, cwd=tmp_path) as run:
        run.until("checkpoint 1 is complete")
        family = psutil.Process(run.process.pid).children(recursive=True)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 0, run.text
    assert "resume with:" in run.text
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    resumed = penstock(*COMMAND, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert check_ledger(tmp_path / "out", 2, 8000).problems == []
