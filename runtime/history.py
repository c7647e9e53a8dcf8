"""Reads a job's past from its directory, for people and tests; changes nothing."""

from __future__ import annotations

import os

from penstock.state.store import LocalStore

from .log import Attempted, read_entries


def restored_checkpoints(state_dir: str, job: str) -> int:
    """How often the job went on from a checkpoint instead of from the start."""
    root = os.path.join(state_dir, job)
    if not os.path.isdir(root):
        return 0
    store = LocalStore(root, durability="process")
    try:
        entries = list(read_entries(store))
    finally:
        store.close()
    return sum(isinstance(entry, Attempted) and entry.restores > 0 for entry in entries)
