"""Plans of real processors give the rows that the program asks for, however they are laid out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plan_fixtures import Flight, Keep, Knock, LateInbound, plan_of
from plan_interpreter import Interpreter

import penstock as ps

START = datetime(2013, 1, 1, tzinfo=UTC)


def rows_of(seed: int, count: int = 500) -> list[dict[str, Any]]:
    chance = np.random.default_rng(seed)
    return [
        {
            "carrier": str(chance.choice(["AA", "UA", "B6", "DL"])),
            "tail": f"N{chance.integers(20)}",
            "dep_time": START + timedelta(minutes=int(chance.integers(2000))),
            "dep_delay": None if chance.random() < 0.1 else float(chance.integers(-10, 90)),
            "distance": int(chance.integers(0, 3000)),
            "notes": "x" * int(chance.integers(5)),
        }
        for _ in range(count)
    ]


@pytest.fixture(params=[(1, 1), (2, 3), (3, 4)], ids=lambda p: f"seed {p[0]} x{p[1]}")
def case(request: pytest.FixtureRequest, tmp_path: Any) -> tuple[list[dict[str, Any]], str, int]:
    """Rows, a folder that holds them in four files, and a parallelism."""
    seed, parallelism = request.param
    rows = rows_of(seed)
    schema = pa.schema(
        [
            ("carrier", pa.string()),
            ("tail", pa.string()),
            ("dep_time", pa.timestamp("us", "UTC")),
            ("dep_delay", pa.float64()),
            ("distance", pa.int64()),
            ("notes", pa.string()),
        ]
    )
    for part in range(4):
        table = pa.Table.from_pylist(rows[part::4], schema)
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=50)
    return rows, str(tmp_path), parallelism


def read(p: ps.Pipeline, folder: str) -> ps.Stream[Any]:
    return p.source(
        ps.FileSource(f"{folder}/*.parquet"), event_time="dep_time", out_of_order="2 days"
    )


def read_again(p: ps.Pipeline, folder: str) -> ps.Stream[Any]:
    return p.source(
        ps.FileSource(f"{folder}/*.parquet"),
        event_time="dep_time",
        out_of_order="2 days",
        name="again",
    )


def test_values(case: Any) -> None:
    rows, folder, parallelism = case
    p = ps.Pipeline("p")
    s = read(p, folder).with_columns(far="distance > 1000", km="distance * 1.6", unused="1 / 0")
    s = s.filter("carrier in ('AA', 'UA')").rename(plane="tail").drop("notes")
    s.filter("dep_delay > 3").select("plane", "far", total="km + dep_delay").sink(Keep("a"))
    found = Interpreter(plan_of(p, parallelism)).run().rows("keep")
    expected = [
        {
            "plane": r["tail"],
            "far": r["distance"] > 1000,
            "total": r["distance"] * 1.6 + r["dep_delay"],
        }
        for r in rows
        if r["carrier"] in ("AA", "UA") and r["dep_delay"] is not None and r["dep_delay"] > 3
    ]
    assert found == sorted(expected, key=repr)


def test_windows_by_key(case: Any) -> None:
    rows, folder, parallelism = case
    p = ps.Pipeline("p")
    keyed = read(p, folder).filter("distance > 500").key_by("carrier")
    keyed.window(ps.tumble("1 hour")).aggregate(n="count(*)", worst="max(dep_delay)").sink(
        Keep(), name="out"
    )
    found = Interpreter(plan_of(p, parallelism)).run().rows("out")
    groups: dict[Any, list[float | None]] = defaultdict(list)
    for r in rows:
        if r["distance"] > 500:
            hour = r["dep_time"].replace(minute=0)
            groups[r["carrier"], hour].append(r["dep_delay"])
    expected = {
        key: (len(delays), max((d for d in delays if d is not None), default=None))
        for key, delays in groups.items()
    }
    assert {
        (r["carrier"], r["window_start"].to_pydatetime()): (r["n"], r["worst"]) for r in found
    } == expected


def test_keyed_operators_and_their_side_outputs(case: Any) -> None:
    rows, folder, parallelism = case
    p = ps.Pipeline("p")
    knocks = read(p, folder).key_by("tail").process(LateInbound())
    knocks.sink(Keep("a"), name="knocks")
    knocks.output(LateInbound.unknown).select("tail").sink(Keep("b"), name="orphans")
    run = Interpreter(plan_of(p, parallelism)).run()
    known = [r for r in rows if r["dep_delay"] is not None]
    assert run.rows("knocks") == sorted(
        ({"tail": r["tail"], "minutes": r["dep_delay"]} for r in known), key=repr
    )
    assert len(run.rows("orphans")) == len(rows) - len(known)


def test_unions_functions_and_operators(case: Any) -> None:
    rows, folder, parallelism = case

    @dataclass
    class Twice:
        tail: str
        minutes: float

    def knock(row: Flight) -> Knock:
        return Knock(row.tail, row.dep_delay or 0.0)

    def split(row: Knock) -> Iterator[Twice]:
        yield Twice(row.tail, row.minutes)
        yield Twice(row.tail, -row.minutes)

    class Double(ps.Operator):
        returns = Twice

        def process(self, batch: pa.RecordBatch, ctx: ps.Context) -> Iterator[pa.RecordBatch]:
            minutes = pa.compute.multiply(batch["minutes"], 2)
            yield batch.set_column(1, "minutes", minutes)

    p = ps.Pipeline("p")
    s = read(p, folder)
    near, far = s.filter("distance < 1000"), s.filter("distance >= 1000")
    both = near.map(knock).union(far.map(knock))
    both.flat_map(split).process(Double()).filter(lambda row: row.minutes > 0).sink(Keep())
    found = Interpreter(plan_of(p, parallelism)).run().rows("keep")
    expected = [
        {"tail": r["tail"], "minutes": 2 * abs(r["dep_delay"])} for r in rows if r["dep_delay"]
    ]
    assert found == sorted(expected, key=repr)


def test_broadcast_rows_reach_every_subtask(case: Any) -> None:
    rows, folder, parallelism = case

    class Limits(ps.KeyedOperator[Flight, Knock]):
        limits = ps.BroadcastState(str, float)

        def process(self, key: str, row: Flight, ctx: ps.Context) -> list[Knock]:
            return [Knock(key, self.limits.get(key, -1.0))]

        def process_broadcast(self, row: Knock, ctx: ps.Context) -> None:
            self.limits[row.tail] = row.minutes

    p = ps.Pipeline("p")
    # The interpreter reads the sources in the order of the plan: rules first.
    rules = p.source([Knock(f"N{n}", float(n)) for n in range(20)])
    timed = read(p, folder)
    joined = timed.key_by("tail").process(Limits(), rules.broadcast())
    joined.sink(Keep())
    plan = plan_of(p, parallelism)
    run = Interpreter(plan)
    by_name = {v.operators[0].name: v for v in plan.vertices}
    run._read(by_name["memory"])
    run._read(by_name["files"])
    assert run.rows("keep") == sorted(
        ({"tail": r["tail"], "minutes": float(r["tail"][1:])} for r in rows), key=repr
    )


def test_bad_rows_go_where_the_policy_says(case: Any, tmp_path: Any) -> None:
    rows, folder, parallelism = case
    p = ps.Pipeline("p")
    s = read(p, folder)
    s.with_columns(share="100 / (distance % 7)").on_error(
        ps.DeadLetter(str(tmp_path / "bad"))
    ).select("tail", "share").sink(Keep())
    run = Interpreter(plan_of(p, parallelism)).run()
    bad = [r for r in rows if r["distance"] % 7 == 0]
    assert bad
    assert len(run.rows("keep")) == len(rows) - len(bad)
    (letters,) = [n for n in run._sunk if n.endswith("_dead")]
    assert len(run.rows(letters)) == len(bad)
    # Whole rows, though nobody else reads `notes`.
    raw = [json.loads(r["raw"]) for r in run.rows(letters)]
    assert sorted((r["distance"], r["notes"]) for r in raw) == sorted(
        (r["distance"], r["notes"]) for r in bad
    )


@pytest.mark.parametrize(
    "window", [ps.tumble("1 hour"), ps.session("2 minutes")], ids=["tumble", "session"]
)
def test_windows_without_a_key_see_all_rows(case: Any, window: Any) -> None:
    rows, folder, parallelism = case
    p = ps.Pipeline("p")
    read(p, folder).window(window).aggregate(n="count(*)").sink(Keep(), name="out")
    plan = plan_of(p, parallelism)
    found = Interpreter(plan).run().rows("out")
    assert sum(r["n"] for r in found) == len(rows)
    starts = [r["window_start"] for r in found]
    assert len(set(starts)) == len(starts)


def test_joins_in_windows(case: Any) -> None:
    rows, folder, parallelism = case
    p = ps.Pipeline("p")
    left = read(p, folder).select("tail", "dep_time", "distance", "notes")
    hub = read_again(p, folder).filter("carrier = 'AA'").select("tail", other="distance")
    joined = left.join(hub, on="tail", how="left", window=ps.tumble("6 hours"))
    assert joined.schema.names == ["tail", "dep_time", "distance", "notes", "other"]
    joined.select("tail", "distance", "other").sink(Keep())
    found = Interpreter(plan_of(p, parallelism)).run().rows("keep")

    def place(row: dict[str, Any]) -> Any:
        return row["tail"], (row["dep_time"] - START) // timedelta(hours=6)

    theirs = defaultdict(list)
    for r in rows:
        if r["carrier"] == "AA":
            theirs[place(r)].append(r["distance"])
    expected = [
        {"tail": r["tail"], "distance": r["distance"], "other": other}
        for r in rows
        for other in theirs.get(place(r)) or [None]
    ]
    assert found == sorted(expected, key=repr)


def test_joins_within_a_distance_in_time(case: Any) -> None:
    rows, folder, parallelism = case
    p = ps.Pipeline("p")
    left = read(p, folder).filter("carrier = 'UA'").select("tail", "dep_time")
    right = read_again(p, folder).filter("carrier = 'AA'").select("tail", then="dep_time")
    left.join(right, on="tail", within=("-5 min", "1 hour")).sink(Keep("a"), name="within")
    run = Interpreter(plan_of(p, parallelism)).run()
    expected = [
        {"tail": a["tail"], "dep_time": a["dep_time"], "then": b["dep_time"]}
        for a in rows
        for b in rows
        if a["carrier"] == "UA"
        and b["carrier"] == "AA"
        and a["tail"] == b["tail"]
        and timedelta(minutes=-5) <= b["dep_time"] - a["dep_time"] <= timedelta(hours=1)
    ]
    assert run.rows("within") == sorted(expected, key=repr)


def test_joins_that_remember_for_ever_need_no_event_time_and_cast_their_keys() -> None:
    p = ps.Pipeline("p")
    a = p.source(pa.table({"id": pa.array([1, 2, 3, None], pa.int32()), "x": list("abcd")}))
    b = p.source(pa.table({"id": pa.array([3, 3, 4, None], pa.int64()), "y": list("pqrs")}))
    a.join(b, on="id", ttl=ps.FOREVER).sink(Keep())
    plan = plan_of(p, 3)
    keyed = [edge.schema.field("id").type for edge in plan.edges]
    assert keyed == [pa.int64(), pa.int64()]
    assert Interpreter(plan).run().rows("keep") == [
        {"id": 3, "x": "c", "y": "p"},
        {"id": 3, "x": "c", "y": "q"},
    ]
