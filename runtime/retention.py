"""Deletes checkpoints that are no longer needed, and state that none of them names (hazard 15).

1. The newest checkpoints stay, and all since the oldest whose commits are still owed (hazard 12).
2. A run stays while a kept manifest names it, while a subtask of this attempt has announced it, and
   until it is old: it may lie between its upload and its acknowledgement.
3. Runs that only deleted manifests named go at once.
4. Parts of logs stay for one checkpoint more: one that is under way while a commit is still on its
   way to a subtask names what that subtask knows of.
5. What a newer generation made is never touched: everything that is deleted was listed before the
   log was seen to hold nothing newer.
Log entries are never deleted (hazard 11).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from penstock.elements.errors import StateError
from penstock.state.store import STAGING, Store, Stored

from .log import Checkpointed, JobLog
from .manifest import FOLDER, decode_manifest, manifest_generation

RUNS = "run"
"""The folder of sealed state."""
AGE_NS_MIN = 30 * 60 * 1_000_000_000
"""Unnamed objects younger than this stay: longer than any upload and its acknowledgement take."""


@dataclass(frozen=True)
class Listing:
    """What lay in the store at one moment."""

    manifests: Sequence[Stored]
    runs: Sequence[Stored]
    staging: Sequence[Stored]
    now_ns: int


def kept_checkpoints(
    line: Sequence[Checkpointed], retained: int, owed_since: int | None
) -> list[Checkpointed]:
    """The newest `retained`, at least one, and all from the oldest owed commit on."""
    newest = {entry.seq for entry in line[-max(1, retained) :]}
    return [
        entry
        for entry in line
        if entry.seq in newest or (owed_since is not None and entry.id >= owed_since)
    ]


def retired_manifests(listing: Listing, kept: Set[str], generation: int) -> list[str]:
    """Manifests that may go: not kept, and not of a newer leader."""
    return [
        stored.name
        for stored in listing.manifests
        if stored.name not in kept and manifest_generation(stored.name) <= generation
    ]


def dead_objects(listing: Listing, live: Set[str], retired: Set[str], age_ns_min: int) -> list[str]:
    """Runs and half-written objects that may go. `retired` are runs of retired manifests."""
    oldest_ns = listing.now_ns - age_ns_min
    runs = [
        stored.name
        for stored in listing.runs
        if stored.name not in live and (stored.name in retired or stored.modified_ns < oldest_ns)
    ]
    return runs + [stored.name for stored in listing.staging if stored.modified_ns < oldest_ns]


class Retention:
    """Collects for one leader. `retained` checkpoints are kept at least."""

    def __init__(
        self, store: Store, log: JobLog, retained: int, age_ns_min: int = AGE_NS_MIN
    ) -> None:
        self._store = store
        self._log = log
        self._retained = retained
        self._age_ns_min = age_ns_min
        self._runs: dict[str, frozenset[str]] = {}
        self._parts: dict[str, frozenset[str]] = {}
        self._lingering: frozenset[str] = frozenset()

    def collect(self, owed_since: int | None, announced: Iterable[str]) -> list[str]:
        """Delete what may go; returns the names. StateError if the store fails or a kept manifest
        cannot be read: then nothing was deleted."""
        listing = Listing(
            self._store.list(FOLDER),
            self._store.list(RUNS),
            self._store.list(STAGING),
            self._store.now_ns(),
        )
        kept = kept_checkpoints(self._log.history.line, self._retained, owed_since)
        names = {entry.manifest for entry in kept}
        present = {stored.name for stored in listing.manifests}
        live = set(announced).union(*(self._runs_of(name) for name in names & present))
        retired = retired_manifests(listing, names, self._log.generation)
        retired_runs = self._lingering.union(*(self._runs_if_readable(name) for name in retired))
        lingering = frozenset().union(*(self._parts.get(name, frozenset()) for name in retired))
        live |= lingering
        dead = dead_objects(listing, live, retired_runs, self._age_ns_min)
        if self._log.is_fenced():
            return []
        # Manifests first: one that is left dangling by a crash in between would be a lie.
        for name in (*retired, *dead):
            self._store.delete(name)
            self._runs.pop(name, None)
            self._parts.pop(name, None)
        self._lingering = lingering
        return [*retired, *dead]

    def _runs_of(self, name: str) -> frozenset[str]:
        if name not in self._runs:
            manifest = decode_manifest(self._store.get(name), name)
            self._runs[name] = frozenset(run.name for run in manifest.runs if not run.inline)
            self._parts[name] = frozenset(part.run for part in manifest.parts)
        return self._runs[name]

    def _runs_if_readable(self, name: str) -> frozenset[str]:
        try:
            return self._runs_of(name)
        except StateError:
            # It is damaged and about to go; its runs go by age.
            return frozenset()
