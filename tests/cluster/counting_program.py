"""Rows, a source and an operator that travel to job processes inside a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import penstock as ps

SPLITS, KEYS = 4, 20
TICK_S = 0.001


@dataclass
class Row:
    k: str
    v: int


class Numbers(ps.Source[Row]):
    """`rows` per split, or for ever at one per millisecond."""

    def __init__(self, rows: int | None) -> None:
        self.rows = rows

    def splits(self) -> list[str]:
        return [str(n) for n in range(SPLITS)]

    def read(self, split: str, position: Any) -> Iterator[tuple[Row, int]]:
        n = position or 0
        while self.rows is None or n < self.rows:
            n += 1
            if self.rows is None:
                time.sleep(TICK_S)
            yield Row(f"key {n % KEYS}", n), n


class Count(ps.KeyedOperator[Row, Row]):
    n = ps.ValueState(int, default=0)

    def process(self, key: str, row: Row, ctx: ps.Context) -> Iterator[Row]:
        self.n.value += 1
        yield Row(key, self.n.value)
