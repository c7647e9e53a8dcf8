"""Every operator gives the same rows straight, with checkpoints, killed, and rescaled (hazard 21).

Expected rows come from DuckDB or plain Python over the same data.
"""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import add
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from law_data import Event, as_table, events, read, sql

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

EVENTS = events()
TABLE = as_table(EVENTS)
MORE = [Event(e.id, e.k, e.v, e.ts + timedelta(seconds=2)) for e in events(300, 2, 10_000)]


@dataclass
class Doubled:
    id: int
    twice: int


@dataclass
class Numbered:
    id: int
    k: str
    nth: int


@dataclass
class Quiet:
    k: str
    rows: int
    total: int


def stream() -> ps.Stream[Any]:
    return read(ps.Pipeline("law"))


def more(pipeline: ps.Pipeline) -> ps.Stream[Any]:
    return read(pipeline, MORE, "more")


# Rows one by one, and in batches ------------------------------------------------------------------


def test_value_stages() -> None:
    def build() -> ps.Stream[Any]:
        even = stream().filter("v % 2 = 0").with_columns(w="v * 3", low="lower(k)")
        return even.drop("ts").rename(tripled="w").select("id", "low", "tripled")

    assert_same_rows(build, [(e.id, e.k, e.v * 3) for e in EVENTS if e.v % 2 == 0])


def double(row: Event) -> Doubled:
    return Doubled(row.id, row.v * 2)


def several(row: Event) -> Iterator[Doubled]:
    for copy in range(row.v % 3):
        yield Doubled(row.id, copy)


