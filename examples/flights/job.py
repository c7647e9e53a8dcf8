"""The main job: what delayed a year of departures from New York?

    penstock run examples/flights/job.py --state-dir flights-state

Reads FLIGHTS_DATA (made by data.py), writes Parquet below FLIGHTS_OUT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import penstock as ps

DATA = os.environ.get("FLIGHTS_DATA", "demo-output/data")
OUT = os.environ.get("FLIGHTS_OUT", "demo-output/results")
RATE = float(os.environ["FLIGHTS_RATE"]) if "FLIGHTS_RATE" in os.environ else None
TURNAROUND = timedelta(hours=12)


@dataclass
class Departure:
    carrier: str
    flight: int
    tail: str
    origin: str
    scheduled: datetime
    dep_delay: float


@dataclass
class Knock:
    tail: str
    carrier: str
    flight: int
    origin: str
    scheduled: datetime
    inbound_delay: float
    dep_delay: float


@dataclass
class Worst:
    origin: str
    day: datetime
    place: int
    carrier: str
    flight: int
    dep_delay: float


class LateInbound(ps.KeyedOperator[Departure, Knock]):
    """An aircraft that left late leaves late again: the earlier delay explains the next one.

    Departures wait in state until the watermark has passed them, so that each aircraft's are
    looked at in the order of the schedule, whatever the order in which they arrived.
    """

    waiting = ps.ListState(Departure)
    last = ps.ValueState(Departure)
    turn = ps.Timer()

    def __init__(self, threshold_minutes: float) -> None:
        self.threshold = threshold_minutes

    def process(self, key: str, row: Departure, ctx: ps.Context) -> None:
        self.waiting.append(row)
        self.turn.set(min(departure.scheduled for departure in self.waiting))

    def on_timer(self, key: str, timer: ps.Fired, ctx: ps.Context) -> Iterator[Knock]:
        queue = sorted(self.waiting, key=lambda d: (d.scheduled, d.carrier, d.flight))
        ready = [d for d in queue if ctx.watermark is None or d.scheduled <= ctx.watermark]
        for departure in ready:
            before = self.last.value
            if (
                before is not None
                and departure.scheduled - before.scheduled <= TURNAROUND
                and min(before.dep_delay, departure.dep_delay) > self.threshold
            ):
                yield Knock(
                    key,
                    departure.carrier,
                    departure.flight,
                    departure.origin,
                    departure.scheduled,
                    before.dep_delay,
                    departure.dep_delay,
                )
            self.last.value = departure
        self.waiting.clear()
        for departure in queue[len(ready) :]:
            self.waiting.append(departure)
        if len(queue) > len(ready):
            self.turn.set(queue[len(ready)].scheduled)


class WorstOfDay(ps.KeyedOperator[Departure, Worst]):
    """The three longest delays of each airport and day (UTC)."""

    days = ps.MapState(datetime, list)
    midnight = ps.Timer()

    def process(self, key: str, row: Departure, ctx: ps.Context) -> None:
        day = row.scheduled.replace(hour=0, minute=0, second=0, microsecond=0)
        best = [*self.days.get(day, []), (-row.dep_delay, row.carrier, row.flight)]
        self.days[day] = sorted(best)[:3]
        self.midnight.set(min(self.days) + timedelta(days=1))

    def on_timer(self, key: str, timer: ps.Fired, ctx: ps.Context) -> Iterator[Worst]:
        for day in sorted(self.days):
            if ctx.watermark is not None and day + timedelta(days=1) > ctx.watermark:
                self.midnight.set(day + timedelta(days=1))
                return
            for place, (minus, carrier, flight) in enumerate(self.days[day], start=1):
                yield Worst(key, day, place, carrier, flight, -minus)
            del self.days[day]


def build(data: str = DATA, out: str = OUT, rate: float | None = RATE) -> ps.Pipeline:
    """The pipeline; `rate` slows each subtask that reads flights to so many rows a second."""
    p = ps.Pipeline("flights")
    flights = p.source(
        ps.FileSource(f"{data}/flights/*.parquet", rows_per_second=rate),
        event_time="scheduled",
        out_of_order="1 day",
    )
    weather = p.source(
        ps.FileSource(f"{data}/weather.parquet"), event_time="hour", out_of_order="1 hour"
    )
    flown = flights.filter("dep_delay is not null and tail is not null")

    by_hour = (
        flights.key_by("carrier")
        .window(ps.tumble("1 hour"))
        .aggregate(
            flights="count(*)", left="count(dep_delay)", mean="avg(dep_delay)",
            worst="max(dep_delay)",
        )
    )  # fmt: skip
    by_hour.sink(ps.FileSink(f"{out}/by_carrier_and_hour"))

    knocks = flown.key_by("tail").process(LateInbound(30))
    knocks.sink(ps.FileSink(f"{out}/late_inbound"))

    worst = flown.key_by("origin").process(WorstOfDay())
    worst.sink(ps.FileSink(f"{out}/worst_of_day"))

    seen = flights.join(weather, on=["origin", "hour"], how="left", window=ps.tumble("1 hour"))
    windy = (
        seen.with_columns(gale="coalesce(wind, 0.0) >= 20.0")
        .key_by("origin", "gale")
        .window(ps.tumble("1 day"))
        .aggregate(flights="count(*)", mean="avg(dep_delay)", wind="max(wind)")
    )
    windy.sink(ps.FileSink(f"{out}/wind_by_day"))
    return p


pipeline = build()
