from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from plan_fixtures import Feed, Flight, Keep, Knock, LateInbound, flights, plan_of

import penstock as ps


def text_of(build: Callable[[], Any]) -> str:
    """The error's text with line numbers taken out, after checking that this file is named."""
    with pytest.raises(ps.PlanError) as caught:
        build()
    text = str(caught.value)
    assert "test_plan_errors.py:" in text, text
    return re.sub(r"\.py:\d+", ".py:0", text)


def test_an_unknown_column_is_shown_in_its_expression() -> None:
    s = flights(ps.Pipeline("p"))
    assert text_of(lambda: s.filter('carrier = "AA"')) == (
        'filter: no column "AA"  (test_plan_errors.py:0)\n'
        '    carrier = "AA"\n'
        "              ^^^^ double quotes name columns; for text write 'AA'\n"
        "  columns: carrier, tail, dep_time, dep_delay, distance, notes"
    )


def test_a_window_without_event_time_says_where_to_say_it() -> None:
    p = ps.Pipeline("p")
    clicks = p.source(
        Feed(
            pa.schema(
                [
                    ("user", pa.string()),
                    ("ts", pa.timestamp("us")),
                    ("updated_at", pa.timestamp("ms")),
                ]
            ),
            name="clicks",
        )
    )
    keyed = clicks.select("user").key_by("user")
    assert text_of(lambda: keyed.window(ps.tumble("1 hour"))) == (
        'window(tumble 1 hour) on "clicks": the stream has no event time'
        "  (test_plan_errors.py:0)\n"
        '  Say it where it is read:  p.source(..., event_time="ts", out_of_order="5 seconds")\n'
        "  timestamp columns: ts, updated_at"
    )


class Enrich(ps.KeyedOperator[Flight, Knock]):
    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:")

    def process(self, key: str, row: Flight, ctx: ps.Context) -> list[Knock]:
        return []


def test_an_operator_that_cannot_travel_names_the_attribute() -> None:
    keyed = flights(ps.Pipeline("p")).key_by("tail")
    enrich = Enrich()
    text = text_of(lambda: keyed.process(enrich))
    enrich.db.close()
    assert text == (
        'Enrich cannot be sent to its process: attribute "db" holds a sqlite3.Connection'
        "  (test_plan_errors.py:0)\n"
        "  __init__ runs here, open() runs there. Keep the path in __init__, connect in open()."
    )


def test_a_function_that_cannot_travel_names_the_variable() -> None:
    lock = sqlite3.connect(":memory:")
    s = flights(ps.Pipeline("p"))

    def look(row: Flight) -> Knock:
        return Knock(str(lock), 0.0)

    text = text_of(lambda: s.map(look))
    lock.close()
    assert 'variable "lock" holds a sqlite3.Connection' in text


