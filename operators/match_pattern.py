"""Patterns as text: `a b+ c? !x d`, `a ... b`: which rows, one behind the other, make a match.

`a` is one row for which the condition called a is true; `b+` one or more, `c?` one or none, `d*`
any number, `e{2,4}` two to four of them; as many as possible are taken. Rows follow each other
directly unless `...` lets others lie between; `!x` lets others between too, but none that is x. At
the end of a pattern `!x` means that no x follows within the time that a match may take.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from penstock.elements.errors import PlanError

STEPS_MAX = 100
REPEATS_MAX = 1000
_TOKEN = re.compile(
    r"\s*(?:(?P<gap>\.\.\.)|!(?P<never>[A-Za-z_]\w*)"
    r"|(?P<name>[A-Za-z_]\w*)(?P<repeat>[?+*]|\{\s*\d+\s*(?:,\s*\d*\s*)?\})?)"
)
_MARKS: dict[str, tuple[int, int | None]] = {
    "": (1, 1),
    "?": (0, 1),
    "+": (1, None),
    "*": (0, None),
}


@dataclass(frozen=True)
class Step:
    """`least` to `most` rows of a variable; `gap`: others may lie before it, none of `banned`."""

    variable: str
    least: int
    most: int | None
    gap: bool = False
    banned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pattern:
    """Steps in order; `never` may not follow within the time that a match may take."""

    text: str
    steps: tuple[Step, ...]
    never: frozenset[str] = frozenset()

    @property
    def variables(self) -> list[str]:
        """All that is named, in order."""
        found: dict[str, None] = {}
        for step in self.steps:
            found.update(dict.fromkeys([*sorted(step.banned), step.variable]))
        return [*found, *sorted(self.never - found.keys())]


def parse_pattern(text: str, who: str = "match", location: str = "") -> Pattern:
    """The pattern; raises PlanError that shows where it cannot be read.

    >>> parse_pattern("a !b c+").steps[1]
    Step(variable='c', least=1, most=None, gap=True, banned=frozenset({'b'}))
    """
    steps: list[Step] = []
    gap, banned = False, set[str]()
    at = 0
    text = text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _fault(f"cannot read {text[at:].strip()!r}", text, who, location)
        at = found.end()
        if found["gap"] or found["never"]:
            gap = True
            banned |= {found["never"]} if found["never"] else set()
            if not steps:
                raise _fault("nothing lies before its beginning", text, who, location)
            continue
        least, most = _repeats(found["repeat"] or "", text, who, location)
        steps.append(Step(found["name"], least, most, gap, frozenset(banned)))
        gap, banned = False, set()
    if gap and not banned:
        raise _fault('"..." at its end means nothing', text, who, location)
    if not any(step.least for step in steps):
        raise _fault("it would match no row at all", text, who, location)
    if len(steps) > STEPS_MAX:
        raise _fault(f"it has more than {STEPS_MAX} steps", text, who, location)
    return Pattern(text, tuple(steps), frozenset(banned))


def _repeats(mark: str, text: str, who: str, location: str) -> tuple[int, int | None]:
    if mark in _MARKS:
        return _MARKS[mark]
    low, comma, high = mark[1:-1].replace(" ", "").partition(",")
    least = int(low)
    most = least if not comma else (int(high) if high else None)
    if max(least, most or 1) > REPEATS_MAX or (most is not None and most < max(1, least)):
        raise _fault(f"{mark} is no number of rows up to {REPEATS_MAX}", text, who, location)
    return least, most


def _fault(reason: str, text: str, who: str, location: str) -> PlanError:
    where = f"  ({location})" if location else ""
    return PlanError(
        f"{who}: {reason}{where}\n    {text}\n"
        '  Patterns are like  "start down+ up?" ;  ...  is any rows,  !x  any but x'
    )
