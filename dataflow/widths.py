"""Which operators are meant when someone scales a job: by id or name, as explain() shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.elements.errors import PlanError

from .fusion import Stage
from .lowering import Lowering


def widths_of(
    stages: Sequence[Stage], lowering: Lowering, ids: Sequence[str], overrides: Mapping[str, int]
) -> dict[int, int]:
    """Parallelism by id() of the first node of each stage that `overrides` name.

    An id means one operator; a name all that are called so. PlanError for names that none has.
    """
    named: dict[str, list[Stage]] = {}
    known: list[str] = []
    for stage in stages:
        index = lowering.operation_of(stage)
        name = lowering.operations[index].name
        for handle in {ids[index], name}:
            named.setdefault(handle, []).append(stage)
        known.append(name if name == ids[index] else f"{name} ({ids[index]})")
    widths: dict[int, int] = {}
    for handle, width in overrides.items():
        if handle not in named:
            raise PlanError(
                f"there is no operator {handle!r} to give a parallelism\n"
                f"  There are: {', '.join(known)}"
            )
        if width < 1:
            raise PlanError(f"{handle}={width}: an operator has one subtask at least")
        widths.update((id(stage.first), width) for stage in named[handle])
    return widths
