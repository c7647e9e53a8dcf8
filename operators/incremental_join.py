"""IncrementalJoinProcessor: an unbounded join of two streams, either of which may be updating.

1. Results are given as soon as they are known. A row without a match is given at once, filled up
   with nulls, and taken back when its first match comes; so all but inner and semi joins of two
   append-only streams are updating.
2. With a time to live two rows match if their times differ by at most that; without event time,
   if the older one came at most that long ago. What is forgotten leaves its results as they are.
3. A row of a stream that is not updating and late on arrival goes to LATE or LATE_RIGHT. Changes
   of an updating stream are never late; one that takes back a forgotten row has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import is_updating, weights_of, with_change, without_change
from penstock.elements.errors import PlanError
from penstock.elements.hash import Hashes
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX

from .event_times import times_of
from .found_again import UNMATCHED, refuse_unfindable
from .incremental_results import Changes, uncancelled
from .join_condition import JoinCondition
from .join_paired_rows import PairedRows
from .join_rows import JoinRows, Mask, Numbers, Pairs
from .join_sides import (
    LATE_RIGHT,
    LEFT,
    RIGHT,
    Side,
    checked_how,
    join_schema,
    key_hashes,
    without_null_keys,
)
from .processor import LATE, MAIN, Processor, ProcessorContext

FOREVER_NS = 2**62
"""A time to live this long has no end."""
EXPIRY_STEPS = 16
"""Expired rows are looked for so often per time to live; until then they match nothing."""


class IncrementalJoinProcessor(Processor):
    """Two ports, LEFT and RIGHT, routed by the same keys. `ttl_ns` FOREVER_NS forgets nothing."""

    keeps_by_key_only = True

    given_alone: ClassVar[dict[str, tuple[bool, bool]]] = {
        "inner": (False, False),
        "left": (True, False),
        "right": (False, True),
        "full": (True, True),
        "semi": (True, False),
        "anti": (True, False),
    }

    def __init__(
        self,
        ttl_ns: int,
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
        condition: JoinCondition | None = None,
        who: str = "join",
        location: str = "",
    ) -> None:
        self._how = checked_how(how, who, location)
        if not keys:
            raise PlanError(f"{who}: a join needs at least one key  {location}".rstrip())
        self._in = (left, right)
        self._keys = tuple(keys)
        self._timed = TIME_COLUMN in left.names and TIME_COLUMN in right.names
        if not self._timed and TIME_COLUMN in (*left.names, *right.names):
            raise PlanError(f"{who}: only one side has event time  {location}".rstrip())
        self._ttl_ns = min(ttl_ns, FOREVER_NS)
        self._updating = (is_updating(left), is_updating(right))
        for schema in self._in:
            if is_updating(schema):
                refuse_unfindable(schema, who, location)
        self._alone = self.given_alone[self._how]
        self._append = not any(self._updating) and self._how in ("inner", "semi")
        self._pairs = self._how not in ("semi", "anti")
        plain = join_schema(
            without_change(left), without_change(right), keys, self._how, who, location
        )
        self.out_schema = plain if self._append else with_change(plain)
        self._condition = condition
        # A left row of two append-only streams that has matched once is settled for good.
        self._settles = not self._pairs and not any(self._updating)

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Results, and the late rows of either side."""
        return {MAIN: self.out_schema, LATE: self._in[LEFT], LATE_RIGHT: self._in[RIGHT]}

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        self._paired: PairedRows | None = None
        if self._how == "inner" and self._append:
            sides = (
                Side(LEFT, self._in[LEFT], self._keys),
                Side(RIGHT, self._in[RIGHT], self._keys),
            )
            self._paired = PairedRows(
                sides, self.out_schema, ctx.state, self._condition, bounded=self._bounded
            )
        else:
            left, right = (
                JoinRows(
                    name,
                    self._in[port],
                    self._keys,
                    ctx.state,
                    counted=self._alone[port],
                    whole=self._updating[port],
                )
                for port, name in enumerate(("left", "right"))
            )
            self._sides = (left, right)
        self._looked = -(2**63)
        self._now_ns = -(2**63)
        if self._condition is not None:
            self._condition.open(ctx)

    @property
    def rows(self) -> list[int]:
        """Rows that are kept, per side."""
        return [side.rows for side in (self._paired.sides if self._paired else self._sides)]

    @property
    def _held(self) -> int:
        if self._paired is not None:
            return self._paired.held
        return sum(side.rows for side in self._sides)

    # Rows -------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Match with what the other side has, give what follows, keep or forget the rows."""
        times = self._times(batch)
        if self._paired is not None:
            self._keep_and_pair(self._paired, batch, times, port)
            return
        weights = weights_of(batch).astype(np.int64)
        keep = self._on_time(batch, times, port)
        if keep is not None:
            batch, weights, times = batch.filter(pa.array(keep)), weights[keep], times[keep]
        batch = batch.select([f.name for f in self._sides[port].schema])
        changes = Changes(self._keys, self._in, self.out_schema, self._pairs)
        usable = without_null_keys(batch, self._keys)
        if not usable.all():
            if self._alone[port] and self._how != "semi":
                alone = ~usable
                changes.alone(
                    batch.filter(pa.array(alone)), port, weights[alone], self._stamps(times[alone])
                )
            batch, weights, times = batch.filter(pa.array(usable)), weights[usable], times[usable]
        if batch.num_rows:
            self._take(batch, weights, times, port, changes)
        self._give(changes)

    def _keep_and_pair(
        self, paired: PairedRows, batch: pa.RecordBatch, times: Numbers, port: int
    ) -> None:
        """An inner join of rows that are never taken back: keep them, and give their pairs."""
        for wanted in (self._on_time, self._with_keys):
            some = wanted(batch, times, port)
            if some is not None:
                batch, times = batch.filter(pa.array(some)), times[some]
        if not batch.num_rows:
            return
        hashes = key_hashes(batch, self._keys)
        between = self._range(times) if self._bounded else None
        for index, slots in paired.take(batch, times, hashes, port, between):
            later = (
                np.maximum(*paired.pair_times(times, index, slots, port)) if self._timed else None
            )
            self._ctx.collect(paired.results(batch, later, index, slots, port))

    def _take(
        self,
        batch: pa.RecordBatch,
        weights: Numbers,
        times: Numbers,
        port: int,
        changes: Changes,
    ) -> None:
        mine = self._sides[port]
        hashes = key_hashes(batch, self._keys)
        gone = np.full(batch.num_rows, -1, np.int64)
        kept_at = times
        if self._updating[port] and (weights < 0).any():
            left = np.flatnonzero(uncancelled(batch, weights))
            rows = pa.array(left)
            batch, weights, times, hashes = (
                batch.take(rows),
                weights[left],
                times[left],
                hashes[left],
            )
            gone, known = self._find_gone(batch, weights, port)
            if not known.all():
                rows = pa.array(known)
                batch, gone = batch.filter(rows), gone[known]
                weights, times, hashes = weights[known], times[known], hashes[known]
            # A row is taken back from the matches of the time at which it was added.
            kept_at = np.where(gone >= 0, mine.times[gone], times) if mine.capacity else times
        counts = np.zeros(batch.num_rows, np.int64)
        settled = []
        for index, slots in self._matches(batch, hashes, kept_at, port):
            if self._alone[port]:
                counts += np.bincount(index, minlength=len(counts))
            self._pair(batch, weights, times, index, slots, port, changes)
            if self._alone[1 - port]:
                self._count_for_others(weights, times, index, slots, port, changes)
                settled.append(slots)
        if self._settles and settled and port == RIGHT:
            # Not while the chains that hold them are being followed.
            self._sides[LEFT].remove(np.unique(np.concatenate(settled)))
        self._settle(batch, weights, times, hashes, gone, counts, port, changes)

    def _find_gone(
        self, batch: pa.RecordBatch, weights: Numbers, port: int
    ) -> tuple[Numbers, Mask]:
        """(slot of each row taken back, else -1; which rows are of use)."""
        gone = np.full(batch.num_rows, -1, np.int64)
        back = np.flatnonzero(weights < 0)
        gone[back] = self._sides[port].find(batch.take(pa.array(back)))
        known = (weights > 0) | (gone >= 0)
        if not known.all():
            self._ctx.count(UNMATCHED, int((~known).sum()))
        return gone, known

    def _matches(
        self, batch: pa.RecordBatch, hashes: Hashes, times: Numbers, port: int
    ) -> Iterator[Pairs]:
        """(row of `batch`, slot of the other side) of rows that match, condition included."""
        other = self._sides[1 - port]
        low, high = self._range(times)
        for index, slots in other.probe(batch, hashes, low, high):
            if self._condition is not None:
                true = self._condition.of_slots(batch, index, other, slots, port)
                index, slots = index[true], slots[true]
            if len(index):
                yield index, slots

    # What follows from matches ----------------------------------------------------------------

    def _pair(
        self,
        batch: pa.RecordBatch,
        weights: Numbers,
        times: Numbers,
        index: Numbers,
        slots: Numbers,
        port: int,
        changes: Changes,
    ) -> None:
        if not self._pairs:
            return
        other = self._sides[1 - port]
        mine, theirs = batch.take(pa.array(index)), other.take(slots)
        sides = (mine, theirs) if port == LEFT else (theirs, mine)
        stamps = np.maximum(times[index], other.times[slots]) if self._timed else None
        changes.pairs(*sides, weights[index], stamps)

    def _count_for_others(
        self,
        weights: Numbers,
        times: Numbers,
        index: Numbers,
        slots: Numbers,
        port: int,
        changes: Changes,
    ) -> None:
        """Rows of the other side that got their first match, or lost their last one."""
        other = self._sides[1 - port]
        touched, which = np.unique(slots, return_inverse=True)
        before = other.matches[touched]
        after = before.copy()
        np.add.at(after, which, weights[index])
        found, lost = (before == 0) & (after > 0), (before > 0) & (after == 0)
        moved = np.flatnonzero(found | lost)
        if len(moved):
            stamps = other.times[touched]
            np.maximum.at(stamps, which, times[index])
            # Semi joins give what has a match; all others give what has none.
            sign = np.where(found, 1, -1) if self._how == "semi" else np.where(found, -1, 1)
            rows = other.take(touched[moved])
            changes.alone(rows, 1 - port, sign[moved], self._stamps(stamps[moved]))
        other.note_matches(touched, after)

    def _settle(
        self,
        batch: pa.RecordBatch,
        weights: Numbers,
        times: Numbers,
        hashes: Hashes,
        gone: Numbers,
        counts: Numbers,
        port: int,
        changes: Changes,
    ) -> None:
        """Give the rows that stand alone, and remember or forget the rows themselves."""
        mine = self._sides[port]
        new = weights > 0
        if self._alone[port]:
            if self._updating[port]:
                counts = np.where(new, counts, mine.matches[gone] if mine.capacity else 0)
            given = counts > 0 if self._how == "semi" else counts == 0
            if given.any():
                rows = batch.filter(pa.array(given))
                changes.alone(rows, port, weights[given], self._stamps(times[given]))
            if self._settles:
                new = new & (counts == 0)
        mine.remove(gone[gone >= 0])
        if not new.all():
            batch = batch.filter(pa.array(new))
            times, hashes, counts = times[new], hashes[new], counts[new]
        if batch.num_rows:
            slots = mine.insert(batch, times, hashes)
            if self._alone[port]:
                mine.matches[slots] = counts

    def _give(self, changes: Changes) -> None:
        for made in changes.batches(self._append):
            self._ctx.collect(made)

    # Time -------------------------------------------------------------------------------------

    @property
    def _bounded(self) -> bool:
        return self._ttl_ns < FOREVER_NS

    def _times(self, batch: pa.RecordBatch) -> Numbers:
        if self._timed:
            return times_of(batch)
        return np.full(batch.num_rows, self._now() if self._bounded else 0, np.int64)

    def _now(self) -> int:
        """The time by the clock; never back where rows are forgotten for good by their time."""
        now_ns = self._ctx.clock.wall_ns()
        if self._paired is not None:
            now_ns = self._now_ns = max(self._now_ns, now_ns)
        return now_ns

    def _stamps(self, times: Numbers) -> Numbers | None:
        return times if self._timed else None

    def _on_time(self, batch: pa.RecordBatch, times: Numbers, port: int) -> Mask | None:
        """Which rows may be joined; late ones are handed to their output. None: all."""
        if not self._timed or not self._bounded or self._updating[port]:
            return None
        late = times <= self._ctx.watermark
        if not late.any():
            return None
        rows = batch.filter(pa.array(late))
        self._ctx.count("late", rows.num_rows)
        self._ctx.collect(rows, LATE if port == LEFT else LATE_RIGHT)
        return ~late

    def _with_keys(self, batch: pa.RecordBatch, times: Numbers, port: int) -> Mask | None:
        if not any(batch.column(name).null_count for name in self._keys):
            return None
        return without_null_keys(batch, self._keys)

    def _range(self, times: Numbers) -> tuple[Numbers, Numbers]:
        """The times, inclusive, of rows that may match."""
        if not self._bounded:
            return np.full_like(times, -WATERMARK_MAX), np.full_like(times, WATERMARK_MAX)
        if self._timed:
            return times - self._ttl_ns, times + self._ttl_ns
        oldest = self._now() - self._ttl_ns
        return np.full_like(times, oldest), np.full_like(times, WATERMARK_MAX)

    def on_watermark(self, watermark: int) -> None:
        """Forget what no row in time can match."""
        if self._timed and self._bounded:
            at_end = watermark == WATERMARK_MAX
            self._forget(WATERMARK_MAX if at_end else watermark - self._ttl_ns + 1)

    def next_wakeup_ns(self) -> int | None:
        """When the next rows may have lived their time, without event time."""
        if self._timed or not self._bounded or not self._held:
            return None
        return max(0, self._looked) + self._ttl_ns + self._step_ns

    def on_processing_time(self, now_ns: int) -> None:
        """Forget what has lived its time, without event time."""
        if not self._timed and self._bounded:
            self._now_ns = max(self._now_ns, now_ns)
            self._forget(now_ns - self._ttl_ns)

    @property
    def _step_ns(self) -> int:
        return self._ttl_ns // EXPIRY_STEPS + 1

    def _forget(self, before: int) -> None:
        if before < self._looked + self._step_ns and before != WATERMARK_MAX:
            return
        self._looked = before
        if self._paired is not None:
            self._paired.cut((before, before))
            return
        for side in self._sides:
            side.remove(side.older(before))

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Bring what changed into state."""
        for kept in [self._paired] if self._paired else self._sides:
            kept.store()
