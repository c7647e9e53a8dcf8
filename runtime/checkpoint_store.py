"""The durable side of checkpoints: which one to go on from, and how one becomes complete.

Order of a completion (hazards 11, 15, 16): state too large for the manifest is written, every run
is seen to exist with its size, the manifest is written, all is synced, the log entry is created.
Only then does the checkpoint count.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

import msgspec

from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import StateError
from penstock.state.store import Store

from .checkpoint import StoreCheckpoint
from .failpoint import failpoint
from .log import Checkpointed, History, JobLog, Takeover
from .manifest import (
    Manifest,
    check_runs,
    decode_manifest,
    encode_manifest,
    inline_surplus,
    manifest_name,
    manifest_of,
    refuse_changed_end,
    refuse_dropped_state,
)
from .messages import Acknowledge, RunRef
from .retention import RUNS, Retention

log = logging.getLogger("penstock.checkpoint")


def read_manifest(store: Store, entry: Checkpointed, verify: bool) -> Manifest:
    """The manifest of a log entry; with `verify` every byte of its state was read and is sound."""
    manifest = decode_manifest(store.get(entry.manifest), entry.manifest)
    if manifest.id != entry.id or manifest.generation != entry.generation:
        raise StateError(f"{entry.manifest} is damaged: it describes another checkpoint")
    check_runs(store, manifest.runs, read=verify)
    return manifest


def choose_checkpoint(
    store: Store, history: History, settings: JobSettings
) -> tuple[Checkpointed, Manifest] | None:
    """The checkpoint to go on from, by the rule of hazard 14; None: from the start.

    Falling back is automatic only past checkpoints that committed nothing to any sink.
    """
    if settings.restore_from is not None:
        return _choose_by_hand(store, history, settings.restore_from, settings.accept_duplicates)
    for index in reversed(range(len(history.line))):
        entry = history.line[index]
        try:
            return entry, read_manifest(store, entry, verify=True)
        except StateError as error:
            before = history.line[index - 1].id if index else None
            if entry.owes or before is None:
                raise StateError(_damage(entry.id, before, error)) from error
            log.warning("checkpoint %d cannot be restored, going back: %s", entry.id, error)
    return None


def _choose_by_hand(
    store: Store, history: History, checkpoint_id: int, accept_duplicates: bool
) -> tuple[Checkpointed, Manifest]:
    known = [entry.id for entry in history.line if store.size(entry.manifest) is not None]
    if checkpoint_id not in known:
        have = ", ".join(map(str, known)) or "none"
        raise StateError(
            f"restore_from={checkpoint_id}: there is no such checkpoint; kept are: {have}"
        )
    index = next(i for i, entry in enumerate(history.line) if entry.id == checkpoint_id)
    later = [entry.id for entry in history.line[index + 1 :] if entry.owes]
    if later and not accept_duplicates:
        raise StateError(
            f"restore_from={checkpoint_id}: checkpoint {later[-1]} was committed to sinks after it"
            ", so the rows in between would be written again\n"
            "  To accept that, add  --set accept_duplicates=true"
        )
    entry = history.line[index]
    return entry, read_manifest(store, entry, verify=True)


def _damage(checkpoint_id: int, before: int | None, error: StateError) -> str:
    text = f"checkpoint {checkpoint_id} cannot be restored: {error}\n"
    if before is None:
        return text + "  There is none before it. --fresh begins anew."
    return text + (
        f"  It was committed to sinks: going back to checkpoint {before} writes all rows that "
        f"came after that one again.\n  To accept that:  "
        f"--set restore_from={before} --set accept_duplicates=true"
    )


class CheckpointStore:
    """One leader's checkpoints. Requires: `take_over` was called first."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        settings: JobSettings,
        token: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self.store = store
        self.log = JobLog(store, token())
        self._plan = plan
        self._settings = settings
        self._token = token
        self._retention = Retention(store, self.log, settings.retained_checkpoints)
        self._announced: dict[str, int] = {}
        self.run_id = ""
        self.manifest: Manifest | None = None
        """Of the last complete checkpoint: what the next attempt starts from."""

    def take_over(self) -> Takeover | None:
        """Become the job's leader; None if it has finished already.

        Raises StateError if no checkpoint can be restored or the program lacks the owner of state.
        """
        failpoint("before-takeover", "controller")
        takeover = self.log.take_over(self._token(), self._choose)
        if takeover is not None:
            self.run_id = takeover.run_id
            failpoint("after-takeover", "controller")
        return takeover

    def _choose(self, history: History) -> Checkpointed | None:
        chosen = choose_checkpoint(self.store, history, self._settings)
        if chosen is None:
            self.manifest = None
            return None
        entry, self.manifest = chosen
        refuse_changed_end(self.manifest, self._plan)
        if not self._settings.allow_dropped_state:
            refuse_dropped_state(self.manifest, self._plan)
        return entry

    def announce(self, ack: Acknowledge) -> None:
        """A subtask has uploaded runs: keep them until a checkpoint is complete that may name them,
        or the attempt is over (hazard 15)."""
        names = [part.run for part in ack.parts]
        if ack.run is not None and not ack.run.inline:
            names.append(ack.run.name)
        self._announced.update(dict.fromkeys(names, ack.checkpoint_id))

    def attempt_over(self) -> None:
        """Nothing that its subtasks announced will be referred to again."""
        self._announced.clear()

    def complete(self, order: StoreCheckpoint, attempt: int) -> Manifest:
        """Make it count. StateError: it does not; Fenced: nothing of this leader counts any more;
        UncertainLog, a StateError: it may count, and this leader must not go on."""
        failpoint("before-manifest", "controller")
        manifest = manifest_of(
            self._plan,
            self.run_id,
            order.checkpoint_id,
            self.log.generation,
            attempt,
            int(order.flags),
            order.acknowledged,
            self.manifest.seen_splits if self.manifest else {},
        )
        manifest = self._spill(manifest)
        known = {run.name for run in self.manifest.runs} if self.manifest else set()
        check_runs(self.store, [run for run in manifest.runs if run.name not in known])
        name = manifest_name(manifest.id, manifest.generation, attempt)
        body = encode_manifest(manifest)
        if not self.store.put(name, body) and self.store.get(name) != body:
            raise StateError(f"{name} exists already with other content")
        self.store.sync()
        failpoint("after-manifest", "controller")
        failpoint("before-log", "controller")
        self.log.append_checkpoint(attempt, manifest.id, name, manifest.owes)
        failpoint("after-log", "controller")
        self.manifest = manifest
        # Runs of checkpoints up to this one are named by it, or never will be by any.
        self._announced = {run: n for run, n in self._announced.items() if n > manifest.id}
        return manifest

    def _spill(self, manifest: Manifest) -> Manifest:
        surplus = inline_surplus(manifest)
        if not surplus:
            return manifest
        records = list(manifest.subtasks)
        for index in surplus:
            run = records[index].run
            assert run is not None
            name = f"{RUNS}/{self._token()}"
            self.store.put(name, run.inline)
            records[index] = msgspec.structs.replace(
                records[index], run=RunRef(name, run.size, run.crc)
            )
        return msgspec.structs.replace(manifest, subtasks=records)

    def collect_garbage(self, owed_since: int | None) -> None:
        """Delete what no checkpoint needs; a failure only leaves it for the next time."""
        try:
            gone = self._retention.collect(owed_since, self._announced)
        except StateError as error:
            log.warning("old checkpoints could not be deleted: %s", error)
        else:
            log.debug("deleted %d objects", len(gone))
