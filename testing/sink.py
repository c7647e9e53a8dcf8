"""check_sink: kills a sink at each step of its protocol and counts what readers see.

A transactional sink must show every row exactly once: nothing before commit, nothing twice when a
commit is repeated, also by another process after a rescale, and nothing lost when a fresh run
reuses checkpoint ids (hazard 44a). A sink without `prepare` must show every row at least once.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from penstock.operators.sink import Sink
from penstock.operators.sink_processor import SinkProcessor
from penstock.state.backend import Section

from .driven_rows import comparable
from .harness import Harness

Read = Callable[[], pa.Table | Iterable[Any]]


def check_sink(sink: Sink, read: Read, rows: pa.Table | None = None) -> list[str]:
    """Raises AssertionError naming the step that failed; returns the steps that held.

    `read()` gives what a reader of the outside system sees now: a pa.Table, tuples, dicts or row
    objects. `rows` are at least 12 rows to write, by default of columns carrier and worst. What
    the outside system holds already is left aside.
    """
    return _Check(sink, read, _sample() if rows is None else rows).run()


def _sample() -> pa.Table:
    return pa.table(
        {
            "carrier": pa.array([f"carrier {i}" for i in range(12)], pa.utf8()),
            "worst": pa.array([i + 0.5 for i in range(12)], pa.float64()),
        }
    )


class _Check:
    def __init__(self, sink: Sink, read: Read, rows: pa.Table) -> None:
        assert rows.num_rows >= 12, "check_sink needs at least 12 rows"
        self._sink, self._read, self._rows = sink, read, rows.combine_chunks()
        self._before = self._seen()
        self._expected: Counter[str] = Counter()
        self._next = 0
        self._held: list[str] = []

    def run(self) -> list[str]:
        """All steps that apply to this kind of sink."""
        if not self._sink.transactional:
            self._at_least_once()
            return self._held
        self._plain()
        self._dies_before_prepare()
        self._dies_after_prepare()
        self._dies_before_commit()
        self._dies_after_commit()
        self._two_cuts_one_commit()
        self._cut_given_up()
        self._rescaled()
        self._end_of_data()
        self._fresh_after_fresh()
        return self._held

    # Steps ---------------------------------------------------------------------------------------

    def _plain(self) -> None:
        harness = self._harness()
        self._write(harness)
        self._nothing_yet("write showed rows before commit")
        harness.cut()
        self._nothing_yet("prepare showed rows before commit")
        harness.commit()
        self._all_of_it("rows appear at commit")
        harness.commit()
        self._all_of_it("a commit that comes twice to one process shows nothing twice")

    def _dies_before_prepare(self) -> None:
        harness = self._harness()
        harness.cut()
        lost = self._write(harness, expect=False)
        harness.crash()
        self._write(harness, again=lost)
        harness.cut()
        harness.commit()
        self._all_of_it("killed between write and prepare: the rows come again, once")

    def _dies_after_prepare(self) -> None:
        harness = self._harness()
        harness.cut()
        lost = self._write(harness, expect=False)
        harness.checkpoint_id += 1
        harness.processor.before_snapshot(harness.checkpoint_id)
        harness.crash()
        self._write(harness, again=lost)
        harness.cut()
        harness.commit()
        self._all_of_it("killed between prepare and a durable checkpoint: once")

    def _dies_before_commit(self) -> None:
        harness = self._harness()
        self._write(harness)
        harness.cut()
        harness.crash()
        self._all_of_it("killed between checkpoint and commit: the restart commits")
        self._write(harness)
        harness.cut()
        harness.commit()
        self._all_of_it("and goes on writing")

    def _dies_after_commit(self) -> None:
        harness = self._harness()
        self._write(harness)
        harness.cut()
        harness.commit()
        harness.crash()
        self._all_of_it("killed after commit, before it was acknowledged: the repeat does nothing")

    def _two_cuts_one_commit(self) -> None:
        harness = self._harness()
        self._write(harness)
        harness.cut()
        self._write(harness)
        harness.cut()
        harness.commit()
        self._all_of_it("one commit for two checkpoints shows both")

    def _cut_given_up(self) -> None:
        harness = self._harness()
        self._write(harness)
        harness.checkpoint_id += 1
        harness.processor.before_snapshot(harness.checkpoint_id)
        self._write(harness)
        harness.cut()
        harness.commit()
        self._all_of_it("a checkpoint that was given up is committed with the next one")

    def _rescaled(self) -> None:
        run_id = str(uuid.uuid4())
        first = [self._harness(run_id, index, 2) for index in range(2)]
        sections: list[Section] = []
        for harness in first:
            self._write(harness)
            sections += harness.cut()
        first[0].commit()
        for index in range(3):
            other = self._harness(run_id, index, 3, sections)
            other.processor.on_commit(first[0].checkpoint_id)
        self._all_of_it("killed and rescaled from 2 to 3: other processes repeat the commits")

    def _end_of_data(self) -> None:
        harness = self._harness()
        self._write(harness)
        harness.end()
        harness.cut()
        harness.commit()
        self._all_of_it("the final checkpoint after the end of data shows the rest")

    def _fresh_after_fresh(self) -> None:
        for _ in range(2):
            harness = self._harness()
            self._write(harness)
            harness.cut()
            harness.commit()
        self._all_of_it("a fresh run with the same checkpoint ids loses nothing")

    def _at_least_once(self) -> None:
        harness = self._harness()
        self._write(harness)
        harness.cut()
        self._at_least("rows are out at the checkpoint")
        lost = self._write(harness, expect=False)
        harness.crash()
        self._write(harness, again=lost)
        harness.cut()
        self._at_least("killed after write: the rows come again")

    # Means -------------------------------------------------------------------------------------

    def _harness(
        self,
        run_id: str | None = None,
        subtask: int = 0,
        parallelism: int = 1,
        restored: Iterable[Section] = (),
    ) -> Harness:
        return Harness(
            SinkProcessor(self._sink),
            run_id=run_id or str(uuid.uuid4()),
            subtask=subtask,
            parallelism=parallelism,
            restored=list(restored),
            operator_id="check_sink",
            operator_name=type(self._sink).__name__,
        )

    def _write(
        self, harness: Harness, again: pa.RecordBatch | None = None, expect: bool = True
    ) -> pa.RecordBatch:
        """Write the next few rows, in two batches; those that will count are expected."""
        if again is None:
            start = self._next % (self._rows.num_rows - 3)
            self._next += 3
            again = self._rows.slice(start, 3).combine_chunks().to_batches()[0]
        if expect:
            self._expected.update(_texts(again))
        harness.processor.process(again.slice(0, 1), 0)
        harness.processor.process(again.slice(1), 0)
        return again

    def _seen(self) -> Counter[str]:
        return Counter(_texts(self._read()))

    def _nothing_yet(self, broken: str) -> None:
        extra = self._seen() - self._before
        assert not extra, f"check_sink: {broken}: {_some(extra)}"

    def _all_of_it(self, step: str) -> None:
        seen = self._seen() - self._before
        missing, twice = self._expected - seen, seen - self._expected
        assert not missing, f"check_sink: not held: {step}: lost {_some(missing)}"
        assert not twice, f"check_sink: not held: {step}: too many of {_some(twice)}"
        self._held.append(step)

    def _at_least(self, step: str) -> None:
        missing = self._expected - (self._seen() - self._before)
        assert not missing, f"check_sink: not held: {step}: lost {_some(missing)}"
        self._held.append(step)


def _texts(rows: pa.RecordBatch | pa.Table | Iterable[Any]) -> list[str]:
    """Each row as text by its values in order, so that tuples, dicts and tables compare."""
    if isinstance(rows, pa.RecordBatch | pa.Table):
        rows = rows.to_pylist()
    return [comparable(_values(row)) for row in rows]


def _values(row: Any) -> tuple[Any, ...]:
    if isinstance(row, Mapping):
        return tuple(row.values())
    if hasattr(row, "__dataclass_fields__"):
        return tuple(getattr(row, name) for name in row.__dataclass_fields__)
    return tuple(row)


def _some(rows: Counter[str]) -> str:
    shown = ", ".join(list(rows)[:3])
    return f"{sum(rows.values())} rows, such as {shown}"