def small(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.filter(pc.less(batch["v"], 50))


@pytest.mark.parametrize("kind", ["map", "flat_map", "map_batches"])
def test_functions(kind: str) -> None:
    expected: list[Any]
    if kind == "map":
        expected = [(e.id, e.v * 2) for e in EVENTS]
        assert_same_rows(lambda: stream().map(double), expected)
    elif kind == "flat_map":
        expected = [(e.id, copy) for e in EVENTS for copy in range(e.v % 3)]
        assert_same_rows(lambda: stream().flat_map(several), expected)
    else:
        expected = [(e.id, e.k, e.v, e.ts) for e in EVENTS if e.v < 50]
        assert_same_rows(lambda: stream().map_batches(small), expected)


class Held(ps.Operator):
    """Keeps every row whose v ends in three set bits until the end of data, in operator state."""

    def open(self, ctx: ps.Context) -> None:
        self._kept = ctx.operator_state("held", "list")
        self._rows = [pickle.loads(item) for item in self._kept.items()]

    def process(self, batch: pa.RecordBatch, ctx: ps.Context) -> Iterator[pa.RecordBatch]:
        hold = pc.equal(pc.bit_wise_and(batch["v"], 7), 7)
        # to_pylist copies: what is kept beyond the call must not be the input's memory.
        self._rows += batch.filter(hold).to_pylist()
        yield batch.filter(pc.invert(hold))

    def before_snapshot(self, ctx: ps.Context) -> None:
        self._kept.replace([pickle.dumps(row) for row in self._rows])

    def on_end(self, ctx: ps.Context) -> Iterator[pa.RecordBatch]:
        if self._rows:
            yield pa.RecordBatch.from_pylist(self._rows).select(["id", "k", "v", "ts", "_time"])


def test_a_batch_operator_with_operator_state() -> None:
    expected = [(e.id, e.k) for e in EVENTS]
    assert_same_rows(lambda: stream().process(Held()).select("id", "k"), expected)


# Keyed state --------------------------------------------------------------------------------------


class EveryState(ps.KeyedOperator[Event, Numbered]):
    """Counts four times over, and says when two of them differ."""

    count = ps.ValueState(int, default=0)
    ids = ps.ListState(int)
    digits = ps.MapState(int, int)
    total = ps.ReducingState(int, add)
    wrong = ps.Output(Event)

    def process(self, key: str, row: Event, ctx: ps.Context) -> Iterator[Numbered | ps.Side[Any]]:
        self.count.value += 1
        self.ids.append(row.id)
        self.digits[row.v % 10] = self.digits.get(row.v % 10, 0) + 1
        self.total.add(1)
        counts = {self.count.value, len(list(self.ids)), sum(self.digits.values())}
        if counts != {self.total.value} or len(set(self.ids)) != self.count.value:
            yield self.wrong(row)
        yield Numbered(row.id, key, self.count.value)


def counted(build: ps.Stream[Any]) -> ps.Stream[Any]:
    # Which row gets which number depends on the interleaving of two splits; the numbers do not.
    return build.select("k", "nth")


def numbers_of(rows: list[Event]) -> list[tuple[str, int]]:
    return [(k, n + 1) for k, rows_ in Counter(e.k for e in rows).items() for n in range(rows_)]


def test_every_kind_of_keyed_state() -> None:
    assert_same_rows(
        lambda: counted(stream().key_by("k").process(EveryState())), numbers_of(EVENTS)
    )


def test_no_two_kinds_of_state_drift_apart() -> None:
    def build() -> ps.Stream[Any]:
        made = stream().key_by("k").process(EveryState())
        return made.output(EveryState.wrong)

    assert_same_rows(build, [])


class Silence(ps.KeyedOperator[Event, Quiet]):
    """A result per key after three seconds without a row: a session by hand."""

    rows = ps.ValueState(int, default=0)
    total = ps.ValueState(int, default=0)
    newest = ps.ValueState(datetime)
    quiet = ps.Timer()

    def process(self, key: str, row: Event, ctx: ps.Context) -> None:
        self.rows.value += 1
        self.total.value += row.v
        newest = self.newest.value
        if newest is None or row.ts > newest:
            self.newest.value = row.ts
            self.quiet.set(row.ts + timedelta(hours=1))

    def on_timer(self, key: str, timer: ps.Fired, ctx: ps.Context) -> Iterator[Quiet]:
        yield Quiet(key, self.rows.value, self.total.value)
        self.rows.clear()
        self.total.clear()


def test_timers_that_move() -> None:
    rows, totals = Counter(e.k for e in EVENTS), Counter[str]()
    for e in EVENTS:
        totals[e.k] += e.v
    assert_same_rows(
        lambda: stream().key_by("k").process(Silence()), [(k, rows[k], totals[k]) for k in rows]
    )


class Buckets(ps.KeyedOperator[Event, Quiet]):
    """Ten-second sums by tagged timers."""

    sums = ps.MapState(str, int)
    rows = ps.MapState(str, int)
    due = ps.Timer()

    def process(self, key: str, row: Event, ctx: ps.Context) -> None:
        bucket = row.ts.replace(second=row.ts.second // 10 * 10, microsecond=0)
        tag = bucket.isoformat()
        self.sums[tag] = self.sums.get(tag, 0) + row.v
        self.rows[tag] = self.rows.get(tag, 0) + 1
        self.due.set(bucket + timedelta(seconds=10), tag)

    def on_timer(self, key: str, timer: ps.Fired, ctx: ps.Context) -> Iterator[Quiet]:
        yield Quiet(key, self.rows.pop(timer.tag), self.sums.pop(timer.tag))


def test_timers_with_tags_fire_once() -> None:
    expected = sql(
        """SELECT k, count(*), sum(v)::bigint FROM t
           GROUP BY k, time_bucket(INTERVAL '10 seconds', ts)""",
        t=TABLE,
    )
    assert_same_rows(lambda: stream().key_by("k").process(Buckets()), expected)


@dataclass
class Rule:
    k: str
    factor: int


@dataclass
class Waiting:
    id: int
    value: int


class Scaled(ps.KeyedOperator[Event, Waiting]):
    """v times the factor of the key; rows that come before their rule wait for the end of data."""

    factors = ps.BroadcastState(str, int)
    waiting = ps.ListState(tuple)
    end = ps.Timer()

    def process(self, key: str, row: Event, ctx: ps.Context) -> Iterator[Waiting]:
        if key in self.factors:
            yield Waiting(row.id, row.v * self.factors[key])
        else:
            self.waiting.append((row.id, row.v))
            self.end.set(row.ts + timedelta(days=1))

    def process_broadcast(self, row: Rule, ctx: ps.Context) -> None:
        self.factors[row.k] = row.factor

    def on_timer(self, key: str, timer: ps.Fired, ctx: ps.Context) -> Iterator[Waiting]:
        for number, v in self.waiting:
            yield Waiting(number, v * self.factors[key])


def test_broadcast_state() -> None:
    factors = {k: index + 2 for index, k in enumerate("abcde")}

    def build() -> ps.Stream[Any]:
        p = ps.Pipeline("law")
        rules = p.source([Rule(k, factor) for k, factor in factors.items()])
        return read(p).key_by("k").process(Scaled(), broadcast=rules.broadcast())

    assert_same_rows(build, [(e.id, e.v * factors[e.k]) for e in EVENTS])


# Several streams ----------------------------------------------------------------------------------


def test_union() -> None:
    def build() -> ps.Stream[Any]:
        p = ps.Pipeline("law")
        return read(p).union(more(p)).select("id", "v")

    assert_same_rows(build, [(e.id, e.v) for e in [*EVENTS, *MORE]])


def test_union_before_a_keyed_operator() -> None:
    def build() -> ps.Stream[Any]:
        p = ps.Pipeline("law")
        return counted(read(p).union(more(p)).key_by("k").process(EveryState()))

    assert_same_rows(build, numbers_of([*EVENTS, *MORE]))


# Windows ------------------------------------------------------------------------------------------

AGGREGATES = {"n": "count(*)", "s": "sum(v)", "top": "max(v)", "mean": "avg(v)"}
MEASURES = "count(*) n, sum(v)::bigint s, max(v) top, avg(v) mean"


def windowed(window: Any) -> ps.Stream[Any]:
    made = stream().key_by("k").window(window).aggregate(**AGGREGATES)
    return made.select("k", "window_start", "n", "s", "top", "mean")


def test_tumble() -> None:
    expected = sql(
        f"""SELECT k, time_bucket(INTERVAL '30 seconds', ts) w, {MEASURES}
            FROM t GROUP BY k, w""",
        t=TABLE,
    )
    assert_same_rows(lambda: windowed(ps.tumble("30 seconds")), expected)


def test_windows_over_all_rows_that_move_between_chains_when_rescaled() -> None:
    def build() -> ps.Stream[Any]:
        return stream().window(ps.tumble("30 seconds")).aggregate(n="count(*)", s="sum(v)")

    expected = sql(
        """SELECT time_bucket(INTERVAL '30 seconds', ts) w, w + INTERVAL '30 seconds',
           count(*), sum(v)::bigint FROM t GROUP BY w""",
        t=TABLE,
    )
    assert_same_rows(build, expected)


def test_hop() -> None:
    expected = sql(
        f"""SELECT k, w, {MEASURES} FROM (
              SELECT *, time_bucket(INTERVAL '10 seconds', ts) - INTERVAL '10 seconds' * i AS w
              FROM t, range(3) AS r(i)) GROUP BY k, w""",
        t=TABLE,
    )
    assert_same_rows(lambda: windowed(ps.hop("30 seconds", every="10 seconds")), expected)


def test_cumulate() -> None:
    def build() -> ps.Stream[Any]:
        made = stream().key_by("k").window(ps.cumulate("1 minute", step="20 seconds"))
        return made.aggregate(n="count(*)").select("k", "window_start", "window_end", "n")

    expected = sql(
        """WITH e AS (SELECT k, ts, time_bucket(INTERVAL '60 seconds', ts) AS w FROM t)
           SELECT k, w, w + INTERVAL '20 seconds' * i AS till,
                  count(*) FILTER (WHERE ts < w + INTERVAL '20 seconds' * i) AS n
           FROM e, range(1, 4) AS r(i) GROUP BY k, w, i HAVING n > 0""",
        t=TABLE,
    )
    assert_same_rows(build, expected)


def test_session() -> None:
    def build() -> ps.Stream[Any]:
        made = stream().key_by("k").window(ps.session("7 seconds"))
        return made.aggregate(n="count(*)", s="sum(v)").select(
            "k", "window_start", "window_end", "n", "s"
        )

    expected = []
    times: dict[str, list[Event]] = defaultdict(list)
    for e in sorted(EVENTS, key=lambda e: e.ts):
        times[e.k].append(e)
    gap = timedelta(seconds=7)
    for k, rows in times.items():
        group: list[Event] = []
        for e in [*rows, None]:
            if e is not None and (not group or e.ts < group[-1].ts + gap):
                group.append(e)
                continue
            total = sum(one.v for one in group)
            expected.append((k, group[0].ts, group[-1].ts + gap, len(group), total))
            group = [e] if e is not None else []
    assert_same_rows(build, expected)


def test_windows_of_so_many_rows_and_without_an_end() -> None:
    def build() -> ps.Stream[Any]:
        keyed = stream().key_by("k")
        counts = keyed.window(ps.count_window(7)).aggregate(n="count(*)")
        whole = keyed.window(ps.global_window(trigger="10 rows", ttl=ps.FOREVER))
        totals = whole.aggregate(n="count(*)").select("k", n="-n")
        return counts.select("k", "n").union(totals)

    # Which rows meet in a window depends on their order of arrival, how many windows does not.
    found = Counter(e.k for e in EVENTS).items()
    sevens = [(k, 7) for k, rows in found for _ in range(rows // 7)]
    assert_same_rows(
        build, sevens + [(k, -n) for k, rows in found for n in range(10, rows + 1, 10)]
    )
