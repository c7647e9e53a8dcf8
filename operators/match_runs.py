"""The automaton behind `match`: pure, rows of one key in order in, matches out.

1. Of all ways to match from one first row the one is taken that a backtracking search would find
   first: it repeats as often as it can, then goes on to the next step, then lets rows lie between.
2. A match is given as soon as no better way from its first row is left, or when its time is over.
3. Skip "past last row": a match uses up its rows, and earlier first rows go first. "to next row":
   every row may begin a match of its own.
4. Where conditions refer to rows matched before, `told` answers for each thread, and threads are
   alike only if it says so of what they note. Then their number has no bound but WAYS_MAX.
A thread is (step, rows taken of it, the step whose gap it is in or -1); rows go by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from penstock.elements.errors import StateError

from .match_pattern import Pattern

Skip = Literal["past last row", "to next row"]
Captured = tuple[tuple[str, Any], ...]
"""(variable, what is kept of the row), in order."""


WAYS_MAX = 10_000
"""Ways to match from one first row that differ in what conditions ask of them."""


class Thread(NamedTuple):
    """One way to match so far."""

    step: int
    taken: int
    gap: int
    rows: Captured
    last: int
    """The number of the last row taken."""
    noted: tuple[Any, ...] = ()
    """What conditions ask of the rows so far."""


@dataclass
class Run:
    """All ways to match that begin with one row, best first."""

    start_ns: int
    number: int
    threads: list[Thread]
    best: Thread | None = None


@dataclass
class KeyRuns:
    """What is remembered of a key between rows."""

    runs: list[Run] = field(default_factory=list)
    number: int = 0
    """That of the next row."""
    used: int = -1
    """Rows up to this one belong to a match already."""


class Match(NamedTuple):
    """A match, and the event time at which it was certain."""

    rows: Captured
    time_ns: int


class Told(Protocol):
    """What is known of the row at hand where conditions refer to rows matched before."""

    def is_a(self, thread: Thread, variable: str) -> bool:
        """Whether the row meets the condition, behind the rows of this thread."""

    def noted(self, noted: tuple[Any, ...], variable: str) -> tuple[Any, ...]:
        """What a thread notes once the row is taken as `variable`; of a first row, () comes in."""

    def mark(self, thread: Thread) -> tuple[Any, ...]:
        """Equal if all conditions to come will find the same of two threads in one place."""


class Matcher:
    """Runs one pattern. `is_a(variable)` says of the row at hand whether it meets a condition."""

    def __init__(self, pattern: Pattern, within_ns: int, skip: Skip) -> None:
        self._steps, self._never = pattern.steps, pattern.never
        self._within_ns, self._skip = within_ns, skip
        self._first = self.first
        self._tried: dict[tuple[int, int, int], frozenset[str]] = {}

    @property
    def first(self) -> list[str]:
        """The variables that a match may begin with."""
        return [self._steps[target].variable for target, _ in self._targets(-1, -1)]

    def tried(self, thread: Thread) -> frozenset[str]:
        """The variables that a row behind this thread may be tried as."""
        place = thread[:3]
        found = self._tried.get(place)
        if found is None:
            found = self._tried[place] = frozenset(self._tried_at(thread))
        return found

    def _tried_at(self, thread: Thread) -> set[str]:
        here = self._steps[thread.step]
        found = set()
        if thread.gap < 0 and (here.most is None or thread.taken < here.most):
            found.add(here.variable)
        if thread.gap < 0 and thread.taken < here.least:
            return found
        for target, gap in self._targets(thread.step, thread.gap):
            found |= {self._steps[target].variable} if target < len(self._steps) else set()
            found |= self._banned(gap) if gap >= 0 else set()
        return found

    def row(
        self,
        state: KeyRuns,
        time_ns: int,
        kept: Any,
        is_a: Callable[[str], bool],
        told: Told | None = None,
    ) -> Iterator[Match]:
        """The key's next row; `kept` is what a match shall know of it.

        `told`: conditions refer to matched rows; then `is_a` answers for a first row only.
        """
        yield from self.time(state, time_ns - 1)
        number, state.number = state.number, state.number + 1
        for run in state.runs:
            self._step(run, number, kept, is_a, told)
        if self._skip == "to next row" or number > state.used:
            begun = Run(time_ns, number, [])
            for target, variable in enumerate(self._first):
                if is_a(variable):
                    noted = told.noted((), variable) if told is not None else ()
                    rows = ((variable, kept),)
                    begun.threads.append(Thread(target, 1, -1, rows, number, noted))
            self._settle(begun)
            if begun.threads or begun.best is not None:
                state.runs.append(begun)
        yield from self._resolved(state, time_ns)

    def time(self, state: KeyRuns, time_ns: int) -> Iterator[Match]:
        """Event time has passed `time_ns`: runs whose time is over come to their end."""
        while True:
            over = [r for r in state.runs if r.threads and r.start_ns + self._within_ns <= time_ns]
            if not over:
                return
            ends_ns = min(run.start_ns for run in over) + self._within_ns
            for run in over:
                if run.start_ns + self._within_ns == ends_ns:
                    done = next((t for t in run.threads if self._accepts(t)), None)
                    run.best = done or run.best
                    run.threads = []
            yield from self._resolved(state, ends_ns)

    def next_ns(self, state: KeyRuns) -> int | None:
        """When the time of the oldest run is over."""
        starts = [run.start_ns for run in state.runs if run.threads]
        return min(starts) + self._within_ns if starts else None

    # Threads -----------------------------------------------------------------------------------

    def _step(
        self,
        run: Run,
        number: int,
        kept: Any,
        is_a: Callable[[str], bool],
        told: Told | None,
    ) -> None:
        found: list[Thread] = []
        seen: set[tuple[Any, ...]] = set()
        for thread in run.threads:
            if told is not None:
                is_a = partial(told.is_a, thread)
            for after in self._after(thread, number, kept, is_a, told):
                place = after[:3] if told is None else (*after[:3], *told.mark(after))
                if place not in seen:
                    seen.add(place)
                    found.append(after)
            if self._accepts(thread) and not self._never:
                # Everything behind this one is worse than ending here.
                run.best = thread
                break
        if told is not None and len(found) > WAYS_MAX:
            raise StateError(
                f"match: more than {WAYS_MAX:,} ways to match from one row are open at once\n"
                "  Conditions refer to matched rows, so each choice of rows must be kept. Choose\n"
                '  fewer: a shorter within=, fewer steps behind "...", stricter conditions.'
            )
        run.threads = found
        self._settle(run)

    def _settle(self, run: Run) -> None:
        """A thread that can only end beats all behind it."""
        if self._never:
            return
        for at, thread in enumerate(run.threads):
            if self._accepts(thread) and not self._goes_on(thread):
                if at == 0:
                    run.best, run.threads = thread, []
                else:
                    del run.threads[at + 1 :]
                return

    def _after(
        self,
        thread: Thread,
        number: int,
        kept: Any,
        is_a: Callable[[str], bool],
        told: Told | None,
    ) -> Iterator[Thread]:
        """Where a thread may be behind this row, best first."""
        step, taken, gap, rows, _, noted = thread
        here = self._steps[step]
        if gap < 0 and (here.most is None or taken < here.most) and is_a(here.variable):
            # Beyond the least number counting makes no difference, if there is no most.
            counted = min(taken + 1, max(here.least, 1)) if here.most is None else taken + 1
            more = told.noted(noted, here.variable) if told is not None else noted
            yield Thread(step, counted, -1, (*rows, (here.variable, kept)), number, more)
        if gap < 0 and taken < here.least:
            return
        gaps = []
        for target, first_gap in self._targets(step, gap):
            variable = self._steps[target].variable if target < len(self._steps) else ""
            if variable and is_a(variable):
                more = told.noted(noted, variable) if told is not None else noted
                yield Thread(target, 1, -1, (*rows, (variable, kept)), number, more)
            gaps += [first_gap] if first_gap >= 0 and first_gap not in gaps else []
        for each in gaps:
            if not any(is_a(variable) for variable in self._banned(each)):
                yield thread._replace(gap=each)

    def _targets(self, step: int, gap: int) -> Iterator[tuple[int, int]]:
        """(step that may come next, the gap that may lie before it or -1), nearest first.

        In a gap, what follows it may come next, or what follows that where it is optional.
        """
        at = gap if gap >= 0 else step + 1
        while at < len(self._steps):
            here = self._steps[at]
            yield at, at if here.gap or at == gap else -1
            if here.least:
                return
            at += 1
        if self._never:
            yield at, at

    def _banned(self, gap: int) -> frozenset[str]:
        return self._never if gap == len(self._steps) else self._steps[gap].banned

    def _accepts(self, thread: Thread) -> bool:
        """Whether it might end here, all further steps being optional."""
        if thread.taken < self._steps[thread.step].least:
            return False
        if thread.gap >= 0 and thread.gap < len(self._steps):
            return False
        return not any(step.least for step in self._steps[thread.step + 1 :])

    def _goes_on(self, thread: Thread) -> bool:
        most = self._steps[thread.step].most
        return most is None or thread.taken < most or thread.step + 1 < len(self._steps)

    def _resolved(self, state: KeyRuns, time_ns: int) -> Iterator[Match]:
        """Give matches that no other can take the place of."""
        if self._skip == "to next row":
            for run in state.runs:
                if not run.threads and run.best is not None:
                    yield Match(run.best.rows, time_ns)
            state.runs = [run for run in state.runs if run.threads]
            return
        while state.runs and not state.runs[0].threads:
            first = state.runs.pop(0)
            if first.best is not None:
                yield Match(first.best.rows, time_ns)
                state.used = first.best.last
                state.runs = [run for run in state.runs if run.number > state.used]
