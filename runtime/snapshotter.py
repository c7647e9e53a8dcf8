"""The asynchronous half of a snapshot: build sections, write the run, acknowledge.

One thread per subtask. It runs only Arrow kernels and file writes, which release the GIL. When it
fails the checkpoint is declined; the subtask goes on, and the next cut carries again all state that
no complete checkpoint has.
"""

from __future__ import annotations

import queue
import threading
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from penstock.elements.clock import Clock
from penstock.elements.keygroup import KeyGroupRange
from penstock.elements.signals import WATERMARK_MIN
from penstock.state.backend import Section, Snapshot
from penstock.state.log_history import LogPart
from penstock.state.log_parts import store_log
from penstock.state.run import encode_run
from penstock.state.store import Store

from .control import ControlLink
from .failpoint import failpoint
from .messages import INLINE_STATE_BYTES_MAX, Acknowledge, Decline, RunRef

_WATERMARK_SCHEMA = pa.schema(
    [("first_group", pa.int32()), ("stop_group", pa.int32()), ("watermark", pa.int64())]
)


@dataclass(frozen=True)
class SealedSubtask:
    """What the loop froze at a cut, and what it knows about it."""

    checkpoint_id: int
    operators: Sequence[tuple[str, Snapshot]]
    watermarks: Sequence[tuple[str, int]]
    """Of each operator of the chain: in another program it may stand in another chain."""
    watermark: int
    finished: bool
    final: bool
    """All subtasks have ended: what they held by key is of no use to anybody any more."""
    seen_splits: dict[str, list[str]]
    owes_commit: bool
    aligned_ms: float
    sealed_ms: float


def watermark_owner(operator_id: str) -> str:
    """The pseudo operator under which an operator's watermark is stored (hazard 23)."""
    return f"{operator_id}#watermark"


def watermark_section(operator_id: str, groups: KeyGroupRange, watermark: int) -> Section:
    """The watermark at the cut, with the key groups it holds for."""
    batch = pa.record_batch([[groups.start], [groups.stop], [watermark]], schema=_WATERMARK_SCHEMA)
    return Section(watermark_owner(operator_id), "watermark", "operator", batch)


def restored_watermark(sections: Sequence[Section], groups: KeyGroupRange) -> int:
    """The least watermark of the old subtasks whose key groups overlap `groups`.

    WATERMARK_MIN if there are none: the operator is new.
    """
    found = [
        int(row["watermark"])
        for section in sections
        for row in section.batch.to_pylist()
        if groups.overlaps(KeyGroupRange(row["first_group"], row["stop_group"]))
    ]
    return min(found, default=WATERMARK_MIN)


class Snapshotter:
    """Takes sealed subtasks, acknowledges durable ones."""

    def __init__(
        self, store: Store, link: ControlLink, groups: KeyGroupRange, clock: Clock, name: str
    ) -> None:
        self._store = store
        self._link = link
        self._groups = groups
        self._clock = clock
        self._name = name
        self._jobs: queue.SimpleQueue[SealedSubtask] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="snapshotter", daemon=True).start()

    def submit(self, sealed: SealedSubtask) -> None:
        """Queue; checkpoints of one subtask are written in order."""
        self._jobs.put(sealed)

    def _run(self) -> None:
        while True:
            sealed = self._jobs.get()
            try:
                self._write(sealed)
            except Exception as error:
                # A full disk or a lost store must not end the subtask: the coordinator counts
                # declined checkpoints and decides.
                reason = f"{self._name}: {type(error).__name__}: {error}"
                self._link.send(Decline(sealed.checkpoint_id, reason))

    def _write(self, sealed: SealedSubtask) -> None:
        sections = [watermark_section(i, self._groups, mark) for i, mark in sealed.watermarks]
        for _, snapshot in sealed.operators:
            sections.extend(snapshot.lists() if sealed.final else snapshot.sections())
        logs = [log for _, snapshot in sealed.operators for log in snapshot.logs()]
        failpoint("before-upload", self._name)
        parts: list[LogPart] = []
        written = 0
        for log in logs if not sealed.final else []:
            section, named, size = store_log(self._store, log, self._groups)
            sections.append(section)
            parts += named
            written += size
        body = memoryview(encode_run(sections))
        crc = zlib.crc32(body)
        if len(body) <= INLINE_STATE_BYTES_MAX:
            run = RunRef("", len(body), crc, bytes(body))
        else:
            run = RunRef(f"run/{uuid.uuid4().hex}", len(body), crc)
            self._store.put(run.name, body)
        failpoint("after-upload", self._name)
        failpoint("before-acknowledge", self._name)
        self._link.send(
            Acknowledge(
                checkpoint_id=sealed.checkpoint_id,
                run=run,
                finished=sealed.finished,
                watermark=sealed.watermark,
                seen_splits=sealed.seen_splits,
                owes_commit=sealed.owes_commit,
                aligned_ms=sealed.aligned_ms,
                sealed_ms=sealed.sealed_ms,
                bytes=len(body) + written,
                parts=parts,
            )
        )
        failpoint("after-acknowledge", self._name)
