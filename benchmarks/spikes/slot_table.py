"""R1: does sealing at every barrier evict the hot state? A running count, rows/s in 50 ms bins.

    python benchmarks/spikes/slot_table.py [--keys 1000000] [--seconds 5]

Three ways to seal once a second, same rows, same index (penstock.state.slot_index), counts in
NumPy, each row emitting its key's new count:

* swap   the memtable is swapped away and becomes a sorted run; the first touch of a key afterwards
         reads the run through a bucket index. Merging runs is not charged, so this is a best case.
* slices the table stays; a dirty bitmap is frozen, old values are saved before a batch overwrites
         them, the rest is copied in slices of at most a millisecond between batches.
* copy   the table stays; its columns are copied at the barrier (the memory backend).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.hash import hash_array
from penstock.state.slot_index import SlotIndex

BATCH_ROWS = 8192
BATCHES = 400
BIN_S = 0.05
BARRIER_S = 1.0
SLICE_S = 0.001
SLICE_ROWS = 32_768
KEY = pa.schema([("key", pa.int64())])
Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]


class Count(ABC):
    """A running count per key."""

    def __init__(self) -> None:
        self.index = SlotIndex(KEY)
        self.counts = np.zeros(0, np.int64)
        self.sealed_rows = 0

    @abstractmethod
    def update(self, keys: pa.Array, hashes: Words) -> Numbers:
        """Count the rows; the new count of each row's key."""

    @abstractmethod
    def barrier(self) -> None:
        """The part of a seal that stops the loop."""

    def between(self) -> None:
        """What may be done between two batches."""
        return

    def off_the_clock(self) -> None:
        """Work that another thread would do after a barrier."""
        return

    def _room(self) -> None:
        if self.index.capacity > len(self.counts):
            larger = np.zeros(self.index.capacity, np.int64)
            larger[: len(self.counts)] = self.counts
            self.counts = larger


