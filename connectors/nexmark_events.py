"""Nexmark's persons, auctions and bids as columns, for any set of event numbers.

Of 50 events in a row one is a person, three are auctions and 46 are bids. Half of the bids go to
a hot auction, three of four come from a hot bidder, and so on, as in the benchmark of Beam and
Flink. Promises: an event is a function of (seed, number); only the columns asked for are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .nexmark_strings import (
    CHANNELS,
    CITIES,
    FIRST_NAMES,
    HOT_CHANNELS,
    LAST_NAMES,
    POOL,
    STATES,
    Pools,
    Words,
    below,
    pools,
    prices,
    words,
)

Kind = Literal["person", "auction", "bid"]

EPOCH_EVENTS = 50
FIRST_OFFSET: dict[Kind, int] = {"person": 0, "auction": 1, "bid": 4}
PER_EPOCH: dict[Kind, int] = {"person": 1, "auction": 3, "bid": 46}
FIRST_ID = 1000
FIRST_CATEGORY = 10
CATEGORIES = 5
ACTIVE_PEOPLE = 1000
AUCTIONS_IN_FLIGHT = 100
ID_LEAD = 10
"""Ids of persons and auctions that are yet to come may be used already, so many ahead."""
HOT_EVERY = 100
"""The hot auction, seller and bidder change after so many new ones."""

_TIME = pa.timestamp("us", "UTC")


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


SCHEMAS: dict[Kind, pa.Schema] = {
    "person": _schema(
        ("id", pa.int64()),
        ("name", pa.string()),
        ("email_address", pa.string()),
        ("credit_card", pa.string()),
        ("city", pa.string()),
        ("state", pa.string()),
        ("datetime", _TIME),
        ("extra", pa.string()),
    ),
    "auction": _schema(
        ("id", pa.int64()),
        ("item_name", pa.string()),
        ("description", pa.string()),
        ("initial_bid", pa.int64()),
        ("reserve", pa.int64()),
        ("datetime", _TIME),
        ("expires", _TIME),
        ("seller", pa.int64()),
        ("category", pa.int64()),
        ("extra", pa.string()),
    ),
    "bid": _schema(
        ("auction", pa.int64()),
        ("bidder", pa.int64()),
        ("price", pa.int64()),
        ("channel", pa.string()),
        ("url", pa.string()),
        ("datetime", _TIME),
        ("extra", pa.string()),
    ),
}


@dataclass(frozen=True)
class EventClock:
    """Event n happens at start + n / rate."""

    start_us: int
    events_per_second: int

    def times_us(self, events: Words) -> npt.NDArray[np.int64]:
        """Microseconds since 1970; exact for some 9e12 events."""
        passed = events * np.uint64(1_000_000) // np.uint64(self.events_per_second)
        return passed.astype(np.int64) + self.start_us


class Events:
    """The events with these numbers, all of one kind; columns are made when asked for."""

    def __init__(self, kind: Kind, numbers: Words, seed: int, clock: EventClock) -> None:
        self._kind = kind
        self._numbers = numbers
        self._seed = seed
        self._clock = clock

    def columns(self, names: Sequence[str]) -> list[pa.Array]:
        """The columns with these names, in this order."""
        return [_MAKERS[self._kind, name](self) for name in names]

    # -- what columns share

    @cached_property
    def _pools(self) -> Pools:
        return pools(self._seed)

    @cached_property
    def _epochs(self) -> Words:
        return self._numbers // np.uint64(EPOCH_EVENTS)

    @cached_property
    def _last_person(self) -> Words:
        """The newest person when the event happens, counted from 0."""
        return self._epochs

    @cached_property
    def _last_auction(self) -> Words:
        """The newest auction, counted from 0. Not for persons: epoch 0 has none before them."""
        if self._kind == "bid":
            return self._epochs * np.uint64(3) + np.uint64(2)
        assert self._kind == "auction"
        offsets = self._numbers - self._epochs * np.uint64(EPOCH_EVENTS)
        return self._epochs * np.uint64(3) + offsets - np.uint64(1)

    @cached_property
    def _channel_words(self) -> Words:
        return self._words(4)

    @cached_property
    def _channels(self) -> pa.Array:
        """Half of the bids come by one of four hot channels, the others by one of 10,000."""
        random = self._channel_words
        hot = (random >> np.uint64(1)) & np.uint64(3)
        cold = below(random, CHANNELS) + np.uint64(len(HOT_CHANNELS))
        return pa.array(np.where(random & np.uint64(1), hot, cold).astype(np.int32))

    @cached_property
    def _times(self) -> npt.NDArray[np.int64]:
        return self._clock.times_us(self._numbers)

    @cached_property
    def _initial_bids(self) -> npt.NDArray[np.int64]:
        return self._prices(5)

    def _words(self, field: int) -> Words:
        return words(self._numbers, self._seed, field)

    def _prices(self, field: int) -> npt.NDArray[np.int64]:
        """Between 100 and 100 million cents, each order of magnitude as often as the others."""
        chosen: npt.NDArray[np.int64] = prices()[self._words(field) >> np.uint64(48)]
        return chosen

    def _person(self, random: Words) -> Words:
        """One of the active people or of the next few, counted from 0."""
        people = self._last_person + np.uint64(1)
        active = np.minimum(people, np.uint64(ACTIVE_PEOPLE))
        chosen: Words = people - active + below(random, active + np.uint64(ID_LEAD))
        return chosen

    def _pooled(self, pool: pa.Array, field: int) -> pa.Array:
        at = (self._words(field) & np.uint64(POOL - 1)).astype(np.int32)
        return pool.take(pa.array(at))

    def _chosen(self, table: pa.Array, field: int) -> pa.Array:
        return table.take(pa.array(below(self._words(field), len(table)).astype(np.int32)))

    # -- columns

    def datetime(self) -> pa.Array:
        """When it happened."""
        return _as_times(self._times)

    def bid_auction(self) -> pa.Array:
        """The hot auction, or any of those in flight and the next few."""
        random = self._words(1)
        last = self._last_auction
        hot = last // np.uint64(HOT_EVERY) * np.uint64(HOT_EVERY)
        flying = np.minimum(last, np.uint64(AUCTIONS_IN_FLIGHT))
        other = last - flying + below(random, flying + np.uint64(1 + ID_LEAD))
        return _as_ids(np.where(random & np.uint64(1), hot, other))

    def bid_bidder(self) -> pa.Array:
        """The hot bidder (never the hot seller) three times out of four."""
        random = self._words(2)
        hot = self._last_person // np.uint64(HOT_EVERY) * np.uint64(HOT_EVERY) + np.uint64(1)
        return _as_ids(np.where(random & np.uint64(3), hot, self._person(random)))

    def bid_price(self) -> pa.Array:
        """In cents."""
        return pa.array(self._prices(3))

    def bid_channel(self) -> pa.Array:
        """Where the bid came from."""
        return self._pools.channels.take(self._channels)

    def bid_url(self) -> pa.Array:
        """The channel's address."""
        return self._pools.urls.take(self._channels)

    def bid_extra(self) -> pa.Array:
        """Fills a bid up to its size; from bits that the channel leaves unused."""
        at = (self._channel_words >> np.uint64(3)) & np.uint64(POOL - 1)
        return self._pools.bid_extras.take(pa.array(at.astype(np.int32)))

    def auction_id(self) -> pa.Array:
        """Consecutive."""
        return _as_ids(self._last_auction)

    def auction_item_name(self) -> pa.Array:
        """Up to 19 letters."""
        return self._pooled(self._pools.item_names, 6)

    def auction_description(self) -> pa.Array:
        """Up to 99 letters."""
        return self._pooled(self._pools.descriptions, 7)

    def auction_initial_bid(self) -> pa.Array:
        """In cents."""
        return pa.array(self._initial_bids)

    def auction_reserve(self) -> pa.Array:
        """More than the initial bid."""
        return pa.array(self._initial_bids + self._prices(8))

    def auction_expires(self) -> pa.Array:
        """On average when AUCTIONS_IN_FLIGHT further auctions have begun."""
        ahead = np.uint64(AUCTIONS_IN_FLIGHT * EPOCH_EVENTS // PER_EPOCH["auction"])
        horizon_ms = (self._clock.times_us(self._numbers + ahead) - self._times) // 1000
        limit = np.maximum(horizon_ms * 2, 1).astype(np.uint64)
        length_ms = below(self._words(9), limit).astype(np.int64) + 1
        return _as_times(self._times + length_ms * 1000)

    def auction_seller(self) -> pa.Array:
        """The hot seller three times out of four."""
        random = self._words(10)
        hot = self._last_person // np.uint64(HOT_EVERY) * np.uint64(HOT_EVERY)
        return _as_ids(np.where(random & np.uint64(3), hot, self._person(random)))

    def auction_category(self) -> pa.Array:
        """One of five."""
        category = below(self._words(11), CATEGORIES) + np.uint64(FIRST_CATEGORY)
        return pa.array(category.astype(np.int64))

    def auction_extra(self) -> pa.Array:
        """Fills an auction up to its size."""
        return self._pooled(self._pools.auction_extras, 12)

    def person_id(self) -> pa.Array:
        """Consecutive."""
        return _as_ids(self._last_person)

    def person_name(self) -> pa.Array:
        """First and last name."""
        assert len(self._pools.names) == len(FIRST_NAMES) * len(LAST_NAMES)
        return self._chosen(self._pools.names, 13)

    def person_email_address(self) -> pa.Array:
        """mailbox@host.com"""
        mailbox = self._pooled(self._pools.mailboxes, 14)
        host = self._pooled(self._pools.hosts, 15)
        ending = pc.binary_join_element_wise(host, pa.scalar(".com"), pa.scalar(""))
        return pc.binary_join_element_wise(mailbox, ending, pa.scalar("@"))

    def person_credit_card(self) -> pa.Array:
        """Four times four digits."""
        parts = [self._chosen(self._pools.four_digits, 16 + part) for part in range(4)]
        return pc.binary_join_element_wise(*parts, pa.scalar(" "))

    def person_city(self) -> pa.Array:
        """One of ten."""
        assert len(self._pools.cities) == len(CITIES)
        return self._chosen(self._pools.cities, 20)

    def person_state(self) -> pa.Array:
        """One of six, whatever the city."""
        assert len(self._pools.states) == len(STATES)
        return self._chosen(self._pools.states, 21)

    def person_extra(self) -> pa.Array:
        """Fills a person up to its size."""
        return self._pooled(self._pools.person_extras, 22)


def _makers() -> dict[tuple[Kind, str], Callable[[Events], pa.Array]]:
    found: dict[tuple[Kind, str], Callable[[Events], pa.Array]] = {}
    for kind, schema in SCHEMAS.items():
        for name in schema.names:
            method = "datetime" if name == "datetime" else f"{kind}_{name}"
            found[kind, name] = getattr(Events, method)
    return found


_MAKERS = _makers()


def _as_ids(numbers: Words) -> pa.Array:
    return pa.array(numbers.astype(np.int64) + FIRST_ID)


def _as_times(times_us: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(times_us).view(_TIME)


def flat_batch(
    kind: Kind, columns: Sequence[str], numbers: Words, seed: int, clock: EventClock
) -> pa.RecordBatch:
    """Events of one kind as rows; requires that `numbers` are of this kind."""
    schema = pa.schema([SCHEMAS[kind].field(name) for name in columns])
    arrays = Events(kind, numbers, seed, clock).columns(columns)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def mixed_schema(kinds: Sequence[Kind]) -> pa.Schema:
    """One nullable struct per kind: exactly one of all three is not null in a row."""
    return pa.schema([(kind, pa.struct(list(SCHEMAS[kind]))) for kind in kinds])


def mixed_batch(
    kinds: Sequence[Kind], numbers: Words, seed: int, clock: EventClock
) -> pa.RecordBatch:
    """All events in order, each in the column of its kind."""
    offsets = numbers % np.uint64(EPOCH_EVENTS)
    schema = mixed_schema(kinds)
    arrays = []
    for kind in kinds:
        first = FIRST_OFFSET[kind]
        mine = (offsets >= first) & (offsets < first + PER_EPOCH[kind])
        names = SCHEMAS[kind].names
        columns = Events(kind, numbers[mine], seed, clock).columns(names)
        rows = pa.StructArray.from_arrays(columns, fields=list(SCHEMAS[kind]))
        # Spread the rows over all events; the others are null.
        at = pa.array(np.cumsum(mine, dtype=np.int32) - np.int32(1), mask=~mine)
        arrays.append(rows.take(at))
    return cast(pa.RecordBatch, pa.RecordBatch.from_arrays(arrays, schema=schema))
