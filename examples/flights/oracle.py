"""The same questions as job.py, asked of the same files in one batch by DuckDB."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import pyarrow as pa

QUERIES = {
    "by_carrier_and_hour": """
        select carrier, time_bucket(interval 1 hour, scheduled) as window_start,
               count(*) as flights, count(dep_delay) as "left", avg(dep_delay) as mean,
               max(dep_delay) as worst
        from flights group by all""",
    "late_inbound": """
        select tail, carrier, flight, origin, scheduled, inbound_delay, dep_delay from (
            select *, lag(dep_delay) over aircraft as inbound_delay,
                   lag(scheduled) over aircraft as inbound
            from flights where dep_delay is not null and tail is not null
            window aircraft as (partition by tail order by scheduled, carrier, flight))
        where scheduled - inbound <= interval 12 hour
          and least(inbound_delay, dep_delay) > 30""",
    "worst_of_day": """
        select origin, time_bucket(interval 1 day, scheduled) as day,
               row_number() over (partition by origin, day
                                  order by dep_delay desc, carrier, flight) as place,
               carrier, flight, dep_delay
        from flights where dep_delay is not null and tail is not null
        qualify place <= 3""",
    "wind_by_day": """
        select origin, coalesce(wind, 0.0) >= 20.0 as gale,
               time_bucket(interval 1 day, scheduled) as window_start,
               count(*) as flights, avg(dep_delay) as mean, max(wind) as wind
        from flights left join weather using (origin, hour) group by all""",
}
FLOAT_TOLERANCE = 1e-9
"""Relative: sums of floats depend on the order of rows in their last bits."""


def connect(data: Path) -> duckdb.DuckDBPyConnection:
    """A session in which `flights` and `weather` are the job's input."""
    db = duckdb.connect()
    db.execute("set timezone = 'UTC'")
    db.execute(f"create view flights as select * from '{data}/flights/*.parquet'")
    db.execute(f"create view weather as select * from '{data}/weather.parquet'")
    return db


def differences(data: Path, results: Path) -> dict[str, list[str]]:
    """Per question, where the job's answers differ; empty lists mean the same answers."""
    db = connect(data)
    found = {}
    for name, query in QUERIES.items():
        expected = db.sql(query).to_arrow_table()
        columns = ", ".join(f'"{c}"' for c in expected.column_names)
        actual = db.sql(f"select {columns} from '{results}/{name}/*.parquet'").to_arrow_table()
        found[name] = _compare(_rows(expected), _rows(actual))
    return found


def _rows(table: pa.Table) -> list[tuple[object, ...]]:
    columns = [column.to_pylist() for column in table.columns]
    return sorted(zip(*columns, strict=True), key=lambda row: tuple(map(_order, row)))


def _order(value: object) -> tuple[bool, str]:
    # Floats are ordered coarsely, so that their last bits do not decide which rows are compared.
    return (value is None, f"{value:.6g}" if isinstance(value, float) else str(value))


def _compare(expected: list[tuple[object, ...]], actual: list[tuple[object, ...]]) -> list[str]:
    lines = []
    if len(expected) != len(actual):
        lines.append(f"{len(expected)} rows expected, {len(actual)} found")
    for want, got in zip(expected, actual, strict=False):
        if not all(map(_equal, want, got)):
            lines.append(f"expected {want}, found {got}")
    return lines


def _equal(want: object, got: object) -> bool:
    if isinstance(want, float) and isinstance(got, float):
        return math.isclose(want, got, rel_tol=FLOAT_TOLERANCE)
    return want == got