class Run:
    """Sorted hashes and counts with an index of buckets of about two rows."""

    def __init__(self, hashes: Words, counts: Numbers) -> None:
        order = np.argsort(hashes)
        self.hashes, self.counts = hashes[order], counts[order]
        self._shift = np.uint64(64 - max(1, (len(hashes) // 2).bit_length()))
        edges = np.arange(1 << (64 - int(self._shift)), dtype=np.uint64) << self._shift
        self._starts = np.searchsorted(self.hashes, edges)

    def get(self, hashes: Words) -> Numbers:
        """Stored counts, 0 for keys that are not there. Integer keys do not collide."""
        at = self._starts[hashes >> self._shift]
        last = len(self.hashes) - 1
        open_rows = np.arange(len(hashes))
        while len(open_rows):
            here = np.minimum(at[open_rows], last)
            lower = self.hashes[here] < hashes[open_rows]
            open_rows = open_rows[lower & (at[open_rows] < last)]
            at[open_rows] += 1
        at = np.minimum(at, last)
        return np.where(self.hashes[at] == hashes, self.counts[at], 0)


class Swap(Count):
    """An LSM's memtable: new after each barrier."""

    def __init__(self) -> None:
        super().__init__()
        self._run: Run | None = None
        self._sealed: tuple[Words, Numbers] | None = None

    def update(self, keys: pa.Array, hashes: Words) -> Numbers:
        slots, new = self.index.find_or_insert(hashes, [keys])
        self._room()
        if len(new) and self._run is not None:
            self.counts[new] = self._run.get(self.index.hashes[new])
        np.add.at(self.counts, slots, 1)
        return self.counts[slots]

    def barrier(self) -> None:
        count = self.index.count
        self._sealed = self.index.hashes[:count], self.counts[:count]
        self.sealed_rows = count
        self.index = SlotIndex(KEY)
        self.counts = np.zeros(0, np.int64)

    def off_the_clock(self) -> None:
        if self._sealed is None:
            return
        hashes, counts = self._sealed
        if self._run is not None:
            old = ~np.isin(self._run.hashes, hashes)
            hashes = np.concatenate([self._run.hashes[old], hashes])
            counts = np.concatenate([self._run.counts[old], counts])
        self._run = Run(hashes, counts)


class Stay(Count):
    """A table that survives barriers."""

    def update(self, keys: pa.Array, hashes: Words) -> Numbers:
        slots, _ = self.index.find_or_insert(hashes, [keys])
        self._room()
        self._before_write(slots)
        np.add.at(self.counts, slots, 1)
        return self.counts[slots]

    def _before_write(self, slots: Numbers) -> None:
        """Keep what a snapshot in progress still needs."""


class Copy(Stay):
    """The columns are copied at the barrier."""

    def barrier(self) -> None:
        count = self.index.count
        self._frozen = self.counts[:count].copy(), self.index.hashes[:count]
        self.sealed_rows = count


class Slices(Stay):
    """Frozen dirty bits; old values are saved on first touch or in slices."""

    def __init__(self) -> None:
        super().__init__()
        self._dirty = np.zeros(0, np.bool_)
        self._frozen = np.zeros(0, np.bool_)
        self._saved: list[tuple[Numbers, Numbers]] = []
        self._upto = 0
        self._end = 0

    def _before_write(self, slots: Numbers) -> None:
        if len(self._dirty) < len(self.counts):
            self._dirty = np.append(
                self._dirty, np.zeros(len(self.counts) - len(self._dirty), np.bool_)
            )
            self._frozen = np.append(
                self._frozen, np.zeros(len(self.counts) - len(self._frozen), np.bool_)
            )
        if self._upto < self._end:
            self._save(slots[self._frozen[slots]])
        self._dirty[slots] = True

    def _save(self, slots: Numbers) -> None:
        # A slot that is twice in a batch is saved twice, with the same value.
        self._saved.append((slots, self.counts[slots]))
        self._frozen[slots] = False
        self.sealed_rows += len(slots)

    def barrier(self) -> None:
        while self._upto < self._end:  # barrier n + 1 first finishes n
            self._slice()
        self._frozen, self._dirty = self._dirty, np.zeros(len(self._dirty), np.bool_)
        self._saved, self._upto, self._end = [], 0, self.index.count
        self.sealed_rows = 0

    def between(self) -> None:
        until = time.perf_counter() + SLICE_S
        while self._upto < self._end and time.perf_counter() < until:
            self._slice()

    def _slice(self) -> None:
        stop = min(self._upto + SLICE_ROWS, self._end)
        self._save(self._upto + np.flatnonzero(self._frozen[self._upto : stop]))
        self._upto = stop


def measure(make: type[Count], batches: list[tuple[pa.Array, Words]], seconds: float) -> Any:
    """Rows/s per bin, and how long the barriers stopped the loop."""
    table = make()
    for keys, hashes in batches:  # warm: every key is known, as in a job that runs for long
        table.update(keys, hashes)
    table.barrier()
    table.off_the_clock()
    bins: list[float] = []
    stalls: list[float] = []
    sealed: list[int] = []
    clock = rows = at = 0
    next_bin, next_barrier, began = BIN_S, BARRIER_S, time.perf_counter()
    paused = 0.0
    clock = 0.0
    while clock < seconds:
        keys, hashes = batches[at % len(batches)]
        at += 1
        table.update(keys, hashes)
        rows += len(keys)
        table.between()
        clock = time.perf_counter() - began - paused
        if clock >= next_bin:
            bins.append(rows / (clock - next_bin + BIN_S))
            rows, next_bin = 0, clock + BIN_S
        if clock >= next_barrier:
            next_barrier += BARRIER_S
            sealed.append(table.sealed_rows)
            start = time.perf_counter()
            table.barrier()
            stopped = time.perf_counter()
            stalls.append(stopped - start)
            table.off_the_clock()
            paused += time.perf_counter() - stopped
    return bins, stalls, sealed


def keys_of(
    distribution: str, count: int, rng: np.random.Generator
) -> list[tuple[pa.Array, Words]]:
    """Batches of keys with their hashes, which come from the exchange in a real job."""
    result = []
    for _ in range(BATCHES):
        if distribution == "zipf":
            ids = (rng.zipf(1.2, BATCH_ROWS) - 1) % count
        else:
            ids = rng.integers(0, count, BATCH_ROWS)
        array = pa.array(ids.astype(np.int64))
        result.append((array, hash_array(array)))
    return result


def main() -> None:
    """One JSON line per distribution and way."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--keys", type=int, default=1_000_000)
    arguments.add_argument("--seconds", type=float, default=5.0)
    given = arguments.parse_args()
    for distribution in ("uniform", "zipf"):
        batches = keys_of(distribution, given.keys, np.random.default_rng(1))
        for name, make in {"swap": Swap, "slices": Slices, "copy": Copy}.items():
            bins, stalls, sealed = measure(make, batches, given.seconds)
            print(
                json.dumps(
                    {
                        "spike": "slot_table",
                        "way": name,
                        "keys": given.keys,
                        "distribution": distribution,
                        "rows_per_s": round(float(np.mean(bins))),
                        "rows_per_s_slowest_bin": round(min(bins)),
                        "barrier_ms_max": round(1e3 * max(stalls, default=0.0), 2),
                        "rows_sealed": max(sealed, default=0),
                        "bins_mrows_per_s": [round(each / 1e6, 2) for each in bins],
                        "machine": platform.machine(),
                        "cores": os.cpu_count(),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
