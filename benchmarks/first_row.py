"""From `penstock run` to the first row in a sink, and what of it is importing.

python benchmarks/first_row.py [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from probe import report

PROGRAM = """
import sys
sys.path.insert(0, {here!r})
import penstock as ps
from probe import ClockedSource, LatencySink
p = ps.Pipeline("first")
rows = p.source(ClockedSource(1, 100_000, 0.3))
rows.filter("key >= 0").chain_break().sink(LatencySink({folder!r}, trace=True))
"""


def once() -> float:
    """Milliseconds from exec to the first write."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "flow.py"
        program.write_text(PROGRAM.format(here=str(Path(__file__).parent), folder=folder))
        began_ns = time.monotonic_ns()
        subprocess.run(
            [sys.executable, "-m", "penstock", "run", str(program)],
            check=True, capture_output=True, env=os.environ,
        )  # fmt: skip
        traces = [path.read_text().split() for path in Path(folder).glob("*.trace")]
        return (min(int(words[0]) for words in traces if words) - began_ns) / 1e6


def main() -> None:
    """The median of some runs."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--runs", type=int, default=5)
    runs = [once() for _ in range(arguments.parse_args().runs)]
    report(
        "penstock run to the first row in a sink, 2 subtasks",
        median_ms=round(statistics.median(runs)),
        worst_ms=round(max(runs)),
    )


if __name__ == "__main__":
    main()
