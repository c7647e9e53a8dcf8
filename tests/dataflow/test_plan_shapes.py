from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from plan_fixtures import Feed, Flight, Keep, Knock, LateInbound, flights, plan_of

import penstock as ps
from penstock.operators.cast_columns import CastColumns


def shape(plan: Any) -> list[tuple[list[str], int]]:
    return [([s.name for s in v.operators], v.parallelism) for v in plan.vertices]


def test_everything_chains_into_one_subtask_without_an_exchange() -> None:
    p = ps.Pipeline("p")
    flights(p).filter("dep_delay > 15").select("tail").sink(Keep())
    plan = plan_of(p, parallelism=4)
    assert shape(plan) == [(["feed", "filter_select", "keep"], 4)]
    assert plan.edges == ()
    assert [(k.source, k.target) for k in plan.vertices[0].links] == [(0, 1), (1, 2)]


def test_key_by_makes_a_hash_edge_and_the_rest_chains_behind_it() -> None:
    p = ps.Pipeline("p")
    flights(p).key_by("tail").process(LateInbound()).sink(Keep())
    plan = plan_of(p, parallelism=4)
    assert shape(plan) == [(["feed"], 4), (["late_inbound", "keep"], 4)]
    (edge,) = plan.edges
    assert (edge.partition, edge.keys, edge.port) == ("hash", ("tail",), 0)


def test_a_source_is_no_wider_than_its_splits_and_carries_its_stateless_tail() -> None:
    p = ps.Pipeline("p")
    flights(p, feed=Feed(splits=2)).filter("dep_delay > 15").key_by("tail").process(
        LateInbound()
    ).sink(Keep())
    assert [v.parallelism for v in plan_of(p, parallelism=4).vertices] == [2, 4]


def test_a_watched_source_is_as_wide_as_the_job() -> None:
    feed = Feed(splits=1)
    feed.discovery_interval_ns = 10**9
    p = ps.Pipeline("p")
    flights(p, feed=feed).sink(Keep())
    assert plan_of(p, parallelism=3).vertices[0].parallelism == 3


def test_another_parallelism_breaks_the_chain_with_a_rebalance() -> None:
    p = ps.Pipeline("p")
    s = flights(p, feed=Feed(splits=1))
    s.filter("dep_delay > 15").options(parallelism=3).sink(Keep())
    plan = plan_of(p, parallelism=2)
    assert shape(plan) == [(["feed"], 1), (["filter", "keep"], 3)]
    assert plan.edges[0].partition == "rebalance"


def test_a_chain_break_makes_a_forward_edge() -> None:
    p = ps.Pipeline("p")
    flights(p).filter("dep_delay > 15").chain_break().sink(Keep())
    plan = plan_of(p, parallelism=2)
    assert shape(plan) == [(["feed"], 2), (["filter", "keep"], 2)]
    assert plan.edges[0].partition == "forward"


def test_one_subtask_after_another_still_hashes_so_that_rescaling_finds_its_state() -> None:
    p = ps.Pipeline("p")
    flights(p).key_by("tail").process(LateInbound()).sink(Keep())
    assert plan_of(p).edges[0].partition == "hash"


def test_a_union_is_several_edges_into_one_port() -> None:
    p = ps.Pipeline("p")
    a = flights(p, feed=Feed(name="a"))
    b = flights(p, feed=Feed(name="b")).filter("dep_delay > 3")
    a.union(b).sink(Keep())
    plan = plan_of(p, parallelism=2)
    assert shape(plan) == [(["a"], 2), (["b", "filter"], 2), (["keep"], 2)]
    assert [(e.port, e.partition) for e in plan.edges] == [(0, "forward"), (0, "forward")]
    assert plan.edges[0].schema.equals(plan.edges[1].schema)


def test_a_union_with_itself_gives_two_edges() -> None:
    p = ps.Pipeline("p")
    a = flights(p)
    a.union(a).sink(Keep())
    edges = plan_of(p).edges
    assert len({edge.id for edge in edges}) == len(edges) == 2


def test_a_union_brings_types_order_and_nullability_together() -> None:
    p = ps.Pipeline("p")
    a = p.source(Feed(pa.schema([pa.field("x", pa.int32(), False), ("y", pa.string())]), name="a"))
    b = p.source(Feed(pa.schema([("y", pa.string()), ("x", pa.int64())]), name="b"))
    both = a.union(b)
    assert both.schema == pa.schema([("x", pa.int64()), ("y", pa.string())])
    both.sink(Keep())
    plan = plan_of(p)
    casts = [s for v in plan.vertices for s in v.operators if isinstance(s.processor, CastColumns)]
    assert len(casts) == 2
    assert all(edge.schema == both.schema for edge in plan.edges)


