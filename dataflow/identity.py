"""Operator ids: what state is found by when a changed program resumes (hazard 29).

1. The user's name, where there is one.
2. What keeps state: a hash of its kind, class and key. Stateless edits never move it; two that
   are alike demand `name=`.
3. All others: a hash of kind, upstream ids and ordinal among equals; dead letter sinks, which
   follow their operator's name, take the ordinal as well.
Never of parallelism, chaining or position in the file.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.elements.errors import PlanError

from .graph import IdentityRule

DIGEST_BYTES = 6
"""Two of a thousand operators collide once in half a billion programs; a collision is an error."""
NAME_CHARS_MAX = 80
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Claim:
    """What one operator says about itself; `upstream` are indices of earlier claims."""

    kind: str
    title: str
    rule: IdentityRule
    facts: tuple[str, ...]
    upstream: tuple[int, ...]
    name: str | None = None
    location: str = ""


def check_name(name: str, location: str, whose: str = "an operator") -> str:
    """`name`, which goes into transactions and file names; PlanError if it cannot."""
    if _NAME.fullmatch(name) and len(name) <= NAME_CHARS_MAX:
        return name
    raise PlanError(
        f"{name!r} cannot be the name of {whose}  ({location})\n"
        f"  Use letters, digits, '_', '-' and '.', at most {NAME_CHARS_MAX} of them."
    )


def operator_ids(claims: Sequence[Claim]) -> list[str]:
    """One id per claim. Requires: claims come after their upstream claims."""
    ids: list[str] = []
    ordinals: Counter[str] = Counter()
    owners: dict[str, Claim] = {}
    for claim in claims:
        if claim.name is not None:
            found = check_name(claim.name, claim.location)
        elif claim.rule == "class":
            found = _digest(claim.kind, *claim.facts)
        else:
            by_place = claim.rule == "position"
            above = [ids[index] for index in claim.upstream] if by_place else []
            base = _digest(claim.kind, *claim.facts, *above)
            ordinals[base] += 1
            found = base if ordinals[base] == 1 else _digest(base, str(ordinals[base]))
        if found in owners:
            raise _ambiguous(owners[found], claim)
        owners[found] = claim
        ids.append(found)
    return ids


def _digest(kind: str, *facts: str) -> str:
    # Lengths keep ("ab", "c") apart from ("a", "bc").
    text = "".join(f"{len(fact)}:{fact}" for fact in (kind, *facts))
    short = re.sub(r"[^A-Za-z0-9]+", "_", kind.split("-", maxsplit=1)[0])
    return f"{short}-{hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()}"


def _ambiguous(first: Claim, second: Claim) -> PlanError:
    if first.name is not None or second.name is not None:
        return PlanError(
            f"two operators are named {second.name or first.name!r}"
            f"  ({first.location} and {second.location})\n"
            "  State is found by name: give each its own."
        )
    alike = f" on {second.facts[-1]}" if second.facts and second.facts[-1] else ""
    return PlanError(
        f"{second.title}: used twice{alike}, so a restart could not tell their state apart"
        f"  ({first.location} and {second.location})\n"
        f"  Name them:  {_naming(second)}"
    )


def _naming(claim: Claim) -> str:
    if claim.kind == "source":
        return f'p.source(..., name="{claim.title}_1")'
    if claim.kind == "sink":
        return f'.sink(..., name="{claim.title}_1")'
    return f'.options(name="{claim.title}_1")'
