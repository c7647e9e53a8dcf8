"""The laws of state: what every StateBackend must do, checked against plain dicts.

`check_backend(factory)` runs all laws with seeded random operations. Each law drives a fleet of
subtasks that is killed, restored from runs and rescaled between operations, so what is checked is
also that nothing is lost, doubled or misrouted by key groups. A failure names law and seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from penstock.elements.keygroup import owned_groups
from penstock.state.backend import (
    BackendFactory,
    RestoredState,
    Section,
    StateBackend,
    whole_sections,
)
from penstock.state.run import read_run, write_run

OPERATOR = "operator-under-test"
RESCALES = (2, 3, 1, 2)
"""The parallelisms that a fleet goes through; each change is a kill and a restore."""

Law = Callable[[BackendFactory, random.Random], None]


class Fleet:
    """The backends of one operator at some parallelism; `declare` is what open() would do."""

    def __init__(
        self,
        factory: BackendFactory,
        declare: Callable[[StateBackend], object],
        parallelism: int = 1,
    ) -> None:
        self._factory = factory
        self.declare = declare
        self.backends: list[StateBackend] = []
        self._start([], parallelism)

    @property
    def parallelism(self) -> int:
        """How many subtasks there are."""
        return len(self.backends)

    def seal(self) -> list[bytes]:
        """A cut through all subtasks: one run each."""
        return [write_run(whole_sections(backend.seal())) for backend in self.backends]

    def restart(self, parallelism: int, runs: Sequence[bytes] | None = None) -> None:
        """Kill all; start `parallelism` new ones from `runs`, or from a cut made now."""
        self._start(self.seal() if runs is None else runs, parallelism)

    def _start(self, runs: Sequence[bytes], parallelism: int) -> None:
        self.backends = []
        for subtask in range(parallelism):
            groups = owned_groups(subtask, parallelism)
            sections: list[Section] = []
            for run in runs:
                sections.extend(read_run(run, {OPERATOR}, groups))
            restored = RestoredState(sections, groups, subtask, parallelism)
            backend = self._factory(OPERATOR, restored)
            self.declare(backend)
            assert backend.undeclared() == []
            self.backends.append(backend)


def laws() -> dict[str, Law]:
    """Every law by its name."""
    from . import state_appended, state_logs, state_objects, state_tables

    found: dict[str, Law] = {}
    for module in (state_tables, state_appended, state_logs, state_objects):
        for name, law in vars(module).items():
            if name.startswith("law_"):
                found[name.removeprefix("law_")] = law
    return found


def check_backend(factory: BackendFactory, seeds: Sequence[int] = (1, 2, 3)) -> None:
    """Run every law with every seed; AssertionError names the first that is broken."""
    for name, law in laws().items():
        for seed in seeds:
            check_law(factory, name, law, seed)


def check_law(factory: BackendFactory, name: str, law: Law, seed: int) -> None:
    """Run one law with one seed."""
    try:
        law(factory, random.Random(f"{name}/{seed}"))
    except AssertionError as error:
        raise AssertionError(f"law {name} is broken, seed {seed}: {error}") from error
