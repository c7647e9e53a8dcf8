"""The joins as methods of Stream: a mixin. What they mean is in joining.py and its siblings."""

from __future__ import annotations

from collections.abc import Sequence
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
