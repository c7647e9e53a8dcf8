from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from penstock.dataflow.plan import OperatorSpec, Plan, Vertex
from penstock.elements.errors import ConnectorError
from penstock.operators.processor import Processor
from penstock.operators.source import Position, ReaderContext, SourceConnector, Split, SplitReader
from penstock.runtime.enumerators import Dealt, Discovered, Enumerators
from penstock.runtime.messages import SubtaskKey


class Listed(SourceConnector[Any]):
    name = "listed"

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.failures = 0

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([])

    def splits(self) -> Sequence[Split]:
        if self.failures:
            self.failures -= 1
            raise OSError("the network is down")
        return [Split(name, size, {"path": name}) for name, size in self.sizes.items()]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        raise AssertionError("never read")


class Head(Processor):
    def __init__(self, connector: Listed) -> None:
        self.connector = connector

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        raise AssertionError("never run")


def enumerators_of(connector: Listed, parallelism: int) -> Enumerators:
    spec = OperatorSpec("op", "read", Head(connector), {}, is_source=True)
    made = Enumerators(Plan("p", (Vertex("v", "v", (spec,), (), parallelism),), ()))
    made.list_all()
    return made


def names(dealt: Dealt) -> dict[int, list[str]]:
    return {key.index: [split.id for split in splits] for key, splits in dealt.items()}


def test_splits_are_dealt_by_size_so_that_loads_are_even() -> None:
    made = enumerators_of(Listed({"a": 10, "b": 7, "c": 4, "d": 3, "e": 2}), 2)
    assert names(made.deal_afresh({})["op"]) == {0: ["a", "d"], 1: ["b", "c", "e"]}


def test_the_same_listing_is_dealt_the_same_whatever_its_order() -> None:
    sizes = {f"s{n}": n % 3 for n in range(20)}
    forward = enumerators_of(Listed(sizes), 3).deal_afresh({})
    backward = enumerators_of(Listed(dict(reversed(sizes.items()))), 3).deal_afresh({})
    assert forward == backward


def test_what_the_restored_checkpoint_has_seen_is_not_dealt_again() -> None:
    made = enumerators_of(Listed({"a": 1, "b": 1, "c": 1}), 1)
    made.deal_afresh({})
    assert names(made.deal_afresh({"op": ["a", "c"]})["op"]) == {0: ["b"]}
    assert made.deal_new() == {"op": {}}


def test_a_discovered_split_goes_to_the_subtask_with_the_least() -> None:
    made = enumerators_of(Listed({"a": 10, "b": 1}), 2)
    made.deal_afresh({})
    made.discovered(Discovered("op", [Split("b", 1), Split("new", 5)]))
    assert names(made.deal_new()["op"]) == {1: ["new"]}
    assert list(made.deal_afresh({"op": ["a", "b"]})["op"]) == [SubtaskKey("v", 0)]


def test_only_a_source_without_discovery_has_no_more_splits() -> None:
    connector = Listed({"a": 1})
    assert enumerators_of(connector, 1).no_more("op")
    connector.discovery_interval_ns = 1
    assert not enumerators_of(connector, 1).no_more("op")


def test_discovery_asks_again_after_a_failure_and_reports_only_what_is_new(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connector = Listed({"a": 1})
    connector.discovery_interval_ns = 1_000_000
    made = enumerators_of(connector, 1)
    connector.failures = 1
    found: queue.SimpleQueue[Discovered] = queue.SimpleQueue()
    made.watch(found.put)
    assert [split.id for split in found.get(timeout=30).splits] == ["a"]
    connector.sizes = {"a": 1, "b": 1}
    assert [split.id for split in found.get(timeout=30).splits] == ["b"]
    made.close()
    assert "the network is down" in caplog.text


def test_a_listing_that_fails_names_the_connector() -> None:
    connector = Listed({})
    connector.failures = 1
    with pytest.raises(ConnectorError, match="listed: its splits cannot be listed: OSError"):
        enumerators_of(connector, 1)


def test_an_operator_that_keeps_no_connector_is_not_asked() -> None:
    spec = OperatorSpec("op", "x", Head(Listed({})), {}, is_source=False)
    plan = Plan("p", (Vertex("v", "v", (spec,), (), 1),), ())
    made = Enumerators(replace(plan, sources=()))
    made.list_all()
    assert made.deal_afresh({}) == {}
