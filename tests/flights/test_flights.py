"""The main job on real departures: its files hold what DuckDB answers, killed or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)

DEMO = Path(__file__).resolve().parents[2] / "examples" / "flights" / "demo.py"
QUESTIONS = ("by_carrier_and_hour", "late_inbound", "worst_of_day", "wind_by_day")
RUN_S_MAX = 500
"""A year takes half a minute on two idle cores; this is for machines with better things to do."""


def run_demo(folder: Path, *arguments: str) -> str:
    """What the demo prints; it exits 1 if its judge or its comparison is not content."""
    ran = subprocess.run(
        [sys.executable, str(DEMO), "--out", str(folder), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=RUN_S_MAX, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_year_gives_what_duckdb_gives(tmp_path: Path) -> None:
    said = run_demo(tmp_path)
    assert "336,776 departures" in said
    assert all(f"{question}: the same as DuckDB" in said for question in QUESTIONS)


def test_three_months_under_fire_give_what_duckdb_gives(tmp_path: Path) -> None:
    said = run_demo(tmp_path, "--kill", "--seed", "3", "--months", "3", "--rate", "5000")
    assert "1 between manifest and commit" in said
    assert all(f"{question}: the same as DuckDB" in said for question in QUESTIONS)


def test_the_comparison_sees_a_single_wrong_row(tmp_path: Path) -> None:
    said = run_demo(tmp_path, "--months", "1")
    assert "the same as DuckDB" in said
    one = next((tmp_path / "results" / "late_inbound").glob("*.parquet"))
    (one.parent / f"again-{one.name}").write_bytes(one.read_bytes())
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(DEMO.parent)!r}); import oracle\n"
        f"root = pathlib.Path({str(tmp_path)!r})\n"
        "print([n for n, d in oracle.differences(root / 'data-1-months', root / 'results').items()"
        " if d])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "['late_inbound']"
