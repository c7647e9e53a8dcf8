"""From a checkpoint's runs to the backends of one new subtask, at any parallelism.

State is found by operator id, keyed state by key groups, never by position (hazard 29).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.dataflow.plan import Vertex
from penstock.elements.errors import StateError
from penstock.elements.keygroup import KEY_GROUPS, KeyGroupRange
from penstock.state.backend import BackendFactory, RestoredState, Section, StateBackend
from penstock.state.log_history import LogPart
from penstock.state.run import read_run
from penstock.state.store import Store

from .messages import RunRef
from .snapshotter import restored_watermark, watermark_owner


@dataclass(frozen=True)
class RestoredSubtask:
    """One backend per operator of the chain, and each one's watermark at the cut."""

    backends: list[StateBackend]
    watermarks: list[int]


def read_reference(store: Store, run: RunRef) -> bytes:
    """The bytes of a run, verified; StateError names the object that is damaged."""
    body = run.inline or store.get(run.name)
    where = run.name or "an inline run of the manifest"
    if len(body) != run.size or zlib.crc32(body) != run.crc:
        raise StateError(
            f"{where} is damaged: {len(body)} bytes, crc {zlib.crc32(body):08x}; "
            f"the manifest says {run.size} bytes, crc {run.crc:08x}"
        )
    return body


def restore_subtask(
    vertex: Vertex,
    index: int,
    groups: KeyGroupRange,
    runs: Sequence[RunRef],
    store: Store,
    factory: BackendFactory,
    parts: Sequence[LogPart] = (),
) -> RestoredSubtask:
    """Build the backends of subtask `index` of `vertex` out of the old subtasks' runs, in order.

    The `parts` of logs are read when their operators ask for the rows.
    """
    owners = [watermark_owner(spec.id) for spec in vertex.operators]
    wanted = {*owners, *(spec.id for spec in vertex.operators)}
    sections: list[Section] = []
    for run in runs:
        sections.extend(read_run(read_reference(store, run), wanted, groups))
    backends = [
        factory(
            spec.id,
            RestoredState(
                [s for s in sections if s.operator_id == spec.id],
                groups,
                index,
                vertex.parallelism,
                [part for part in parts if part.operator_id == spec.id],
                store,
            ),
        )
        for spec in vertex.operators
    ]
    # Splits are dealt out afresh, so behind a source every old subtask's promise counts.
    span = KeyGroupRange(0, KEY_GROUPS) if vertex.operators[0].is_source else groups
    watermarks = [
        restored_watermark([s for s in sections if s.operator_id == owner], span)
        for owner in owners
    ]
    return RestoredSubtask(backends, watermarks)


def refuse_undeclared(vertex: Vertex, backends: Sequence[StateBackend]) -> None:
    """StateError when restored state has no owner after open() (hazard 29)."""
    for spec, backend in zip(vertex.operators, backends, strict=True):
        names = backend.undeclared()
        if names:
            raise StateError(
                f"{spec.name}: the checkpoint holds state {', '.join(sorted(names))} "
                "that the operator no longer declares\n"
                "  Declare it again, or give it up with --set allow_dropped_state=true."
            )
