"""AsOfJoinProcessor: each left row with the version of its key that held at its event time.

A right row is the version of its key from its own event time on, until the next one. A left row
waits until the watermark has passed it and goes on with the newest version that is not younger,
`_time` being its own. Of versions of one instant the same one always wins, by content and not by
arrival. Rows at or behind the watermark are late. Of versions that the watermark has passed only
the newest of each key is kept, and with a tolerance only for so long. A condition is asked of a
row and the version that held: where it fails the row has none, not an older one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import hash_arrays, refuse_unhashable
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX

from .event_times import times_of
from .join_condition import JoinCondition
from .join_rows import Mask
from .join_sides import (
    LATE_RIGHT,
    LEFT,
    RIGHT,
    Numbers,
    Results,
    Side,
    checked_how,
    join_schema,
    key_hashes,
    without_null_keys,
)
from .key_versions import KeyVersions
from .processor import LATE, MAIN, Processor, ProcessorContext
from .waiting_rows import WaitingRows

FORGET_STEPS = 16
"""Old versions are looked for so often per tolerance; until then they match nothing."""


class AsOfJoinProcessor(Processor):
    """Two ports, LEFT and RIGHT, routed by the same keys. `tolerance_ns` None: any age."""

    def __init__(
        self,
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
        tolerance_ns: int | None = None,
        who: str = "join_asof",
        location: str = "",
        *,
        condition: JoinCondition | None = None,
    ) -> None:
        self._condition = condition
        self._how = checked_how(how, who, location)
        if self._how not in ("inner", "left"):
            raise PlanError(f"{who}: how={how!r}; there are inner and left  {location}".rstrip())
        if not keys:
            raise PlanError(f"{who}: a join needs at least one key  {location}".rstrip())
        for side, schema in (("left", left), ("right", right)):
            if TIME_COLUMN not in schema.names:
                raise PlanError(f"{who}: the {side} side has no event time  {location}".rstrip())
        self._keys = tuple(keys)
        self._in = (left, right)
        self._tolerance_ns = tolerance_ns
        self.out_schema = join_schema(left, right, keys, self._how, who, location)
        sides = (Side(LEFT, left, self._keys), Side(RIGHT, right, self._keys))
        self._results = Results(*sides, self.out_schema, self._how)
        self._ordering = [field.name for field in right if _orders(field)]

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Results, and the late rows of either side."""
        return {MAIN: self.out_schema, LATE: self._in[LEFT], LATE_RIGHT: self._in[RIGHT]}

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        if self._condition is not None:
            self._condition.open(ctx)
        left, right = (
            WaitingRows(name, self._in[port], self._keys, ctx.state)
            for port, name in enumerate(("left", "right"))
        )
        self._waiting = (left, right)
        self._versions = KeyVersions("versions", self._in[RIGHT], self._keys, ctx.state)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Bring what changed into state."""
        for waiting in self._waiting:
            waiting.store()
        self._versions.store()

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Let rows wait for their time; late ones and those without a key never will."""
        late = times_of(batch) <= self._ctx.watermark
        if late.any():
            rows = batch.filter(pa.array(late))
            self._ctx.count("late", rows.num_rows)
            self._ctx.collect(rows, LATE if port == LEFT else LATE_RIGHT)
            batch = batch.filter(pa.array(~late))
        usable = without_null_keys(batch, self._keys)
        if not usable.all():
            if port == LEFT and self._how == "left":
                alone = batch.filter(pa.array(~usable))
                self._ctx.collect(self._results.alone(alone, LEFT, times_of(alone)))
            batch = batch.filter(pa.array(usable))
        self._waiting[port].add(batch)

    def on_watermark(self, watermark: int) -> None:
        """Join the rows whose time has come, and forget versions that nobody can ask for."""
        left, right = (waiting.due(watermark) for waiting in self._waiting)
        if left.num_rows or right.num_rows:
            self._join(left, right)
        if self._tolerance_ns is not None and watermark != WATERMARK_MAX:
            step_ns = self._tolerance_ns // FORGET_STEPS
            self._versions.forget(watermark - self._tolerance_ns, step_ns)

    def _join(self, left: pa.RecordBatch, right: pa.RecordBatch) -> None:
        versions = self._versions
        new_slots = versions.slots(right, key_hashes(right, self._keys))
        asked = versions.find(left, key_hashes(left, self._keys))
        # Stretches of one key in the order of time, versions before the rows of their instant.
        slots = np.concatenate([new_slots, asked])
        times = np.concatenate([times_of(right), times_of(left)])
        is_left = np.arange(len(slots)) >= len(new_slots)
        order = np.lexsort((self._content(right, len(left)), is_left, times, slots))
        of_right = np.maximum.accumulate(np.where(is_left[order], -1, np.arange(len(order))))
        if left.num_rows:
            at = np.flatnonzero(is_left[order])
            rows, newest = order[at] - right.num_rows, of_right[at]
            same = (newest >= 0) & (slots[order[newest]] == slots[order[at]])
            from_right = np.where(same, order[newest], -1)
            self._give(left, right, rows, asked[rows], from_right)
        if right.num_rows:
            by_key = order[~is_left[order]]
            last = np.ones(len(by_key), np.bool_)
            last[:-1] = new_slots[by_key[1:]] != new_slots[by_key[:-1]]
            rows = by_key[last]
            versions.write(new_slots[rows], right.take(pa.array(rows)))

    def _give(
        self,
        left: pa.RecordBatch,
        right: pa.RecordBatch,
        rows: Numbers,
        slots: Numbers,
        from_right: Numbers,
    ) -> None:
        """Left `rows` with the right row `from_right`, else with the version of their slot."""
        order = np.argsort(times_of(left)[rows], kind="stable")
        rows, slots, from_right = rows[order], slots[order], from_right[order]
        elder = (from_right < 0) & (slots >= 0) & self._versions.known(slots)
        kept_slots, which = np.unique(slots[elder], return_inverse=True)
        candidates = pa.concat_batches([right, self._versions.take(kept_slots)])
        index = from_right.copy()
        index[elder] = right.num_rows + which
        if self._tolerance_ns is not None and candidates.num_rows:
            # A difference of times can exceed 64 bits only where one of them is no real time.
            age = times_of(left)[rows] - times_of(candidates)[index]
            index[age > self._tolerance_ns] = -1
        found = index >= 0
        if self._condition is not None and found.any():
            at = np.flatnonzero(found)
            true = self._pairs(self._condition, left, candidates, rows[at], index[at])
            index[at[~true]] = -1
            found = index >= 0
        if self._how == "inner":
            rows, index, found = rows[found], index[found], found[found]
        if not len(rows):
            return
        mine = left.take(pa.array(rows))
        nullable = pa.schema([field.with_nullable(True) for field in candidates.schema])
        loose = pa.RecordBatch.from_arrays(candidates.columns, schema=nullable)
        theirs = loose.take(pa.array(index, mask=~found))
        self._ctx.collect(self._results.beside(mine, theirs, times_of(mine)))

    @staticmethod
    def _pairs(
        condition: JoinCondition,
        left: pa.RecordBatch,
        right: pa.RecordBatch,
        rows: Numbers,
        versions: Numbers,
    ) -> Mask:
        """Whether row `rows[i]` of `left` and row `versions[i]` of `right` are a pair."""
        mine = left.select(list(condition.reads_left)).take(pa.array(rows))
        if not condition.right:
            return condition.holds(mine, mine)
        return condition.holds(mine, right.select(list(condition.right)).take(pa.array(versions)))

    def _content(self, right: pa.RecordBatch, lefts: int) -> Numbers:
        """A fixed order of versions of one instant."""
        columns = [right.column(name) for name in self._ordering]
        ranked = hash_arrays(columns, right.num_rows).view(np.int64)
        return np.concatenate([ranked, np.zeros(lefts, np.int64)])


def _orders(field: pa.Field) -> bool:
    try:
        refuse_unhashable(field.type)
    except (TypeError, PlanError):
        return False
    return bool(field.name != TIME_COLUMN)
