"""Cutting a keyed section, sorted by `_hash`, to a range of key groups: one contiguous slice."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.elements.keygroup import GROUP_SHIFT, KEY_GROUPS, KeyGroupRange

HASH_COLUMN = "_hash"


def clip_to_groups(batch: pa.RecordBatch, groups: KeyGroupRange) -> pa.RecordBatch:
    """The rows whose key groups are in `groups`; no copy."""
    hashes = batch.column(HASH_COLUMN).to_numpy()
    low = int(np.searchsorted(hashes, np.uint64(groups.start << GROUP_SHIFT), side="left"))
    if groups.stop >= KEY_GROUPS:
        return batch.slice(low)
    high = int(np.searchsorted(hashes, np.uint64(groups.stop << GROUP_SHIFT), side="left"))
    return batch.slice(low, high - low)
