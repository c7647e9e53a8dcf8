"""The joins as methods of Stream: a mixin. What they mean is in joining.py and its siblings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from penstock.elements.durations import Duration
from penstock.expressions.expression import ExprLike

from .location import user_location
from .stream_checks import checked_options

if TYPE_CHECKING:
    from .stream import Stream


class StreamJoins:
    """Methods of Stream."""

    def join(
        self,
        other: Stream[Any],
        *,
        on: str | Sequence[str],
        how: str = "inner",
        window: Any = None,
        within: tuple[Duration, Duration] | None = None,
        ttl: Duration | None = None,
        where: ExprLike | None = None,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """Rows of both streams with equal keys, within exactly one of `window`, `within`, `ttl`.

        `within=("-5 min", "1 hour")` bounds the other's event time minus this one's. `where` is a
        further condition on a pair, over the columns of both. With `ttl` outer joins are updating:
        a row without a match is given at once and taken back when it gets one. It shuffles by
        itself: no key_by.
        """
        from .joining import join_streams

        location = user_location()
        options = checked_options(name, parallelism, location)
        bounds = {"window": window, "within": within, "ttl": ttl}
        left = cast("Stream[Any]", self)
        return join_streams(left, other, on, how, bounds, where, location, options)

    def join_asof(
        self,
        other: Stream[Any],
        *,
        on: str | Sequence[str],
        how: str = "left",
        tolerance: Duration | None = None,
        where: ExprLike | None = None,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """Each row with the other stream's newest row of its key that is not younger than it.

        The other stream's rows are versions, by event time: `trades.join_asof(quotes, on="symbol")`
        gives each trade the quote of its moment, once the watermark has passed it. A version older
        than `tolerance` does not count, nor one that fails `where`, a condition over the columns of
        both; no older one takes its place. `how` is left or inner.
        """
        from .joining_versions import join_asof

        location = user_location()
        options = checked_options(name, parallelism, location)
        left = cast("Stream[Any]", self)
        return join_asof(left, other, on, how, tolerance, where, location, options)

    def join_broadcast(
        self,
        table: Stream[Any],
        *,
        on: str | Sequence[str],
        how: str = "inner",
        where: ExprLike | None = None,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """Rows with the matching rows of a small table, which every subtask holds; no shuffle.

        The table may be updating. A row is joined with the table as it was at the row's event
        time, once the watermark has passed it; a table without event time must end, and then holds
        for all times. `how` is inner or left.
        """
        from .joining_versions import join_broadcast

        location = user_location()
        options = checked_options(name, parallelism, location)
        left = cast("Stream[Any]", self)
        return join_broadcast(left, table, on, how, where, location, options)

    def join_lookup(
        self,
        function: Callable[[Any], Any],
        *,
        on: str | Sequence[str],
        returns: Any,
        how: str = "left",
        cache_rows: int = 0,
        cache_ttl: Duration | None = None,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """Rows with what a function says of their keys, such as a database or a service.

        It is called with a batch of distinct keys and gives a frame of the key columns and those
        of `returns` (a row class or a pa.Schema), any number of rows for each. About `cache_rows`
        answers are remembered, for `cache_ttl`. Keys that it raises for follow `on_error`.
        """
        from .joining_lookup import join_lookup

        location = user_location()
        options = checked_options(name, parallelism, location)
        left = cast("Stream[Any]", self)
        cache = (cache_rows, cache_ttl)
        return join_lookup(left, function, on, returns, how, cache, location, options)
