"""aggregate() without a window, as methods of Stream and KeyedStream; the node is elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from penstock.elements.durations import Duration
from penstock.operators.aggregate_classes import AggregateClass, AggregateItem

from .location import user_location
from .schema_check import check_new_name, check_sendable

if TYPE_CHECKING:
    from .stream import Stream


def check_items(items: Mapping[str, AggregateItem], location: str) -> None:
    """PlanError for columns that cannot be called so, and for classes that cannot travel."""
    for column, item in items.items():
        check_new_name(column, "aggregate", location)
        if isinstance(item, AggregateClass):
            check_sendable(item, f"aggregate({column}={item.text})", location)


class StreamAggregates:
    """Methods of Stream."""

    def aggregate(
        self, *, ttl: Duration | None = None, flush: Duration = "1 second", **items: AggregateItem
    ) -> Stream[Any]:
        """One row over all rows so far: an updating stream. See KeyedStream.aggregate."""
        from .updating_nodes import aggregated

        stream = cast("Stream[Any]", self)
        return aggregated(stream, (), items, ttl, flush, user_location())


class KeyedAggregates:
    """Methods of KeyedStream."""

    _stream: Stream[Any]
    keys: tuple[str, ...]

    def aggregate(
        self, *, ttl: Duration | None = None, flush: Duration = "1 second", **items: AggregateItem
    ) -> Stream[Any]:
        """One row per key over all its rows so far: an updating stream, whose rows are taken back
        and given anew as results change.

        `aggregate(rows="count(*)", best="max(price)", ttl="1 day")`. Keys that had no row for
        `ttl` (event time where there is one) are taken back and forgotten; ps.FOREVER keeps all.
        Changes are given every `flush`, at checkpoints and at the end.
        """
        from .updating_nodes import aggregated

        return aggregated(self._stream, self.keys, items, ttl, flush, user_location())
