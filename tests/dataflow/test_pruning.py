from __future__ import annotations

import pyarrow as pa
from plan_fixtures import Feed, Flight, Keep, Knock, LateInbound, flights, plan_of, read_by_sources

import penstock as ps


def test_a_source_reads_only_what_is_needed_and_its_event_time() -> None:
    p = ps.Pipeline("p")
    flights(p).filter("distance > 100").select("carrier").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns == ["carrier", "dep_time", "distance"]


def test_all_readers_of_a_source_are_heard() -> None:
    p = ps.Pipeline("p")
    s = flights(p)
    s.select("carrier").sink(Keep("a"))
    s.select(x="distance * 2").sink(Keep("b"))
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns == ["carrier", "dep_time", "distance"]


def test_a_source_without_event_time_keeps_one_narrow_column_to_count_rows_by() -> None:
    p = ps.Pipeline("p")
    p.source(Feed()).select(one="1").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns == ["dep_time"]


def test_a_source_that_is_read_whole_is_left_alone() -> None:
    p = ps.Pipeline("p")
    flights(p).sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns is None


def test_columns_that_nobody_reads_are_not_computed() -> None:
    p = ps.Pipeline("p")
    s = flights(p).with_columns(a="distance * 2", b="upper(notes)")
    s.select("a").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns == ["dep_time", "distance"]


def test_renamed_columns_are_asked_for_by_their_old_names() -> None:
    p = ps.Pipeline("p")
    flights(p).rename(who="carrier", what="notes").drop("what").select("who").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns == ["carrier", "dep_time"]


def test_columns_that_swap_names_swap_their_readers() -> None:
    p = ps.Pipeline("p")
    flights(p).rename(carrier="notes", notes="carrier").select("carrier").sink(Keep())
    plan = plan_of(p)
    (feed,) = read_by_sources(plan)
    assert feed.columns == ["dep_time", "notes"]


def test_only_what_is_read_behind_it_crosses_an_exchange() -> None:
    p = ps.Pipeline("p")
    s = flights(p).filter("distance > 100")
    s.key_by("carrier").window(ps.session("1 h")).aggregate(worst="max(dep_delay)").sink(Keep())
    (edge,) = plan_of(p).edges
    assert edge.schema.names == ["carrier", "dep_delay", "_time"]


def test_each_reader_of_a_stage_gets_its_own_columns() -> None:
    p = ps.Pipeline("p")
    s = flights(p).with_columns(far="distance > 1000")
    for key in ("carrier", "tail"):
        s.key_by(key).window(ps.session("1 hour")).aggregate(n="count(*)").sink(Keep(key))
    edges = plan_of(p).edges
    assert [e.schema.names for e in edges] == [["carrier", "_time"], ["tail", "_time"]]


def test_a_keyed_operator_gets_its_key_and_the_columns_of_its_row_class() -> None:
    p = ps.Pipeline("p")
    flights(p).key_by("carrier").process(LateInbound()).sink(Keep())
    (edge,) = plan_of(p).edges
    assert edge.schema.names == ["carrier", "tail", "dep_time", "dep_delay", "_time"]


def test_a_function_with_a_row_class_reads_its_columns_only() -> None:
    def knock(row: Flight) -> Knock:
        return Knock(row.tail, row.dep_delay or 0.0)

    p = ps.Pipeline("p")
    flights(p).map(knock).sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns == ["tail", "dep_time", "dep_delay"]


def test_a_row_filter_passes_on_what_others_read() -> None:
    def late(row: Knock) -> bool:
        return row.minutes > 3

    p = ps.Pipeline("p")
    s = flights(p).select("carrier", "tail", "notes", minutes="coalesce(dep_delay, 0.0)")
    s.filter(late).select("carrier").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns == ["carrier", "tail", "dep_time", "dep_delay"]


def test_a_function_that_gives_rows_of_its_inputs_schema_needs_them_whole() -> None:
    p = ps.Pipeline("p")
    flights(p).map(lambda row: row).select("carrier").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns is None


def test_map_batches_sees_all_columns() -> None:
    def clean(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch

    p = ps.Pipeline("p")
    flights(p).map_batches(clean).select("carrier").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.columns is None


def test_a_filter_right_behind_a_source_is_told_to_it_and_stays_in_the_plan() -> None:
    p = ps.Pipeline("p")
    flights(p).filter("carrier = 'AA' and distance > 100 and dep_delay * 2 > 3").sink(Keep())
    plan = plan_of(p)
    (feed,) = read_by_sources(plan)
    assert feed.predicate == """("carrier" = 'AA') AND ("distance" > 100)"""
    assert [spec.name for spec in plan.vertices[0].operators] == ["feed", "filter", "keep"]


def test_a_predicate_passes_columns_that_it_does_not_read() -> None:
    p = ps.Pipeline("p")
    s = flights(p).with_columns(distance="distance * 2").filter("carrier = 'AA'")
    s.filter("distance > 100").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.predicate == """("carrier" = 'AA')"""


def test_no_predicate_is_pushed_past_another_reader() -> None:
    p = ps.Pipeline("p")
    s = flights(p)
    s.filter("carrier = 'AA'").sink(Keep("a"))
    s.sink(Keep("b"))
    (feed,) = read_by_sources(plan_of(p))
    assert feed.predicate is None


def test_no_predicate_is_pushed_past_an_operator() -> None:
    p = ps.Pipeline("p")
    s = flights(p).key_by("tail").process(LateInbound())
    s.filter("tail = 'N1'").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.predicate is None


def test_a_renamed_column_is_not_pushed_under_its_new_name() -> None:
    p = ps.Pipeline("p")
    flights(p).rename(carrier="notes", notes="carrier").filter("carrier = 'AA'").sink(Keep())
    (feed,) = read_by_sources(plan_of(p))
    assert feed.predicate is None
