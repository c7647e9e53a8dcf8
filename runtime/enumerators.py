"""Lists the splits of every source and deals them out (hazard 28).

A split is dealt once per attempt unless the restored checkpoint has seen it; what a subtask has
taken is in its own snapshot beside its position, so a split is never in two. Dealing is by size,
largest first, to the subtask with the least so far, and is the same for the same listing.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.dataflow.plan import Plan
from penstock.elements.errors import ConnectorError, PenstockError
from penstock.operators.source import SourceConnector, Split

from .messages import SourceSplit, SubtaskKey

log = logging.getLogger("penstock.enumerators")

Dealt = dict[SubtaskKey, list[SourceSplit]]


@dataclass(frozen=True)
class Discovered:
    """A further listing of one source."""

    operator_id: str
    splits: Sequence[Split]


@dataclass
class _Source:
    operator_id: str
    vertex: str
    parallelism: int
    connector: SourceConnector[object]
    listed: dict[str, Split] = field(default_factory=dict)
    dealt: set[str] = field(default_factory=set)
    load: list[int] = field(default_factory=list)


def connector_of(processor: object) -> SourceConnector[object] | None:
    """The connector that a source's processor reads, None if it keeps none."""
    connector = getattr(processor, "connector", None)
    return connector if isinstance(connector, SourceConnector) else None


class Enumerators:
    """Every source of one plan. Used from the controller's thread only; discovery threads report
    to it."""

    def __init__(self, plan: Plan) -> None:
        self._sources: dict[str, _Source] = {}
        self._stop = threading.Event()
        for vertex in plan.vertices:
            head = vertex.operators[0]
            connector = connector_of(head.processor)
            if head.is_source and connector is not None:
                self._sources[head.id] = _Source(head.id, vertex.id, vertex.parallelism, connector)

    def list_all(self) -> None:
        """Ask every source for its splits. Raises what the connector raises, as ConnectorError."""
        for source in self._sources.values():
            self._add(source, _splits_of(source.connector))
            if not source.listed and self.no_more(source.operator_id):
                log.warning(
                    "%s: there is nothing to read (%s)",
                    source.connector.name,
                    source.connector.identity or "it lists no splits",
                )

    def watch(self, on_found: Callable[[Discovered], None]) -> None:
        """Ask sources with a discovery interval again and again, each in its own thread."""
        for source in self._sources.values():
            if source.connector.discovery_interval_ns is not None:
                name = f"splits of {source.connector.name}"
                arguments = (source, source.connector.discovery_interval_ns, on_found)
                threading.Thread(target=self._watch, args=arguments, name=name, daemon=True).start()

    def close(self) -> None:
        """End the discovery threads."""
        self._stop.set()

    def deal_afresh(self, seen: Mapping[str, Sequence[str]]) -> dict[str, Dealt]:
        """For a new attempt: everything listed that the restored checkpoint has not seen."""
        for source in self._sources.values():
            source.dealt = set(seen.get(source.operator_id, ()))
            source.load = [0] * source.parallelism
        return self.deal_new()

    def deal_new(self) -> dict[str, Dealt]:
        """What was listed since, by operator id and subtask."""
        return {operator_id: _deal(source) for operator_id, source in self._sources.items()}

    def discovered(self, found: Discovered) -> None:
        """Take a further listing; it is dealt by the next `deal_new` or `deal_afresh`."""
        self._add(self._sources[found.operator_id], found.splits)

    def no_more(self, operator_id: str) -> bool:
        """Whether the first listing was all there will ever be."""
        source = self._sources.get(operator_id)
        return source is None or source.connector.discovery_interval_ns is None

    def _add(self, source: _Source, splits: Sequence[Split]) -> None:
        for split in splits:
            source.listed.setdefault(split.id, split)

    def _watch(
        self, source: _Source, interval_ns: int, on_found: Callable[[Discovered], None]
    ) -> None:
        known: set[str] = set()
        while not self._stop.wait(interval_ns / 1e9):
            try:
                splits = _splits_of(source.connector)
            except PenstockError as error:
                log.warning("%s; asking again in %.1f s", error, interval_ns / 1e9)
                continue
            fresh = [split for split in splits if split.id not in known]
            known.update(split.id for split in fresh)
            if fresh:
                on_found(Discovered(source.operator_id, fresh))


def _splits_of(connector: SourceConnector[object]) -> Sequence[Split]:
    try:
        return list(connector.splits())
    except PenstockError:
        raise
    except Exception as error:
        raise ConnectorError(
            f"{connector.name}: its splits cannot be listed: {type(error).__name__}: {error}"
        ) from error


def _deal(source: _Source) -> Dealt:
    fresh = [split for split in source.listed.values() if split.id not in source.dealt]
    dealt: Dealt = {}
    for split in sorted(fresh, key=lambda split: (-split.size, split.id)):
        index = min(range(source.parallelism), key=lambda i: (source.load[i], i))
        source.load[index] += max(1, split.size)
        source.dealt.add(split.id)
        wire = SourceSplit(split.id, split.size, json.dumps(split.detail))
        dealt.setdefault(SubtaskKey(source.vertex, index), []).append(wire)
    return dealt
