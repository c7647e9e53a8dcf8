"""The short form of `scripts/chaos --agents`: whatever is done to a cluster, rows arrive once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).resolve().parents[2] / "scripts" / "chaos"
MINUTES = 0.8


@pytest.mark.timeout(600)
def test_a_while_of_chaos_on_a_cluster_costs_no_row(tmp_path: Path) -> None:
    words = ["--agents", "3", "--minutes", str(MINUTES), "--seed", "1", "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, CHAOS, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    print(f"\n{done.stdout}")
    assert report["rows"] > 0
    assert report["faults"] > 0
    assert report["failures"] == []
