"""Every Python snippet of README and docs runs, page by page, as a new user would paste it."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.dataflow.settings import JobSettings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if "```python" in path.read_text()
]


def sample_flights(folder: Path) -> None:
    """What the README's first program reads."""
    start = dt.datetime(2013, 1, 1, tzinfo=dt.UTC)
    flights = pa.table(
        {
            "carrier": ["AA", "UA"] * 50,
            "scheduled": [start + dt.timedelta(minutes=i) for i in range(100)],
            "dep_delay": [float(i % 40) for i in range(100)],
        }
    )
    data = folder / "demo-output" / "data" / "flights"
    data.mkdir(parents=True)
    pq.write_table(flights, data / "01.parquet")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_snippets_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    sample_flights(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    program = tmp_path / "page.py"
    program.write_text("\n".join(snippets))
    ran = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def test_running_lists_every_setting() -> None:
    text = (ROOT / "docs" / "running.md").read_text()
    missing = [n for n in msgspec.structs.fields(JobSettings) if f"`{n.name}`" not in text]
    assert not missing
