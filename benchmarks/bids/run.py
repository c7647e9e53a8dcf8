"""Bids: the field's benchmark on Penstock, DuckDB, Polars and DataFusion in one run.

python benchmarks/bids/run.py [--bids 10000000] [--cores 4] [--queries q5 q8] [--repeats 3]

Every figure is the best of `repeats`, each in a process of its own, engines taking turns. Memory is
the highest sum of Pss of all processes, sampled each 50 ms in one more run, which is not timed:
adding up the pages of ten processes takes a core from them. Before timing, each pipeline's result
is compared with DuckDB's. One JSON line per query, and a table on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import data
import psutil
from queries import QUERIES

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from probe import report  # noqa: E402

ENGINES = ("penstock", "duckdb", "polars", "datafusion")
SAMPLE_S = 0.05


def pss(process: psutil.Process) -> int:
    """Proportional set size of a process and all below it, in bytes."""
    total = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in family:
        try:
            text = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def one(
    engine: str,
    query: str,
    directory: Path,
    cores: int,
    *,
    check: bool = False,
    watch: bool = False,
) -> dict[str, Any]:
    """One run in a process of its own, on `cores` cores; with `watch` also its peak of memory."""
    words = [sys.executable, str(HERE / "one.py"), engine, query, str(directory), str(cores)]
    environment = dict(os.environ, POLARS_MAX_THREADS=str(cores))
    usable = sorted(os.sched_getaffinity(0))[:cores]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            words + ["--check"] * check,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, usable),
        )
        peak, done = [0], threading.Event()

        def sample() -> None:
            watched = psutil.Process(process.pid)
            while not done.wait(SAMPLE_S):
                peak[0] = max(peak[0], pss(watched))

        sampler = threading.Thread(target=sample)
        if watch:
            sampler.start()
        said, _ = process.communicate()
        done.set()
        if watch:
            sampler.join()
        if process.returncode or not said.strip():
            log.seek(0)
            return {"error": log.read()[-2000:] or f"exit code {process.returncode}"}
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return {**found, "peak_mib": peak[0] >> 20} if watch else found


def measure(name: str, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All engines on one query."""
    found: dict[str, Any] = {"query": name, "bids": options.bids, "parallelism": options.cores}
    if not options.unchecked:
        both = ("penstock", "duckdb")
        results = [one(e, name, directory, options.cores, check=True) for e in both]
        found["same_as_duckdb"] = "result" in results[0] and results[0]["result"] == results[1].get(
            "result"
        )
        if not found["same_as_duckdb"]:
            found["results"] = results
    for engine in options.engines * options.repeats:
        run = one(engine, name, directory, options.cores)
        if "error" in run:
            found[engine] = run
            continue
        best = found.setdefault(engine, {"seconds": float("inf")})
        if run["seconds"] < best.get("seconds", 0):
            best.update(run)
            best["million_rows_per_s"] = round(run["rows_in"] / run["seconds"] / 1e6, 2)
    for engine in options.engines:
        if "error" not in found[engine]:
            watched = one(engine, name, directory, options.cores, watch=True)
            found[engine]["peak_mib"] = watched.get("peak_mib")
    return found


def line(found: dict[str, Any]) -> str:
    """For people."""
    rates = {e: found.get(e, {}).get("million_rows_per_s") for e in ENGINES}
    ours, duck = rates["penstock"], rates["duckdb"]
    best = max((rate for e, rate in rates.items() if rate and e != "penstock"), default=None)
    words = [f"{found['query']:8}"]
    words += [f"{e} {'-' if rate is None else f'{rate:7.2f}'}" for e, rate in rates.items()]
    if ours and duck and best:
        words.append(f"  {ours / duck:5.0%} of DuckDB {ours / best:5.0%} of the fastest")
    if found.get("penstock", {}).get("peak_mib"):
        words.append(f"  {found['penstock']['peak_mib']:,} MiB")
    words.append("" if found.get("same_as_duckdb", True) else "  DIFFERS")
    return " ".join(words)


def main() -> None:
    """Measure what was asked for."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--bids", type=int, default=10_000_000)
    arguments.add_argument("--cores", type=int, default=4)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--queries", nargs="*", default=list(QUERIES))
    arguments.add_argument("--engines", nargs="*", default=list(ENGINES))
    arguments.add_argument("--unchecked", action="store_true")
    arguments.add_argument("--data", type=Path, default=None)
    options = arguments.parse_args()
    root = options.data or Path(tempfile.gettempdir()) / "penstock-bids"
    directory = root / str(options.bids)
    data.make(directory, options.bids)
    for name in options.queries:
        found = measure(name, options, directory)
        report("bids", **found)
        print(line(found), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
