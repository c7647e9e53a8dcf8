"""Cutting a keyed section to a range of key groups.

Sections are sorted by `_hash`, so that it is one contiguous slice. The rows of logs are never
looked up: they lie as they came, with their key group in `_group`, which costs less to write.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.elements.keygroup import GROUP_SHIFT, KEY_GROUPS, KeyGroupRange

HASH_COLUMN = "_hash"
GROUP_COLUMN = "_group"


def clip_to_groups(batch: pa.RecordBatch, groups: KeyGroupRange) -> pa.RecordBatch:
    """The rows whose key groups are in `groups`; no copy of a section that is sorted."""
    if _is_log(batch):
        found = batch.column(0).to_numpy()
        mine = (found >= groups.start) & (found < groups.stop)
        return batch if mine.all() else batch.filter(pa.array(mine))
    hashes = batch.column(HASH_COLUMN).to_numpy()
    low = int(np.searchsorted(hashes, np.uint64(groups.start << GROUP_SHIFT), side="left"))
    if groups.stop >= KEY_GROUPS:
        return batch.slice(low)
    high = int(np.searchsorted(hashes, np.uint64(groups.stop << GROUP_SHIFT), side="left"))
    return batch.slice(low, high - low)


def groups_in(batch: pa.RecordBatch) -> KeyGroupRange | None:
    """The least range that holds all rows of a keyed section; None if it is not keyed."""
    if not _is_log(batch) and HASH_COLUMN not in batch.schema.names:
        return None
    if batch.num_rows == 0:
        return KeyGroupRange(0, 0)
    if _is_log(batch):
        found = batch.column(0).to_numpy()
        return KeyGroupRange(int(found.min()), int(found.max()) + 1)
    hashes = batch.column(HASH_COLUMN).to_numpy()
    return KeyGroupRange(int(hashes[0]) >> GROUP_SHIFT, (int(hashes[-1]) >> GROUP_SHIFT) + 1)


def _is_log(batch: pa.RecordBatch) -> bool:
    names: list[str] = batch.schema.names
    return names[:1] == [GROUP_COLUMN]
