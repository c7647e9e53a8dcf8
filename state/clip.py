"""Cutting a keyed section to a range of key groups: one contiguous slice.

Sections are sorted by `_hash`; logs, whose rows are never looked up, only by `_group`, the key
group, which costs a fraction to sort and to write.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.elements.keygroup import GROUP_SHIFT, KEY_GROUPS, KeyGroupRange

HASH_COLUMN = "_hash"
GROUP_COLUMN = "_group"


def clip_to_groups(batch: pa.RecordBatch, groups: KeyGroupRange) -> pa.RecordBatch:
    """The rows whose key groups are in `groups`; no copy."""
    if batch.schema.names[:1] == [GROUP_COLUMN]:
        found = batch.column(0).to_numpy()
        first, stop = np.searchsorted(found, [groups.start, groups.stop], side="left")
        return batch.slice(int(first), int(stop - first))
    hashes = batch.column(HASH_COLUMN).to_numpy()
    low = int(np.searchsorted(hashes, np.uint64(groups.start << GROUP_SHIFT), side="left"))
    if groups.stop >= KEY_GROUPS:
        return batch.slice(low)
    high = int(np.searchsorted(hashes, np.uint64(groups.stop << GROUP_SHIFT), side="left"))
    return batch.slice(low, high - low)


def groups_in(batch: pa.RecordBatch) -> KeyGroupRange | None:
    """The least range that holds all rows of a keyed section; None if it is not keyed."""
    if batch.schema.names[:1] == [GROUP_COLUMN]:
        found = batch.column(0)
        shift = 0
    elif HASH_COLUMN in batch.schema.names:
        found, shift = batch.column(HASH_COLUMN), GROUP_SHIFT
    else:
        return None
    if len(found) == 0:
        return KeyGroupRange(0, 0)
    return KeyGroupRange(found[0].as_py() >> shift, (found[-1].as_py() >> shift) + 1)
