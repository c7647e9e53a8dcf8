"""Windows by the calendars of places, by looking at their clocks every 15 minutes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
from hypothesis import strategies as st

from penstock.operators.event_times import with_time
from penstock.operators.windows import cumulate, hop, tumble
from penstock.testing.harness import batch_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = 3600 * 10**9
LOOK = timedelta(minutes=15)
"""All clocks here are off from UTC, and changed, by multiples of it."""
COLUMNS = pa.schema([("k", pa.int64()), ("n", pa.int64())])
ROWS = with_time(COLUMNS)
ITEMS = {"rows": "count(*)", "total": "sum(n % 100)", "kinds": "count(DISTINCT n)"}
Row = tuple[int | None, int | None, int]
Bounds = tuple[int, int]

PLACES = [
    ("Europe/Berlin", datetime(2024, 3, 31, 1, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2024, 10, 27, 1, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2024, 4, 6, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2024, 10, 5, 15, 30, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 2, 18, 2, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),
    ("America/Havana", datetime(2024, 11, 3, 5, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(1985, 12, 31, 18, 30, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(2024, 2, 29, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
    ("Pacific/Kwajalein", datetime(1993, 8, 21, 12, tzinfo=UTC)),
    ("UTC", datetime(1969, 12, 31, 20, tzinfo=UTC)),
]
"""Zones, and when something happens to their clocks or calendars."""


@dataclass(frozen=True)
class Plain:
    """A window in its numbers: steps are days or months (a week: 7 days from Monday on)."""

    kind: str
    size: str
    step: str = ""
    offset_hours: int = 0

    def in_zone(self, zone: str) -> Any:
        """As users write it."""
        options: Any = {"timezone": zone, "offset": timedelta(hours=self.offset_hours)}
        if self.kind == "tumble":
            return tumble(self.size, **options)
        if self.kind == "hop":
            return hop(self.size, every=self.step, **options)
        return cumulate(self.size, step=self.step, **options)


SHORT = [
    Plain("tumble", "1 day"),
    Plain("tumble", "1 week", offset_hours=6),
    Plain("hop", "3 days", "1 day"),
    Plain("hop", "2 weeks", "1 week", 6),
    Plain("cumulate", "1 day", "3 hours"),
    Plain("cumulate", "1 day", "15 min", 6),
    Plain("cumulate", "1 week", "1 day"),
]
LONG = [
    Plain("tumble", "1 month"),
    Plain("hop", "7 days", "1 day", 23),
    Plain("hop", "4 days", "2 days"),
    Plain("hop", "3 months", "1 month"),
    Plain("hop", "1 year", "1 quarter", 6),
    Plain("cumulate", "1 month", "1 day"),
    Plain("cumulate", "1 month", "12 hours", 6),
    Plain("cumulate", "6 days", "2 days"),
    Plain("cumulate", "1 year", "1 month"),
]


def ns(moment: datetime) -> int:
    """Since the epoch."""
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


@cache
def reached(zone: str, wall: datetime) -> int:
    """When clocks there first show that or later."""
    place, moment = ZoneInfo(zone), wall.replace(tzinfo=UTC) - timedelta(hours=27)
    while moment.astimezone(place).replace(tzinfo=None) < wall:
        moment += LOOK
    return ns(moment)


def borders(length: str, zone: str, offset_hours: int, around: int) -> list[int]:
    """When steps of so many days or months begin, far enough to both sides, each instant once."""
    count, unit = length.removesuffix("s").split()
    near = (EPOCH + timedelta(microseconds=around // 1000)).date()
    if unit in ("day", "week"):
        size = int(count) * (7 if unit == "week" else 1)
        first = date(1970, 1, 5) if unit == "week" else date(1970, 1, 1)
        number = (near - first).days // size
        days = [first + timedelta(days=n * size) for n in range(number - 12, number + 13)]
    else:
        size = int(count) * {"month": 1, "quarter": 3, "year": 12}[unit]
        number = ((near.year - 1970) * 12 + near.month - 1) // size
        months = [n * size for n in range(number - 6, number + 7)]
        days = [date(1970 + n // 12, n % 12 + 1, 1) for n in months]
    walls = [datetime.combine(d, clock()) + timedelta(hours=offset_hours) for d in days]
    return sorted({reached(zone, wall) for wall in walls})


@cache
def windows_at(plain: Plain, zone: str, time: int) -> tuple[Bounds, ...]:
    """All windows that hold an instant."""
    outer = borders(plain.size, zone, plain.offset_hours, time)
    if plain.kind == "tumble":
        return tuple((s, e) for s, e in pairwise(outer) if s <= time < e)
    if plain.kind == "hop":
        steps = borders(plain.step, zone, plain.offset_hours, time)
        held = {"3 days": 3, "2 weeks": 2, "7 days": 7, "4 days": 2, "3 months": 3, "1 year": 4}
        found = zip(steps, steps[held[plain.size] :])
        return tuple((s, e) for s, e in found if s <= time < e)
    ((start, end),) = [(s, e) for s, e in pairwise(outer) if s <= time < e]
    return tuple((start, e) for e in ends_within(plain, zone, start, end) if time < e)


@cache
def ends_within(plain: Plain, zone: str, start: int, end: int) -> tuple[int, ...]:
    """Where windows end that begin together at `start`."""
    count, unit = plain.step.removesuffix("s").split()
    if unit not in ("hour", "min"):
        inner: set[int] = set()
        for time in range(start, end + 1, 6 * 24 * HOUR):
            steps = borders(plain.step, zone, plain.offset_hours, time)
            inner |= {step for step in steps if start < step <= end}
        return tuple(sorted(inner | {end}))
    piece = int(count) * (HOUR if unit == "hour" else HOUR // 60)
    found: set[int] = set()
    for time in range(start, end + 1, 6 * 24 * HOUR):
        days = borders("1 day", zone, plain.offset_hours, time)
        for begin, over in pairwise(days):
            found |= {*range(begin + piece, over, piece), over}
    return tuple(sorted(each for each in found if start < each <= end))


@st.composite
def times_near(draw: Any, moment: datetime, days: int) -> int:
    """An instant near a moment, often on a clock's quarter or just before it."""
    quarter = ns(moment) + draw(st.integers(-96 * days, 96 * days)) * HOUR // 4
    return quarter + draw(st.sampled_from([0, -1, 1, 7 * 10**9]))