def test_a_side_output_hangs_in_the_same_chain() -> None:
    p = ps.Pipeline("p")
    knocks = flights(p).key_by("tail").process(LateInbound())
    knocks.sink(Keep("a"))
    knocks.output(LateInbound.unknown).sink(Keep("b"))
    vertex = plan_of(p).vertices[1]
    assert [(k.source, k.output, k.target) for k in vertex.links] == [
        (0, "main", 1),
        (0, "unknown", 2),
    ]


def test_late_rows_of_a_window_are_a_stream_of_whole_rows() -> None:
    p = ps.Pipeline("p")
    hot = flights(p).key_by("carrier").window(ps.tumble("1 hour")).aggregate(n="count(*)")
    assert hot.schema.names == ["carrier", "window_start", "window_end", "n"]
    assert hot.late.schema.names == flights(p).schema.names
    hot.sink(Keep("a"))
    hot.late.select("notes").sink(Keep("b"))
    plan = plan_of(p)
    assert set(plan.edges[0].schema.names) == {"carrier", "notes", "_time"}


def test_a_broadcast_stream_goes_to_every_subtask_at_port_one() -> None:
    class Priced(ps.KeyedOperator[Flight, Knock]):
        limits = ps.BroadcastState(str, float)

        def process(self, key: str, row: Flight, ctx: ps.Context) -> list[Knock]:
            return [Knock(key, self.limits.get(key, 0.0))]

        def process_broadcast(self, row: Knock, ctx: ps.Context) -> None:
            self.limits[row.tail] = row.minutes

    p = ps.Pipeline("p")
    rules = p.source([Knock("N1", 3.0)])
    flights(p).key_by("tail").process(Priced(), broadcast=rules).sink(Keep())
    plan = plan_of(p, parallelism=3)
    (head,) = [v for v in plan.vertices if v.operators[0].name == "priced"]
    assert [(e.port, e.partition) for e in plan.inputs(head.id)] == [(0, "hash"), (1, "broadcast")]


def test_dead_letters_are_wired_to_a_file_sink_in_the_same_chain(tmp_path: Any) -> None:
    p = ps.Pipeline("p")
    bad = str(tmp_path / "bad")
    flights(p).filter("100 / distance > 1").on_error(ps.DeadLetter(bad)).sink(Keep())
    vertex = plan_of(p).vertices[0]
    (dead,) = [link for link in vertex.links if link.output == "dead"]
    sink = vertex.operators[dead.target]
    assert vertex.operators[dead.source].name == "filter"
    assert sink.is_sink
    assert sink.processor.sink.path == bad


def test_the_plan_says_what_is_not_exactly_once() -> None:
    p = ps.Pipeline("p")
    flights(p, feed=Feed(replay=False)).sink(ps.StdoutSink())
    first, second = plan_of(p).warnings
    assert "feed cannot be read again: at most once" in first
    assert "stdout_sink has no prepare(): at least once" in second


def test_operators_know_the_line_of_the_user() -> None:
    p = ps.Pipeline("p")
    flights(p).filter("dep_delay > 15").sink(Keep())
    locations = [spec.location for spec in plan_of(p).vertices[0].operators]
    assert locations[1].startswith("test_plan_shapes.py:")


def test_streams_are_immutable() -> None:
    p = ps.Pipeline("p")
    s = flights(p)
    before = s.schema
    s.with_columns(x="dep_delay * 2").drop("notes")
    assert s.schema.equals(before)


def test_nothing_runs_that_leads_to_no_sink() -> None:
    p = ps.Pipeline("p")
    s = flights(p)
    s.filter("dep_delay > 15").key_by("tail").process(LateInbound())
    s.sink(Keep())
    assert shape(plan_of(p)) == [(["feed", "keep"], 1)]


@pytest.mark.parametrize("parallelism", [1, 2, 5])
def test_every_edge_has_the_schema_of_what_feeds_it(parallelism: int) -> None:
    p = ps.Pipeline("p")
    s = flights(p).with_columns(long="dep_delay > 60")
    s.key_by("tail").process(LateInbound()).sink(Keep("a"))
    s.key_by("carrier", "long").window(ps.hop("1 hour", every="30 min")).aggregate(
        n="count(*)", worst="max(dep_delay)"
    ).sink(Keep("b"))
    s.union(s).select("notes").sink(Keep("c"))
    plan = plan_of(p, parallelism)
    for edge in plan.edges:
        source = plan.vertex(edge.source_vertex).operators[edge.source_operator]
        assert source.outputs[edge.output].equals(edge.schema)
    for vertex in plan.vertices:
        for link in vertex.links:
            assert link.output in vertex.operators[link.source].outputs
