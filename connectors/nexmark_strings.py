"""Random numbers, prices and texts of the Nexmark generator: functions of the event number alone.

Promises: `words` gives the same 64 bits for (seed, field, event) on every machine and for ever,
so a generator can start at any event. Texts come from fixed pools of each kind: as long and as
varied as the queries need, and one gather per batch to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words = npt.NDArray[np.uint64]

POOL = 4096
"""Different texts per pool; a power of two, so that an index is a mask."""
CHANNELS = 10_000
HOT_CHANNELS = ("Google", "Facebook", "Baidu", "Apple")
STATES = ("AZ", "CA", "ID", "OR", "WA", "WY")
CITIES = (
    *("Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland"),
    *("Bend", "Redmond", "Seattle", "Kent", "Cheyenne"),
)
FIRST_NAMES = (
    *("Peter", "Paul", "Luke", "John", "Saul", "Vicky"),
    *("Kate", "Julie", "Sarah", "Deiter", "Walter"),
)
LAST_NAMES = (
    *("Shultz", "Abrams", "Spencer", "White", "Bartels"),
    *("Walton", "Smith", "Jones", "Noris"),
)

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def words(numbers: Words, seed: int, field: int) -> Words:
    """64 random bits per number (the finaliser of SplitMix64 over a stream per seed and field)."""
    start = _mix_one((seed * 0x2545F4914F6CDD1D + field * _GOLDEN + 1) & _MASK)
    z = numbers * np.uint64(_GOLDEN)
    z += np.uint64(start)
    z ^= z >> np.uint64(30)
    z *= _MIX_1
    z ^= z >> np.uint64(27)
    z *= _MIX_2
    z ^= z >> np.uint64(31)
    return z


def _mix_one(z: int) -> int:
    z = ((z ^ (z >> 30)) * int(_MIX_1)) & _MASK
    z = ((z ^ (z >> 27)) * int(_MIX_2)) & _MASK
    return z ^ (z >> 31)


def below(random: Words, limit: npt.NDArray[np.uint64] | int) -> Words:
    """Numbers in [0, limit) from the upper 32 bits; the lower ones are left for flags."""
    scaled: Words = (random >> np.uint64(32)) * np.asarray(limit, np.uint64)
    scaled >>= np.uint64(32)
    return scaled


@lru_cache(maxsize=1)
def prices() -> npt.NDArray[np.int64]:
    """The 65,536 prices in cents: 100 times 10 to the power of 0 to 6, evenly.

    A table, for the last bits of exp() differ from one processor to the next.
    """
    levels = 1 << 16
    exact = [round(100 * 10 ** (6 * (level + 0.5) / levels)) for level in range(levels)]
    return np.array(exact, np.int64)


@dataclass(frozen=True)
class Pools:
    """Every text that a generator with one seed uses. Read-only and shared in a process."""

    channels: pa.Array
    """The hot ones first, then channel-0 … channel-9999; `urls` goes with them."""
    urls: pa.Array
    bid_extras: pa.Array
    item_names: pa.Array
    descriptions: pa.Array
    auction_extras: pa.Array
    names: pa.Array
    mailboxes: pa.Array
    hosts: pa.Array
    four_digits: pa.Array
    cities: pa.Array
    states: pa.Array
    person_extras: pa.Array


@lru_cache(maxsize=4)
def pools(seed: int) -> Pools:
    """The pools of `seed`; made in a few ms, once per process."""
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    cold = [f"channel-{number}" for number in range(CHANNELS)]
    return Pools(
        channels=pa.array([*HOT_CHANNELS, *cold]),
        urls=_urls(seed),
        # Lengths are chosen so that events have the benchmark's average sizes in bytes:
        # 100 for a bid (urls and channels not counted), 500 for an auction, 200 for a person.
        bid_extras=_texts(seed, 1, POOL, 54, 81),
        item_names=_texts(seed, 2, POOL, 3, 19),
        descriptions=_texts(seed, 3, POOL, 3, 99),
        auction_extras=_texts(seed, 4, POOL, 311, 466),
        names=pa.array(names),
        mailboxes=_texts(seed, 5, POOL, 3, 6),
        hosts=_texts(seed, 6, POOL, 3, 4),
        four_digits=pa.array([f"{number:04d}" for number in range(10_000)]),
        cities=pa.array(CITIES),
        states=pa.array(STATES),
        person_extras=_texts(seed, 7, POOL, 109, 163),
    )


def _texts(seed: int, pool: int, count: int, shortest: int, longest: int) -> pa.Array:
    """`count` texts of a to z with lengths in [shortest, longest]."""
    numbers = np.arange(count, dtype=np.uint64)
    lengths = below(words(numbers, seed, 100 + pool), longest - shortest + 1).astype(np.int64)
    ends = np.cumsum(lengths + shortest)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    places = np.arange(int(ends[-1]), dtype=np.uint64)
    letters = (below(words(places, seed, 200 + pool), 26) + np.uint64(97)).astype(np.uint8)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))


def _urls(seed: int) -> pa.Array:
    """One address per channel: three random folders; nine in ten cold ones name their channel."""
    count = len(HOT_CHANNELS) + CHANNELS
    folders = [_texts(seed, 10 + part, count, 3, 4).to_pylist() for part in range(3)]
    tagged = below(words(np.arange(count, dtype=np.uint64), seed, 300), 10).tolist()
    urls = []
    for at, path in enumerate(zip(*folders)):
        url = f"https://www.nexmark.com/{'/'.join(path)}/item.htm?query=1"
        number = at - len(HOT_CHANNELS)
        if number >= 0 and tagged[at]:
            url += f"&channel_id={_reversed_bits(number)}"
        urls.append(url)
    return pa.array(urls)


def _reversed_bits(number: int) -> int:
    """The 32 bits of `number` backwards, as a positive number: spread wide, like real ids."""
    backwards = int(f"{number:032b}"[::-1], 2)
    return backwards if backwards < 2**31 else 2**32 - backwards
