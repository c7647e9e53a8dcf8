"""What KeyedStream, WindowedStream and Stream can do beyond aggregates and joins: their methods.

Each class is a mixin of the stream it is named after; nodes are in analytics.py and its siblings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from penstock.elements.changelog import is_updating
from penstock.elements.durations import Duration
from penstock.elements.signals import TIME_COLUMN
from penstock.expressions.expression import ExprLike

from .graph import Port
from .location import user_location
from .stream_checks import checked_options

if TYPE_CHECKING:
    from .analytics import By
    from .graph import Logic
    from .keyed_stream import KeyedStream
    from .stream import Stream


class KeyedAnalytics:
    """Methods of KeyedStream."""

    _stream: Stream[Any]
    keys: tuple[str, ...]

    def top(
        self,
        count: int,
        *,
        by: By,
        rank: str | None = None,
        ttl: Duration | None = None,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """The first `count` rows of each key so far: an updating stream.

        `by="price desc, bidder"`: ties go to the earlier event time, then by content. `rank` names
        a column that counts from 1. With `ttl` keys that long without a row are forgotten. Of an
        updating stream all rows are kept, for one may come up when others go; ties go by content.
        """
        from .analytics import TopLogic, checked_count, checked_ttl
        from .schema_check import check_new_name, plan_error

        location = user_location()
        checked_count(count, "top", location)
        if rank is not None and not isinstance(rank, str):
            raise plan_error("top", f"rank={rank!r} is no name of a column", location)
        if rank is not None:
            check_new_name(rank, "top", location)
        ttl_ns = checked_ttl(ttl, self._stream._schema, "top", location)
        functions = self._stream._pipeline.functions
        logic = TopLogic(self.keys, by, count, rank, ttl_ns, functions, location)
        return _keyed(self, logic, location, name, parallelism)

    def deduplicate(
        self,
        *,
        keep: Literal["first", "last"] = "first",
        order: Literal["event_time", "arrival"] | None = None,
        ttl: Duration | None = None,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """One row of each key: the first for good, or the last so far as an updating stream.

        `order` is "event_time" where the stream has it, else "arrival", which may differ from run
        to run. The first by event time is given once the watermark has passed it. After `ttl` a key
        may be given again.
        """
        from .analytics import FirstLogic, TopLogic, checked_ttl
        from .schema_check import plan_error

        location, who = user_location(), "deduplicate"
        stream = self._stream
        if is_updating(stream._schema):
            raise plan_error(
                who,
                "the stream is updating: its rows are taken back, so none is the first for good",
                location,
                'One row of each key by an order:   key_by(...).top(1, by="price desc, bidder")',
                'One row of what each key holds:    key_by(...).aggregate(price="max(price)", ...)',
            )
        timed = TIME_COLUMN in stream._schema.names
        order = order or ("event_time" if timed else "arrival")
        if keep not in ("first", "last") or order not in ("event_time", "arrival"):
            raise plan_error(
                who,
                f"keep={keep!r}, order={order!r}",
                location,
                'There are keep="first" and "last", order="event_time" and "arrival".',
            )
        if order == "event_time":
            from .keyed_stream import require_event_time

            require_event_time(stream, who, location)
        ttl_ns = checked_ttl(ttl, stream._schema, who, location)
        logic: Logic
        if keep == "first":
            logic = FirstLogic(self.keys, order == "event_time", ttl_ns)
        else:
            by = f'"{TIME_COLUMN}" desc' if order == "event_time" else None
            functions = stream._pipeline.functions
            logic = TopLogic(self.keys, by, 1, None, ttl_ns, functions, location, who)
        return _keyed(self, logic, location, name, parallelism)

    def over(self, *, preceding: int | None = None) -> OverStream:
        """Each row with what the rows of its key up to it say, in event-time order.

        `over().with_columns(total="sum(amount)")` looks at all rows so far, `over(preceding=9)` at
        this row and the nine before it, as ROWS BETWEEN 9 PRECEDING AND CURRENT ROW.
        """
        from penstock.operators.over_items import ROWS_AWAY_MAX

        from .keyed_stream import require_event_time
        from .schema_check import plan_error

        location = user_location()
        require_event_time(self._stream, "over", location)
        whole = isinstance(preceding, int) and not isinstance(preceding, bool)
        if preceding is not None and not (whole and 0 <= preceding <= ROWS_AWAY_MAX):
            raise plan_error(
                "over", f"preceding={preceding!r} is not 0 to {ROWS_AWAY_MAX} rows", location
            )
        return OverStream(self, preceding)

    def match(
        self,
        pattern: str,
        *,
        within: Duration,
        define: Mapping[str, ExprLike],
        measures: Mapping[str, str],
        skip: Literal["past last row", "to next row"] = "past last row",
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """One row per stretch of a key's rows that is like `pattern`, in event-time order.

        `match("start down+ up", within="1 hour", define={"down": "price < lag(price)", ...},
        measures={"low": "min(down.price)"})`. Steps follow each other directly; `...` lets any rows
        lie between, `!x` any that are not x; `? + * {2,4}` repeat a step, as often as possible.
        Conditions see the row, what came before it in its key, and the rows matched before it:
        `price > avg(down.price)`; `last(down.price)` is null as long as `down` has none.
        Results: the keys, `match_start`, `match_end`, the measures. Late rows: `.late`.
        """
        from .keyed_stream import require_event_time
        from .matching import match_logic

        location = user_location()
        require_event_time(self._stream, "match", location)
        functions = self._stream._pipeline.functions
        logic = match_logic(self.keys, pattern, within, define, measures, skip, functions, location)
        return _keyed(self, logic, location, name, parallelism)

    def limit_rate(
        self,
        count: int,
        *,
        per: Duration,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """At most `count` rows per key in each `per` of event time; the rest: `.excess`.

        Spans are aligned as tumbling windows are; the earliest rows count. They are given once the
        watermark has passed them; late rows go to `.late`.
        """
        from .analytics import RateLimitLogic, checked_count, checked_span
        from .keyed_stream import require_event_time

        location = user_location()
        checked_count(count, "limit_rate", location, most=None)
        span_ns = checked_span(per, "limit_rate(per=)", location)
        require_event_time(self._stream, "limit_rate", location)
        logic = RateLimitLogic(self.keys, count, span_ns, str(per))
        return _keyed(self, logic, location, name, parallelism)

    def sample(self, fraction: float, *, seed: int = 0) -> Stream[Any]:
        """All rows of about `fraction` of the keys, the same keys in every run with one `seed`."""
        from .analytics import SampleLogic
        from .schema_check import plan_error

        location = user_location()
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
            raise plan_error("sample", f"{fraction!r} is not a number from 0 to 1", location)
        if not 0 <= fraction <= 1:
            raise plan_error("sample", f"{fraction!r} is not from 0 to 1", location)
        if not self.keys:
            raise plan_error("sample", "there is no key to choose by", location)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise plan_error("sample", f"seed={seed!r} is not a whole number of 64 bits", location)
        logic = SampleLogic(self.keys, float(fraction), seed)
        return self._stream._made(logic, [Port(self._stream._taps)], location)


class OverStream:
    """Rows of a key in event-time order, waiting for with_columns()."""

    def __init__(self, keyed: Any, preceding: int | None) -> None:
        self._keyed = keyed
        self._preceding = preceding

    def with_columns(self, **items: ExprLike) -> Stream[Any]:
        """Add columns to each row: expressions over it and over the rows of its key.

        `with_columns(step="price - lag(price)", mean="avg(price)")`. There are lag(x, n),
        lead(x, n), row_number(), count, sum, min, max, avg, first and last. A row is given once the
        watermark has passed it; with lead, once the rows behind it are known. Late rows: `.late`.
        """
        from .analytics import OverLogic
        from .schema_check import check_new_name

        location = user_location()
        for column in items:
            check_new_name(column, "over", location)
        keyed = self._keyed
        functions = keyed._stream._pipeline.functions
        listed = tuple(items.items())
        logic = OverLogic(keyed.keys, listed, self._preceding, functions, location)
        return _keyed(keyed, logic, location)


class WindowAnalytics:
    """Methods of WindowedStream."""

    _keyed: KeyedStream[Any]
    _window: Any
    _lateness_ns: int
    _early_ns: int | None
    _refines: bool

    def top(self, count: int, *, by: By, rank: str | None = None) -> Stream[Any]:
        """The first `count` rows per key and window, with `window_start` and `window_end`.

        `by="price desc, bidder"`: ties go to the earlier event time, then by content. `rank` names
        a column that counts from 1. Rows that came too late: `.late`.
        """
        from .analytics import checked_count

        location = user_location()
        checked_count(count, "top", location, most=None)
        ranks = {} if rank is None else {"row_number": rank}
        return self._ranked("top", count, by, ranks, location)

    def rank(
        self,
        *,
        by: By,
        row_number: str | None = None,
        rank: str | None = None,
        dense_rank: str | None = None,
    ) -> Stream[Any]:
        """All rows per key and window with their ranks in columns of these names, as in SQL.

        `row_number` counts every row, breaking ties by event time and content; `rank` leaves gaps
        behind rows that are equal under `by`, `dense_rank` none.
        """
        names = {"row_number": row_number, "rank": rank, "dense_rank": dense_rank}
        ranks = {kind: name for kind, name in names.items() if name is not None}
        location = user_location()
        if not ranks:
            from .schema_check import plan_error

            advice = 'Write  rank(by=..., rank="r") ; without any there is  sort(by=...) .'
            raise plan_error("rank", "no rank is named", location, advice)
        return self._ranked("rank", None, by, ranks, location)

    def sort(self, *, by: By) -> Stream[Any]:
        """All rows per key and window in order, one key behind the other.

        Rows keep this order as long as they stay in one subtask; a column that says it comes from
        `rank(by=..., row_number="n")`.
        """
        return self._ranked("sort", None, by, {}, user_location())

    def sample(self, count: int, *, seed: int = 0) -> Stream[Any]:
        """`count` rows per key and window, chosen by the hash of their content: the same in every
        run with one `seed`. Rows equal in all columns are chosen together as far as they fit."""
        from penstock.expressions.expression import expr

        from .analytics import checked_count
        from .graph import user_columns

        location = user_location()
        checked_count(count, "sample", location, most=None)
        columns = user_columns(self._keyed._stream._schema)
        texts = ", '|', ".join(f"coalesce(cast(\"{name}\" as varchar), '')" for name in columns)
        by = expr(f"md5(concat($seed, '|', {texts}))", seed=str(seed))
        return self._ranked("sample", count, by, {}, location)

    def _ranked(
        self, verb: str, count: int | None, by: By, ranks: dict[Any, str], location: str
    ) -> Stream[Any]:
        from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble

        from .analytics import WindowRankLogic
        from .schema_check import check_new_name, plan_error

        window = self._window
        if not isinstance(window, (Tumble, Hop, Cumulate)):
            raise plan_error(
                verb,
                f"there is none over {window.text}",
                location,
                "Its windows are ps.tumble, ps.hop and ps.cumulate.",
            )
        if self._lateness_ns or self._early_ns is not None or self._refines:
            raise plan_error(
                verb,
                "allowed_lateness=, early= and refine= correct results, and rows once given stay",
                location,
                "Leave it out and read  .late , or allow more disorder at the source.",
            )
        for name in ranks.values():
            check_new_name(name, verb, location)
        keyed = self._keyed
        named = tuple((name, kind) for kind, name in ranks.items())
        functions = keyed._stream._pipeline.functions
        logic = WindowRankLogic(window, keyed.keys, by, count, named, functions, location, verb)
        return _keyed(keyed, logic, location)


class StreamAnalytics:
    """Methods of Stream."""

    def map_async(
        self,
        function: Callable[[Any], Any],
        *,
        returns: Any = None,
        ordered: bool = True,
        concurrency: int = 100,
        timeout: Duration | None = None,
        retries: int = 0,
        batch: int | None = None,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """One row in, one row out, by calls that take their time: `async def`, or a plain function
        in threads.

        Up to `concurrency` calls run at once in a subtask; `timeout` is that of one try, `retries`
        how many follow. With `batch=n` it is given up to n rows as a frame, as in map_batches. Rows
        in flight are in the checkpoint and called for again after a restart: calls happen at least
        once, results exactly once. Unordered rows still do not overtake watermarks.
        """
        from .async_nodes import async_logic

        location = user_location()
        options = checked_options(name, parallelism, location)
        logic = async_logic(
            function, returns, ordered, concurrency, timeout, retries, batch, location
        )
        made: Stream[Any] = self._then(logic, location, options)  # type: ignore[attr-defined]
        return made

    @property
    def excess(self) -> Stream[Any]:
        """Rows beyond the limit of the limit_rate before."""
        from penstock.operators.rate_limit import EXCESS

        side: Stream[Any] = self._side(EXCESS, user_location())  # type: ignore[attr-defined]
        return side

    def top(
        self, count: int, *, by: By, rank: str | None = None, name: str | None = None
    ) -> Stream[Any]:
        """The first `count` of all rows so far, an updating stream in one subtask. See key_by()."""
        from .keyed_stream import KeyedStream

        keyed: Any = KeyedStream(self, ())  # type: ignore[arg-type]
        made: Stream[Any] = keyed.top(count, by=by, rank=rank, name=name)
        return made


def _keyed(
    keyed: Any,
    logic: Logic,
    location: str,
    name: str | None = None,
    parallelism: int | None = None,
) -> Stream[Any]:
    options = checked_options(name, parallelism, location)
    keys = keyed.keys
    port = Port(keyed._stream._taps, "hash" if keys else "none", keys)
    made: Stream[Any] = keyed._stream._made(logic, [port], location, options)
    return made
