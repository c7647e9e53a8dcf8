"""What of a log lies in which immutable part, what does not yet, and what is cut off: pure.

1. Only parts of a checkpoint that is known to be complete are named again (hazard 15); all other
   rows are pending: they are in memory, and in every checkpoint until one is known to be complete.
2. Rows are counted in appends. A cut covers the rows appended before it, and no later ones.
3. Parts are in the order of age. Only neighbours are merged, and only while no checkpoint that
   merged is undecided: so what is named is named by the newest complete checkpoint or the one
   before it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from penstock.elements.keygroup import KeyGroupRange
from penstock.elements.signals import WATERMARK_MIN

MERGED_PARTS_MIN = 4
"""Fewer neighbours than these are not worth a merge."""
MERGED_BYTES_MAX = 8 * 1024 * 1024
"""What one merge reads at most: it is decoded in memory, beside the rows of the operator."""
FULL_BYTES = MERGED_BYTES_MAX // 2
"""A part of this size stays as it is, until all its rows are cut off: some hundred parts are a few
kilobytes of a manifest, and rewriting them would cost more than the checkpoint itself."""


@dataclass(frozen=True)
class LogPart:
    """Rows of one log in the object `run`: those of key groups [first_group, stop_group) whose time
    is at least `cut_ns`. `whole_groups`, `rows`, `low_ns` and `high_ns` are of the whole object."""

    run: str
    size: int
    crc: int
    operator_id: str
    name: str
    first_group: int
    stop_group: int
    whole_groups: int
    rows: int
    low_ns: int
    high_ns: int
    cut_ns: int = WATERMARK_MIN

    @property
    def groups(self) -> KeyGroupRange:
        """What it holds for us; the object may hold more, which others own."""
        return KeyGroupRange(self.first_group, self.stop_group)

    @property
    def bytes(self) -> int:
        """About how much of the object is ours."""
        return self.size * (self.stop_group - self.first_group) // self.whole_groups + 1

    def clipped(self, groups: KeyGroupRange) -> LogPart | None:
        """What of it belongs to `groups`."""
        first = max(self.first_group, groups.start)
        stop = min(self.stop_group, groups.stop)
        return replace(self, first_group=first, stop_group=stop) if first < stop else None


@dataclass(frozen=True, eq=False)
class LogSeal:
    """A log at a cut of the job: `parts`, and the pending rows of appends [first, appends).

    `merge` are the places of the parts to be written anew as one, oldest first.
    """

    first: int
    appends: int
    parts: tuple[LogPart, ...]
    merge: range


def to_merge(parts: Sequence[LogPart]) -> range:
    """Which neighbours to merge: those that are cheapest per part that it saves.

    None of them holds more than half of the result: so what is rewritten comes to lie in a part
    at least twice as large, and no byte is rewritten more than a few times, however long a log is.
    """
    best, least = range(0), 0.0
    for start in range(len(parts)):
        size = largest = 0
        for at in range(start, len(parts)):
            size += parts[at].bytes
            largest = max(largest, parts[at].bytes)
            if largest >= FULL_BYTES or size > MERGED_BYTES_MAX:
                break
            enough = at - start + 1 >= MERGED_PARTS_MIN and 2 * largest <= size
            if enough and (not best or size / (at - start) < least):
                best, least = range(start, at + 1), size / (at - start)
    return best


class LogHistory:
    """One log of one subtask. Appends are numbered from 0.

    Those from `first` on are pending; those from `kept` on have to stay in memory: a checkpoint
    that was sealed before an earlier one was known to be complete may, once it is complete itself,
    be the only one that is not deleted, and it names no part for them.
    """

    def __init__(
        self,
        parts: Iterable[LogPart] = (),
        choose: Callable[[Sequence[LogPart]], range] = to_merge,
    ) -> None:
        """`choose` says which parts to merge."""
        self.kept = self.first = self.appends = 0
        self._parts = [(part, 0) for part in parts]  # with the appends before its seal
        self._cuts: list[tuple[int, int]] = []  # (appends before it, time); times descend
        self._undecided: list[LogSeal] = []
        self._choose = choose

    def append(self) -> None:
        """Rows have come."""
        self.appends += 1

    def cut(self, before_ns: int) -> None:
        """Rows that are here and older than this are absent from now on."""
        while self._cuts and self._cuts[-1][1] <= before_ns:
            self._cuts.pop()
        if not self._cuts or self._cuts[-1][0] < self.appends:
            self._cuts.append((self.appends, before_ns))

    def cut_of(self, number: int) -> int:
        """Rows of append `number` are absent below this time."""
        # The times descend, so the first cut that covers it is the highest.
        at = bisect_right(self._cuts, number, key=lambda cut: cut[0])
        return self._cuts[at][1] if at < len(self._cuts) else WATERMARK_MIN

    def forget(self, number: int) -> None:
        """Append `number` is the oldest that is kept, and all its rows are cut off."""
        assert number == self.kept < self.appends
        self.kept += 1
        self.first = max(self.first, self.kept)

    def seal(self) -> LogSeal:
        """What a checkpoint names and writes."""
        present = [self._with_cuts(part, upto) for part, upto in self._parts]
        parts = tuple(part for part in present if part.high_ns >= part.cut_ns)
        merge = range(0) if any(s.merge for s in self._undecided) else self._choose(parts)
        sealed = LogSeal(self.first, self.appends, parts, merge)
        self._undecided.append(sealed)
        return sealed

    def confirm(self, sealed: LogSeal, parts: Sequence[LogPart], written: bool) -> None:
        """The checkpoint counts. It names `parts`; `written`: the pending rows are among them.

        Requires: seals are confirmed in their order.
        """
        later = self._undecided.index(sealed) + 1
        self._undecided = self._undecided[later:]
        self._parts = [(part, sealed.appends) for part in parts]
        self.first = max(self.kept, sealed.appends if written else sealed.first)
        self.kept = max(self.kept, min([self.first, *(s.first for s in self._undecided)]))
        self._cuts = [cut for cut in self._cuts if cut[0] >= self.kept]

    def discard(self, sealed: LogSeal) -> None:
        """The checkpoint came to nothing."""
        self._undecided = [other for other in self._undecided if other is not sealed]

    def _with_cuts(self, part: LogPart, upto: int) -> LogPart:
        at = bisect_left(self._cuts, upto, key=lambda cut: cut[0])
        if at == len(self._cuts) or self._cuts[at][1] <= part.cut_ns:
            return part
        return replace(part, cut_ns=self._cuts[at][1])
