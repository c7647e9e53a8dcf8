"""A hot key is folded before the exchange, and its rows are those of one phase (hazard 71)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

START = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass
class Click:
    page: str
    user: int
    at: datetime


def clicks(count: int) -> list[Click]:
    """Nine in ten for one page, at most a second behind the newest."""
    chance = random.Random(5)
    return [
        Click(
            "hot" if chance.random() < 0.9 else f"cold {chance.randrange(50)}",
            chance.randrange(100),
            START + timedelta(milliseconds=10 * number - chance.randrange(1000)),
        )
        for number in range(count)
    ]


CLICKS = clicks(3000)


def per_page() -> ps.Stream[Any]:
    s = ps.Pipeline("hot").source(CLICKS, event_time="at", out_of_order="1 second")
    made = s.key_by("page").window(ps.hop("2 seconds", every="1 second"))
    return made.aggregate(n="count(*)", least="min(user)", mean="avg(user)")


def expected() -> list[tuple[Any, ...]]:
    found: dict[Any, list[int]] = {}
    for click in CLICKS:
        second = click.at.replace(microsecond=0)
        for start in (second, second - timedelta(seconds=1)):
            found.setdefault((click.page, start), []).append(click.user)
    return [
        (page, start, start + timedelta(seconds=2), len(u), min(u), sum(u) / len(u))
        for (page, start), u in found.items()
    ]


def test_a_hot_key_keeps_the_law() -> None:
    assert_same_rows(per_page, expected())
