"""Each operator comes back at the watermark it had, in whatever chain it stands (hazards 23, 29).

Without that, rows that were late before a restart would open windows that have fired already.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_subtask import SCHEMA, Driven, Sum, barrier

from penstock.dataflow.plan import Link, OperatorSpec, Vertex
from penstock.elements.keygroup import owned_groups
from penstock.elements.signals import WATERMARK_MIN, Kind
from penstock.operators.processor import MAIN
from penstock.runtime.channel import Message
from penstock.runtime.messages import RunRef
from penstock.runtime.restore import restore_subtask
from penstock.runtime.snapshotter import restored_watermark, watermark_section
from penstock.state.memory import memory_backend
from penstock.state.run import write_run
from penstock.state.store import LocalStore


def vertex(*ids: str, source: bool = False, parallelism: int = 1) -> Vertex:
    """A chain of operators."""
    operators = tuple(
        OperatorSpec(i, i, Sum(), {MAIN: SCHEMA}, stateful=True, is_source=source and i == ids[0])
        for i in ids
    )
    links = tuple(Link(at, MAIN, at + 1) for at in range(len(ids) - 1))
    return Vertex(ids[0], ids[0], operators, links, parallelism)


def run_at_40(folder: Path) -> RunRef:
    driven = Driven(folder)
    for number in (0, 1):
        driven.give(number, Message(Kind.WATERMARK, 40), barrier(1))
    driven.settle()
    run = driven.acknowledged().run
    assert run is not None
    return run


@pytest.mark.parametrize("chain", [("sum",), ("new", "sum"), ("sum", "new")])
def test_an_operator_keeps_its_watermark_in_another_chain(
    chain: tuple[str, ...], tmp_path: Path
) -> None:
    restored = restore_subtask(
        vertex(*chain),
        0,
        owned_groups(0, 1),
        [run_at_40(tmp_path)],
        LocalStore(str(tmp_path)),
        memory_backend,
    )
    expected = {"sum": 40, "new": WATERMARK_MIN}
    assert restored.watermarks == [expected[name] for name in chain]


def test_a_restored_subtask_does_not_go_back(tmp_path: Path) -> None:
    again = Driven(tmp_path, [run_at_40(tmp_path)])
    for number in (0, 1):
        again.give(number, Message(Kind.WATERMARK, 30))
    assert again.processor.watermarks == []
    for number in (0, 1):
        again.give(number, Message(Kind.WATERMARK, 50))
    assert again.processor.watermarks == [50]


def section_run(marks: list[int]) -> list[RunRef]:
    """What subtasks of a source left behind at these watermarks."""
    import zlib

    runs = []
    for index, mark in enumerate(marks):
        body = write_run([watermark_section("s", owned_groups(index, len(marks)), mark)])
        runs.append(RunRef("", len(body), zlib.crc32(body), body))
    return runs


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_a_source_promises_no_more_than_the_slowest_of_all_old_subtasks(
    parallelism: int, tmp_path: Path
) -> None:
    """Its splits are dealt out afresh: any of them may be the slow one."""
    for index in range(parallelism):
        restored = restore_subtask(
            vertex("s", source=True, parallelism=parallelism),
            index,
            owned_groups(index, parallelism),
            section_run([70, 50]),
            LocalStore(str(tmp_path)),
            memory_backend,
        )
        assert restored.watermarks == [50]


def test_elsewhere_only_old_subtasks_of_the_same_key_groups_count() -> None:
    sections = [
        watermark_section("x", owned_groups(index, 2), mark) for index, mark in enumerate((70, 50))
    ]
    assert restored_watermark(sections, owned_groups(0, 4)) == 70
    assert restored_watermark(sections, owned_groups(3, 4)) == 50
    assert restored_watermark(sections, owned_groups(0, 1)) == 50