def test_columns_of_a_keyed_operators_row_class_must_be_there() -> None:
    s = flights(ps.Pipeline("p")).drop("dep_delay")
    text = text_of(lambda: s.key_by("tail").process(LateInbound()))
    assert "LateInbound" in text
    assert "dep_delay" in text


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda s: s.key_by("carier"), ['key_by: no column "carier"', "did you mean 'carrier'?"]),
        (lambda s: s.key_by("tail", "TAIL"), ['key_by: column "tail" is named twice']),
        (lambda s: s.key_by(), ["key_by: no column is named"]),
        (lambda s: s.drop("x"), ['drop: no column "x"', "columns: carrier, tail"]),
        (lambda s: s.drop(*s.schema.names), ["drop: no column would be left"]),
        (lambda s: s.rename(tail="carrier"), ['rename: two columns would be called "tail"']),
        (lambda s: s.rename(a="tail", b="tail"), ["rename: one column is given two names"]),
        (lambda s: s.rename(_time="tail"), ['rename: the column name "_time" is reserved']),
        (lambda s: s.with_columns(_time="tail"), ['with_columns: the column name "_time"']),
        (lambda s: s.with_columns(), ["with_columns: no column is given"]),
        (lambda s: s.select("distance * 2"), ["needs a name", 'select(name="distance * 2")']),
        (lambda s: s.select("tail", tail="carrier"), ['select: two columns are called "tail"']),
        (lambda s: s.select(), ["select: no column is named"]),
        (lambda s: s.drop("_time"), ["_time is not a column of yours"]),
        (lambda s: s.filter("distance"), ["filter: a condition is needed"]),
        (lambda s: s.process(LateInbound()), ["a KeyedOperator needs to know its key"]),
        (lambda s: s.process(object()), ["process(object): it is not an operator"]),
        (lambda s: s.key_by("tail").process(LateInbound), ["Pass an instance"]),
        (lambda s: s.on_error("drop"), ["'drop' is not a policy", "ps.Drop()"]),
        (lambda s: s.options(name="a b"), ["'a b' cannot be the name of an operator"]),
        (lambda s: s.options(parallelism=0), ["parallelism=0"]),
        (lambda s: s.sink("out/"), ["sink: str is not a sink"]),
        (lambda s: s.map(3), ["map: 3 is not a function"]),
        (lambda s: s.late, ["feed: it has no output 'late'"]),
        (lambda s: s.output(LateInbound.unknown), ["feed: it has no output 'unknown'"]),
        (lambda s: s.union(s.drop("notes")), ["stream 2 has other columns", "it lacks: notes"]),
        (lambda s: s.key_by("tail").window("1 hour"), ["window: '1 hour' is not a window"]),
        (lambda s: s.head(0), ["head: 0 is not a number of rows"]),
    ],
)
def test_what_cannot_work_is_said_at_its_line(
    build: Callable[[ps.Stream[Any]], Any], parts: list[str]
) -> None:
    s = flights(ps.Pipeline("p"))
    text = text_of(lambda: build(s))
    for part in parts:
        assert part in text


def test_an_operator_of_batches_has_no_key() -> None:
    class Score(ps.Operator):
        def process(self, batch: pa.RecordBatch, ctx: ps.Context) -> list[pa.RecordBatch]:
            return [batch]

    keyed = flights(ps.Pipeline("p")).key_by("tail")
    text = text_of(lambda: keyed.process(Score()))  # type: ignore[arg-type]
    assert "process(Score): an Operator takes batches" in text
    assert "Leave key_by() out" in text


def test_event_time_must_be_asked_for_completely() -> None:
    p = ps.Pipeline("p")
    assert "say how far rows may be out of order" in text_of(
        lambda: p.source(Feed(), event_time="dep_time")
    )
    assert 'Add  event_time="column"' in text_of(lambda: p.source(Feed(), out_of_order="1 hour"))
    text = text_of(lambda: p.source(Feed(), event_time="tail", monotone=True))
    assert "not a date or a timestamp" in text


def test_the_name_time_is_reserved_in_sources() -> None:
    p = ps.Pipeline("p")
    feed = Feed(pa.schema([("_time", pa.int64())]))
    assert "_time is reserved" in text_of(lambda: p.source(feed))


def test_streams_of_two_pipelines_do_not_meet() -> None:
    a, b = flights(ps.Pipeline("a")), flights(ps.Pipeline("b"))
    assert "two pipelines, 'a' and 'b'" in text_of(lambda: a.union(b))


def test_a_union_needs_event_time_in_all_or_none() -> None:
    p = ps.Pipeline("p")
    a, b = flights(p), p.source(Feed(name="b"))
    assert "stream 2 has no event time" in text_of(lambda: a.union(b))


def test_a_union_needs_types_that_fit() -> None:
    p = ps.Pipeline("p")
    a = p.source(Feed(pa.schema([("x", pa.int64())]), name="a"))
    b = p.source(Feed(pa.schema([("x", pa.string())]), name="b"))
    text = text_of(lambda: a.union(b))
    assert 'union: column "x" is' in text
    assert "Cast it first" in text


def test_a_pipeline_without_sinks_has_nothing_to_run() -> None:
    p = ps.Pipeline("p")
    flights(p)
    with pytest.raises(ps.PlanError, match="has no sink, so there is nothing to run"):
        plan_of(p)


