"""Sessions per user: a visit ends when nothing was clicked for five minutes.

A KeyedOperator declares state and timers on the class; they survive crashes and rescaling.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import penstock as ps


@dataclass
class Click:
    user: str
    page: str
    at: datetime


@dataclass
class Visit:
    user: str
    pages: int
    first: str
    last: str


class Visits(ps.KeyedOperator[Click, Visit]):
    clicks = ps.ListState(tuple)  # (at, page), in the order of arrival
    quiet = ps.Timer()  # event time; one per click, told apart by its tag

    def __init__(self, pause: timedelta) -> None:
        self.pause = pause

    def process(self, key: str, row: Click, ctx: ps.Context) -> None:
        self.clicks.append((row.at, row.page))
        self.quiet.set(row.at + self.pause, tag=row.at.isoformat())

    def on_timer(self, key: str, timer: ps.Fired, ctx: ps.Context) -> Iterator[Visit]:
        last = datetime.fromisoformat(timer.tag)
        clicks = sorted(self.clicks)
        if any(last < at < last + self.pause for at, _ in clicks):
            return  # the visit went on
        visit = [page for at, page in clicks if at <= last]
        yield Visit(key, len(visit), visit[0], visit[-1])
        self.clicks.clear()
        for click in clicks[len(visit) :]:
            self.clicks.append(click)


def visits(clicks: ps.Stream) -> ps.Stream:
    return clicks.key_by("user").process(Visits(timedelta(minutes=5)))


if __name__ == "__main__":
    start = datetime(2024, 1, 1, tzinfo=UTC)
    pages = [("/home", 0), ("/buy", 2), ("/home", 60)]
    rows = [Click("ann", page, start + timedelta(minutes=at)) for page, at in pages]
    source = ps.Pipeline("sessions").source(rows, event_time="at", out_of_order="1 hour")
    print(visits(source).collect().to_pandas())