@st.composite
def runs(draw: Any, moment: datetime, days: int, most: int = 7) -> list[Any]:
    """(rows, the watermark behind them or None, whether it dies there); rows in pieces."""
    row = st.tuples(
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, 0, 7, -(2**63), 2**63 - 1]),
        times_near(moment, days),
    )
    made: list[Any] = []
    now = ns(moment) - 24 * days * HOUR
    for some in draw(st.lists(st.lists(row, max_size=6), max_size=most)):
        pieces = [[each] for each in some] if draw(st.booleans()) else [some]
        now += draw(st.sampled_from([0, 1, 5, 12, 12 * days])) * HOUR - draw(st.integers(0, 1))
        further = now if draw(st.booleans()) else None
        made += [(piece, None, False) for piece in pieces[:-1]]
        made.append((pieces[-1] if pieces else [], further, draw(st.booleans())))
    return made


def batch(some: list[Row]) -> pa.RecordBatch:
    """Rows as the engine has them."""
    return batch_of(COLUMNS, [row[:2] for row in some], [row[2] for row in some])


def result_of(some: list[Row]) -> tuple[Any, ...]:
    """What ITEMS mean."""
    numbers = [n for _, n, _ in some if n is not None]
    rests = [abs(n) % 100 * (1 if n > 0 else -1) for n in numbers]
    return len(some), sum(rests) if numbers else None, len(set(numbers))


def results(table: pa.Table) -> list[tuple[Any, ...]]:
    """(key, start, end, results), and a sign where there is one."""
    if not table.num_rows:
        return []
    bounds = [table.column(n).cast(pa.int64()).to_pylist() for n in ("window_start", "window_end")]
    names = [name for name in [*ITEMS, "_change"] if name in table.column_names]
    columns = [table.column(name).to_pylist() for name in names]
    return list(zip(table.column("k").to_pylist(), *bounds, *columns, strict=True))


def net(tables: list[pa.Table]) -> Counter[Any]:
    """What is there in the end; nothing is taken back that was not there."""
    found: Counter[Any] = Counter()
    for table in tables:
        signs = "_change" in table.column_names
        for row in results(table):
            found[row[:-1] if signs else row] += row[-1] if signs else 1
    assert all(weight >= 0 for weight in found.values())
    return +found