def test_collect_refuses_sources_without_an_end() -> None:
    p = ps.Pipeline("p")
    s = flights(p, feed=Feed(bounded=False))
    text = text_of(lambda: s.collect())
    assert "collect: source feed has no end" in text


def test_a_registered_function_must_be_typed() -> None:
    def twice(x):  # type: ignore[no-untyped-def]
        return 2 * x

    p = ps.Pipeline("p")
    assert "has no annotation" in text_of(lambda: p.register(twice))


def test_options_must_be_used_where_they_were_given() -> None:
    p = ps.Pipeline("p")
    knocks = flights(p).key_by("tail").process(LateInbound())
    knocks.options(name="knocks").sink(Keep("a"))
    knocks.output(LateInbound.unknown).sink(Keep("b"))
    assert "used both with and without its options" in text_of(lambda: plan_of(p))


def test_an_operator_with_side_outputs_only_has_no_rows() -> None:
    class Sort(ps.KeyedOperator[Flight, None]):
        early = ps.Output(Flight)

        def process(self, key: str, row: Flight, ctx: ps.Context) -> list[ps.Side]:
            return [self.early(row)]

    p = ps.Pipeline("p")
    sorted_ = flights(p).key_by("tail").process(Sort())
    sorted_.output(Sort.early).sink(Keep())
    assert len(plan_of(p).vertices) == 2
    assert "it yields only to side outputs" in text_of(lambda: sorted_.sink(Keep()))


@pytest.mark.parametrize(
    ("window", "why"),
    [
        (ps.count_window(3), "this one ends with a row"),
        (ps.global_window(trigger="3 rows", ttl="1 day"), "gives what it has by its trigger"),
    ],
)
def test_windows_that_end_at_no_time_are_not_given_early(window: Any, why: str) -> None:
    keyed = flights(ps.Pipeline("p")).key_by("tail")
    for said in ({"early": "1 s"}, {"refine": True}):
        text = text_of(lambda said=said: keyed.window(window, **said))  # type: ignore[misc]
        assert f"window({window.text}): early= and refine= are for windows that end" in text
        assert why in text
        assert ".key_by(...).aggregate(...)" in text or "ttl=..." in text


JOINS: list[tuple[dict[str, Any], list[str]]] = [
    ({"on": "tail"}, ["exactly one bound on what it remembers, and nothing is given"]),
    (
        {"on": "tail", "window": ps.tumble("1 hour"), "ttl": "1 day"},
        ["exactly one bound", "window and ttl is given", "ps.FOREVER"],
    ),
    (
        {"on": "tail", "ttl": "1 day"},
        ["both streams have a column carrier", 'right.rename(carrier_2="carrier")'],
    ),
    ({"on": "tial", "ttl": "1 day"}, ['join(on=), left stream: no column "tial"']),
    ({"on": "tail", "ttl": "1 day", "how": "cross"}, ["how='cross'; there are inner, left"]),
    ({"on": "tail", "ttl": "-1 day"}, ["ttl='-1 day' is negative"]),
    ({"on": "tail", "ttl": 5}, ["5 is not a duration"]),
    ({"on": "tail", "within": "1 hour"}, ["is not a pair of durations"]),
    ({"on": "tail", "within": ("1 hour", "-5 min")}, ["the first is the lower bound"]),
    ({"on": "tail", "window": ps.session("1 hour")}, ["ps.tumble or ps.hop"]),
]


@pytest.mark.parametrize(("said", "parts"), JOINS)
def test_a_join_says_what_it_lacks(said: dict[str, Any], parts: list[str]) -> None:
    p = ps.Pipeline("p")
    a, b = flights(p, feed=Feed(name="a")), flights(p, feed=Feed(name="b"))
    text = text_of(lambda: a.join(b, **said))
    for part in parts:
        assert part in text


