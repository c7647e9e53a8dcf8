"""Runs one query on one engine; prints a JSON line of seconds, rows in, or the result's check.

python benchmarks/bids/one.py ENGINE QUERY DIRECTORY CORES [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from queries import QUERIES, Query

OUT_OF_ORDER = "0 seconds"


def input_rows(directory: Path, query: Query) -> int:
    """How many rows the query reads."""
    return sum(pq.read_metadata(directory / f"{name}.parquet").num_rows for name in query.rows)


def penstock(query: Query, directory: Path, cores: int, check: bool) -> dict[str, Any]:
    """Seconds from all subtasks' being up to the end of the job, its last checkpoint included."""
    import penstock as ps

    pipeline = ps.Pipeline("bids")

    def read(name: str) -> Any:
        source = ps.FileSource(str(directory / f"{name}.parquet"))
        if not query.timed:
            # Nothing asks for time, so nobody says what it is.
            return pipeline.source(source)
        return pipeline.source(source, event_time="datetime", out_of_order=OUT_OF_ORDER)

    stream = query.build(pipeline, read)
    if check:
        os.environ["PENSTOCK_PARALLELISM"] = str(cores)
        return {"result": compare(query, stream.collect())}
    stream.sink(ps.BlackholeSink())
    called = time.perf_counter()
    job = pipeline.start(parallelism=cores, checkpoint_interval="1 second")
    while job.status().state == "starting":
        time.sleep(0.001)
    began = time.perf_counter()
    summary = job.wait()
    ended = time.perf_counter()
    return {
        "seconds": ended - began,
        "start_s": began - called,
        "rows_out": summary.rows_out,
        "checkpoints": summary.checkpoints,
    }


def compare(query: Query, rows: pa.Table) -> list[Any]:
    """What must be the same whoever computed the rows."""
    import duckdb

    db = duckdb.connect()
    db.register("results", rows)
    found = db.execute(f"SELECT {query.compared} FROM results").fetchone()
    return [float(value) for value in found]


def duckdb(query: Query, directory: Path, cores: int, check: bool) -> dict[str, Any]:
    """Materialised in memory, as its result would be for a caller."""
    import duckdb as engine

    db = engine.connect(config={"threads": cores})
    for path in directory.glob("*.parquet"):
        db.execute(f"CREATE VIEW {path.stem} AS SELECT * FROM read_parquet('{path}')")
    if check:
        found = db.execute(f"SELECT {query.compared} FROM ({query.sql})").fetchone()
        return {"result": [float(value) for value in found]}
    began = time.perf_counter()
    rows = db.execute(query.sql).to_arrow_table().num_rows
    return {"seconds": time.perf_counter() - began, "rows_out": rows}


def datafusion(query: Query, directory: Path, cores: int, check: bool) -> dict[str, Any]:
    """As DuckDB."""
    from datafusion import SessionConfig, SessionContext

    context = SessionContext(SessionConfig().with_target_partitions(cores))
    for path in directory.glob("*.parquet"):
        context.register_parquet(path.stem, str(path))
    began = time.perf_counter()
    rows = sum(batch.num_rows for batch in context.sql(query.datafusion or query.sql).collect())
    return {"seconds": time.perf_counter() - began, "rows_out": rows}


def polars(query: Query, directory: Path, cores: int, check: bool) -> dict[str, Any]:
    """Its streaming engine, lazily over the files."""
    import polars as pl
    from in_polars import IN_POLARS

    frames = {path.stem: pl.scan_parquet(path) for path in directory.glob("*.parquet")}
    began = time.perf_counter()
    rows = IN_POLARS[query_name](frames).collect(engine="streaming").height
    return {"seconds": time.perf_counter() - began, "rows_out": rows}


ENGINES = {each.__name__: each for each in (penstock, duckdb, datafusion, polars)}
query_name = ""


def main() -> None:
    """Run it."""
    global query_name
    arguments = argparse.ArgumentParser()
    arguments.add_argument("engine", choices=ENGINES)
    arguments.add_argument("query", choices=QUERIES)
    arguments.add_argument("directory", type=Path)
    arguments.add_argument("cores", type=int)
    arguments.add_argument("--check", action="store_true")
    options = arguments.parse_args()
    query_name, query = options.query, QUERIES[options.query]
    done = ENGINES[options.engine](query, options.directory, options.cores, options.check)
    print(json.dumps({"rows_in": input_rows(options.directory, query), **done}), flush=True)
    # Engines' threads need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
