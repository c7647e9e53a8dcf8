"""Reads a job's past from its directory, for people and tests; changes nothing."""

from __future__ import annotations

import os

from penstock.state.store import LocalStore

from .log import Attempted, Checkpointed, Entry, read_entries


def restored_checkpoints(state_dir: str, job: str) -> int:
    """How often the job went on from a checkpoint instead of from the start."""
    entries = _entries(state_dir, job)
    return sum(isinstance(entry, Attempted) and entry.restores > 0 for entry in entries)


def complete_checkpoints(state_dir: str, job: str) -> int:
    """How many checkpoints its log holds."""
    return sum(isinstance(entry, Checkpointed) for entry in _entries(state_dir, job))


def _entries(state_dir: str, job: str) -> list[Entry]:
    root = os.path.join(state_dir, job)
    if not os.path.isdir(root):
        return []
    store = LocalStore(root, durability="process")
    try:
        return list(read_entries(store))
    finally:
        store.close()
