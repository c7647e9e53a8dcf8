"""Rows of many keys through their runs where conditions refer to rows matched before.

What a condition says of a row depends on the rows taken before it, so a key's rows go one behind
the other; but keys do not depend on each other. In each round every key sees its next row, and
what conditions say of all of them is asked for at once. Rows that begin nothing and find nothing
that has begun take no round. Keys stay in order, and so do the matches of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .match_memory import Recall
from .match_runs import KeyRuns, Match, Matcher


class Rows(NamedTuple):
    """Rows in order, those of a key together; what is kept of each."""

    keys: Sequence[Any]
    times: Sequence[int]
    kept: Sequence[tuple[Any, ...]]
    passes: Mapping[str, Sequence[bool]]
    """What conditions say without looking at matched rows."""


def in_rounds(
    matcher: Matcher, runs_of: dict[Any, KeyRuns], rows: Rows, recall: Recall
) -> tuple[list[tuple[Any, Match]], set[Any]]:
    """(matches with their keys, the keys whose runs may have changed)."""
    begins = {name: _begins(name, rows, recall) for name in matcher.first}
    ahead = _next_begin(begins, len(rows.keys))
    found: list[tuple[Any, Match]] = []
    touched = set()
    stretches = _stretches(rows.keys)
    while stretches:
        waiting: list[tuple[int, int, Any, KeyRuns]] = []
        for at, end, key in stretches:
            runs = runs_of.get(key)
            if runs is None or not runs.runs:
                at = ahead[at]
                if at >= end:
                    continue
            if runs is None:
                runs = runs_of[key] = KeyRuns()
            # Runs whose time is over by now are not asked about.
            found += [(key, match) for match in matcher.time(runs, rows.times[at] - 1)]
            touched.add(key)
            waiting.append((at, end, key, runs))
        recall.ask(matcher, [(at, runs) for at, _, _, runs in waiting])
        stretches = []
        for at, end, key, runs in waiting:
            recall.at = at
            row = (rows.times[at], rows.kept[at])
            starts = {name for name, each in begins.items() if each[at]}
            for match in matcher.row(runs, rows.times[at], row, starts.__contains__, recall):
                found.append((key, match))
            if at + 1 < end:
                stretches.append((at + 1, end, key))
    return found, touched


def _begins(name: str, rows: Rows, recall: Recall) -> list[bool]:
    """Which rows may be the first of a match as this variable."""
    passed = np.array(rows.passes.get(name, np.ones(len(rows.keys))), np.bool_)
    listed: list[bool] = recall.begins(name, passed).tolist()
    return listed


def _next_begin(begins: Mapping[str, list[bool]], count: int) -> list[int]:
    """For each row the first that may begin something, from it on; `count` if there is none."""
    may_begin = np.zeros(count, np.bool_)
    for each in begins.values():
        may_begin |= np.array(each, np.bool_)
    at = np.where(may_begin, np.arange(count), count)
    listed: list[int] = np.minimum.accumulate(at[::-1])[::-1].tolist()
    return listed


def _stretches(keys: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """(first row, end, key) of each key. NaN is one object, so it is the same key."""
    starts = [
        at
        for at in range(len(keys))
        if not at or (keys[at - 1] is not keys[at] and keys[at - 1] != keys[at])
    ]
    return [
        (start, end, keys[start])
        for start, end in zip(starts, [*starts[1:], len(keys)], strict=True)
    ]