def test_keys_of_a_join_must_be_of_kinds_that_can_be_equal() -> None:
    p = ps.Pipeline("p")
    a = p.source(Feed(pa.schema([("k", pa.int64())]), name="a"))
    b = p.source(Feed(pa.schema([("k", pa.string())]), name="b"))
    text = text_of(lambda: a.join(b, on="k", ttl=ps.FOREVER))
    assert 'join: the key "k" is' in text
    assert 'Cast one first:  .with_columns(k="CAST(k AS ...)")' in text


def test_a_join_in_event_time_needs_it_on_both_sides() -> None:
    p = ps.Pipeline("p")
    a, b = flights(p), p.source(Feed(pa.schema([("tail", pa.string())]), name="b"))
    text = text_of(lambda: a.join(b, on="tail", within=("-1 hour", "1 hour")))
    assert 'join(within -1 hour to 1 hour) on "b": the stream has no event time' in text


def test_windows_without_a_key_run_in_one_subtask() -> None:
    p = ps.Pipeline("p")
    hot = flights(p).window(ps.tumble("1 hour")).aggregate(n="count(*)")
    hot.options(parallelism=3).sink(Keep())
    text = text_of(lambda: plan_of(p))
    assert "tumble: parallelism 3 is more than 1" in text
    assert "Without key_by() all rows meet in one subtask." in text


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ps.Pipeline("a/b"), "'a/b' cannot be the name of a pipeline"),
        (lambda: ps.Pipeline("p").source([]), "an empty list does not say which columns it has"),
        (lambda: ps.Pipeline("p").source(Feed(), parallelism=0), "parallelism=0"),
    ],
)
def test_what_cannot_begin_is_refused_at_the_users_line(build: Any, said: str) -> None:
    with pytest.raises(ps.PlanError) as refused:
        build()
    first = str(refused.value).splitlines()[0]
    assert said in first
    assert "(test_plan_errors.py:" in first


@pytest.mark.parametrize("too_long", [ps.FOREVER, timedelta(days=40_000), "900000 hours"])
def test_spans_that_no_event_time_can_hold_are_refused(too_long: Any) -> None:
    s = flights(ps.Pipeline("p"))
    keyed, other = s.key_by("carrier"), s.select("carrier")
    for build in (
        lambda: keyed.limit_rate(1, per=too_long),
        lambda: keyed.window(ps.tumble("1 day"), allowed_lateness=too_long),
        lambda: s.join(other, on="carrier", within=("0 s", too_long)),
        lambda: ps.tumble(too_long),
        lambda: ps.session(too_long),
    ):
        with pytest.raises(ps.PlanError, match="is longer than a hundred years"):
            build()


def test_a_ttl_for_ever_can_be_said_wherever_there_is_one() -> None:
    keyed = flights(ps.Pipeline("p")).key_by("carrier")
    for stream in (
        keyed.deduplicate(ttl=ps.FOREVER),
        keyed.deduplicate(keep="last", ttl=ps.FOREVER),
        keyed.top(2, by="distance", ttl=ps.FOREVER),
        keyed.aggregate(n="count(*)", ttl=ps.FOREVER),
    ):
        logic: Any = stream._taps[0].node.logic
        assert logic.ttl_ns is None
    assert ps.ValueState(int, ttl=ps.FOREVER).ttl_ns is None


def test_a_time_zone_that_is_no_name_is_refused() -> None:
    with pytest.raises(ps.PlanError, match=r"tumble\(timezone=5\): there is no such time zone"):
        ps.tumble("1 day", timezone=5)  # type: ignore[arg-type]


def test_a_file_sink_refuses_columns_it_cannot_write_when_it_is_planned() -> None:
    s = flights(ps.Pipeline("p"))
    lists = s.key_by("carrier").window(ps.tumble("1 day")).aggregate(all="array_agg(tail)")
    text = text_of(lambda: lists.sink(ps.FileSink("out", format="csv")))
    assert text.startswith('FileSink: column "all" is list<item: string>, which CSV cannot hold')
    assert '.drop("all")' in text
    text = text_of(lambda: s.sink(ps.FileSink("out", partition_by=["nope"])))
    assert text.startswith("FileSink(partition_by=): no column 'nope'  (test_plan_errors.py:0)")
