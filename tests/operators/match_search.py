"""The oracle of patterns: depth first over all rows, no streams, no merging of ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from penstock.operators.match_pattern import Pattern

Meets = Callable[[int, str, Any], bool]
"""(row, variable, (variable, row)… matched before) -> whether the row meets the condition."""


def ways(pattern: Pattern, is_a: Meets, first: int, until: int) -> Iterator[Any]:
    """All matches from row `first` that end before `until`, best first: (variable, row)…"""
    steps = pattern.steps

    def from_step(step: int, taken: int, at: int, used: Any, gap: int) -> Iterator[Any]:
        here = steps[step]
        if at < until:
            if (
                gap < 0
                and (here.most is None or taken < here.most)
                and is_a(at, here.variable, used)
            ):
                more = (*used, (here.variable, at))
                yield from from_step(step, taken + 1, at + 1, more, -1)
            if taken >= here.least:
                yield from onward(step, taken, at, used, gap)
        ends = taken >= here.least and not any(s.least for s in steps[step + 1 :])
        if ends and gap < 0 and (not pattern.never or clean(at, used)):
            yield used

    def clean(at: int, used: Any) -> bool:
        return not any(is_a(each, v, used) for each in range(at, until) for v in pattern.never)

    def onward(step: int, taken: int, at: int, used: Any, gap: int) -> Iterator[Any]:
        gaps: list[int] = []
        target = gap if gap >= 0 else step + 1
        while target < len(steps):
            if is_a(at, steps[target].variable, used):
                more = (*used, (steps[target].variable, at))
                yield from from_step(target, 1, at + 1, more, -1)
            if (steps[target].gap or target == gap) and target not in gaps:
                gaps.append(target)
            if steps[target].least:
                break
            target += 1
        for each in gaps:
            if not any(is_a(at, v, used) for v in steps[each].banned):
                yield from from_step(step, taken, at + 1, used, each)

    target = 0
    while target < len(steps):
        if is_a(first, steps[target].variable, ()):
            used = ((steps[target].variable, first),)
            yield from from_step(target, 1, first + 1, used, -1)
        if steps[target].least:
            break
        target += 1


def search(
    pattern: Pattern,
    rows: Sequence[tuple[int, Any]],
    within: int,
    skip: str,
    is_a: Meets | None = None,
) -> list[tuple[tuple[str, int], ...]]:
    """Matches over rows (time, …) of one key; without `is_a` each row is its letters."""
    found = []
    is_a = is_a or (lambda at, variable, used: variable in rows[at][1])
    first = 0
    while first < len(rows):
        limit = rows[first][0] + within
        until = next((at for at in range(first, len(rows)) if rows[at][0] > limit), len(rows))
        best = next(ways(pattern, is_a, first, until), None)
        if best is not None:
            found.append(best)
        if best is not None and skip == "past last row":
            first = best[-1][1] + 1
        else:
            first += 1
    return found
