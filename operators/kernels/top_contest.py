"""The contest of a batch's rows with the first n of their keys, by one word per row; compiled.

`contest` lists, per slot that rows may enter, what its first n would be; `tell` says what readers
must hear of it, and `settle` writes it. A row keeps its place (a cell) as long as it is among the
first n, whatever its rank. Slots in which two words are equal are left to the caller, who can tell
such rows apart. The reference is the general path of operators/ranking.py, which sorts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .arguments import own
from .compile import kernel

Numbers = npt.NDArray[np.int64]
Small = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

CONTEST_COUNT_MAX = 16
"""Rows per key that are kept in order by moving them up one by one; also bits of a word."""


@kernel(
    "int64(int64[::1], int64[::1], int64[::1], int64, int64[::1], int64[::1], int32[::1],"
    " int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], bool_[::1])"
)
def contest(
    slots: Numbers,
    words: Numbers,
    times: Numbers,
    count: int,
    best: Numbers,
    filled: Numbers,
    numbers: Small,
    codes: Numbers,
    touched: Numbers,
    now: Numbers,
    source: Numbers,
    sizes: Numbers,
    latest: Numbers,
    tied: Mask,
) -> int:
    """How many slots may change. `codes` says which of them each row is for, -1 for none.

    `source` of a rank: a row of the batch, or -1 - the rank before. `numbers` is -1 throughout, and
    is again afterwards.
    """
    found = 0
    for row in range(len(slots)):
        slot, word = slots[row], words[row]
        had = filled[slot]
        codes[row] = -1
        if had == count and word > best[slot * count + count - 1]:
            continue
        at = np.int64(numbers[slot])
        if at < 0:
            at = np.int64(found)
            found += 1
            numbers[slot] = at
            touched[at] = slot
            sizes[at] = had
            latest[at] = times[row]
            tied[at] = False
            for rank in range(had):
                now[at * count + rank] = best[slot * count + rank]
                source[at * count + rank] = -1 - rank
        codes[row] = at
        latest[at] = max(latest[at], times[row])
        size, first = sizes[at], at * count
        if size == count and word > now[first + count - 1]:
            continue
        place = size
        while place > 0 and now[first + place - 1] > word:
            place -= 1
        if place > 0 and now[first + place - 1] == word:
            tied[at] = True
        if place == count:
            continue
        rank = min(size, count - 1)
        sizes[at] = rank + 1
        while rank > place:
            now[first + rank] = now[first + rank - 1]
            source[first + rank] = source[first + rank - 1]
            rank -= 1
        now[first + place] = word
        source[first + place] = row
    for each in range(found):
        numbers[touched[each]] = -1
    return found


@kernel(
    "int64(int64, bool_, int64, int64[::1], int64[::1], int64[::1], int64[::1], bool_[::1],"
    " int16[::1], int64[::1], int64[::1], int64[::1], int64[::1], int8[::1], int64[::1])"
)
def tell(
    count: int,
    ranked: bool,
    found: int,
    touched: Numbers,
    source: Numbers,
    sizes: Numbers,
    latest: Numbers,
    tied: Mask,
    places: npt.NDArray[np.int16],
    filled: Numbers,
    said_slot: Numbers,
    said_from: Numbers,
    said_rank: Numbers,
    said_weight: npt.NDArray[np.int8],
    said_time: Numbers,
) -> int:
    """The changes of slots that are not tied; how many. Of `said_from` a number below 0 is -1 - the
    cell that holds the row as yet, else it is a row of the batch."""
    said = 0
    for at in range(found):
        if tied[at]:
            continue
        slot, first, base = touched[at], at * count, touched[at] * count
        had, stay, gone = filled[slot], np.int64(0), 0
        for rank in range(sizes[at]):
            if source[first + rank] < 0:
                stay |= np.int64(1) << (-1 - source[first + rank])
        for rank in range(sizes[at]):
            of = source[first + rank]
            if of == -1 - rank or (of < 0 and not ranked):
                continue
            # What is taken back: the row of this rank, or, without ranks, the next that fell out.
            out = rank
            if not ranked:
                while gone < had and (stay >> gone) & 1:
                    gone += 1
                out = gone
                gone += 1
            if out < had:
                said_slot[said], said_rank[said] = slot, out
                said_from[said] = -1 - (base + places[base + out])
                said_weight[said], said_time[said] = -1, latest[at]
                said += 1
            said_slot[said], said_rank[said] = slot, rank
            said_from[said] = of if of >= 0 else -1 - (base + places[base - 1 - of])
            said_weight[said], said_time[said] = 1, latest[at]
            said += 1
    return said


@kernel(
    "int64(int64, int64, int64[::1], int64[::1], int64[::1], int64[::1], bool_[::1],"
    " int64[::1], int16[::1], int64[::1], int64[::1], int64[::1])"
)
def settle(
    count: int,
    found: int,
    touched: Numbers,
    now: Numbers,
    source: Numbers,
    sizes: Numbers,
    tied: Mask,
    best: Numbers,
    places: npt.NDArray[np.int16],
    filled: Numbers,
    kept_cell: Numbers,
    kept_row: Numbers,
) -> int:
    """Write slots that are not tied; `kept_row` of the batch goes to `kept_cell`, so many."""
    spare = np.empty(count, np.int16)
    kept = 0
    for at in range(found):
        if tied[at]:
            continue
        slot, first, base = touched[at], at * count, touched[at] * count
        had, stay, free = filled[slot], np.int64(0), 0
        fresh = had
        for rank in range(had):
            spare[rank] = places[base + rank]
        for rank in range(sizes[at]):
            if source[first + rank] < 0:
                stay |= np.int64(1) << (-1 - source[first + rank])
        for rank in range(sizes[at]):
            of = source[first + rank]
            best[base + rank] = now[first + rank]
            if of < 0:
                places[base + rank] = spare[-1 - of]
                continue
            # A place that has become free, or else one that no row has had.
            while free < had and (stay >> free) & 1:
                free += 1
            if free < had:
                places[base + rank] = spare[free]
                free += 1
            else:
                places[base + rank] = fresh
                fresh += 1
            kept_cell[kept], kept_row[kept] = base + places[base + rank], of
            kept += 1
        filled[slot] = sizes[at]
    return kept


class Said(NamedTuple):
    """Changes, and what to store where."""

    slots: Numbers
    froms: Numbers
    ranks: Numbers
    weights: npt.NDArray[np.int8]
    times: Numbers
    cells: Numbers
    rows: Numbers
    tied_rows: Numbers
    """Rows of slots in which words are equal: nothing was done about them."""


class Contest:
    """The arrays of the kernels, by slot, and the calls."""

    def __init__(self, count: int, ranked: bool) -> None:
        assert 0 < count <= CONTEST_COUNT_MAX
        self._count, self._ranked = count, ranked
        self.best = np.zeros(0, np.int64)
        """The words of each slot's rows, by rank."""
        self.places = np.zeros(0, np.int16)
        """In which of its slot's cells the row of each rank lies."""
        self._numbers = np.zeros(0, np.int32)

    def room(self, slots: int) -> None:
        """Make room for slots below this number."""
        before = len(self._numbers)
        if slots <= before:
            return
        best = np.zeros(slots * self._count, np.int64)
        best[: len(self.best)] = self.best
        places = np.tile(np.arange(self._count, dtype=np.int16), slots)
        places[: len(self.places)] = self.places
        self.best, self.places = best, places
        self._numbers = np.full(slots, -1, np.int32)

    def keep(self, slots: Numbers, room: int) -> None:
        """Forget all others; these are renumbered in this order."""
        count, best, places = self._count, self.best, self.places
        self.best, self.places, self._numbers = best[:0], places[:0], self._numbers[:0]
        self.room(room)
        self.best[: len(slots) * count] = best.reshape(-1, count)[slots].reshape(-1)
        self.places[: len(slots) * count] = places.reshape(-1, count)[slots].reshape(-1)

    def hold(self, slots: Numbers, words: Numbers, times: Numbers, filled: Numbers) -> Said:
        """Let rows contend, and note who is among the first: in `best`, `places`, `filled`."""
        count, rows = self._count, len(slots)
        codes, touched, sizes, latest = (np.empty(rows, np.int64) for _ in range(4))
        now, source = np.empty(rows * count, np.int64), np.empty(rows * count, np.int64)
        tied = np.empty(rows, np.bool_)
        slots, words, times = own(slots), own(words), own(times)
        found = int(
            contest(
                *(slots, words, times, count, self.best, filled, self._numbers),
                *(codes, touched, now, source, sizes, latest, tied),
            )
        )
        # Each rank is taken back and added at most.
        room = 2 * found * count
        said = [np.empty(room, np.int64) for _ in range(4)]
        weights = np.empty(room, np.int8)
        changes = int(
            tell(
                *(count, self._ranked, found, touched, source, sizes, latest, tied),
                *(self.places, filled, said[0], said[1], said[2], weights, said[3]),
            )
        )
        kept = [np.empty(found * count, np.int64) for _ in range(2)]
        stored = int(
            settle(
                *(count, found, touched, now, source, sizes, tied),
                *(self.best, self.places, filled, kept[0], kept[1]),
            )
        )
        open_rows = np.zeros(0, np.int64)
        if tied[:found].any():
            open_rows = np.flatnonzero((codes >= 0) & tied[codes])
        return Said(
            said[0][:changes],
            said[1][:changes],
            said[2][:changes],
            weights[:changes],
            said[3][:changes],
            kept[0][:stored],
            kept[1][:stored],
            open_rows,
        )
