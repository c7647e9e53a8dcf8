"""Key hash → key group → subtask: the only place that routes a key (hazard 32).

A key group is the top 12 bits of the frozen 64-bit hash. Subtask i of p owns the contiguous
groups [i * G // p, (i + 1) * G // p), so state is filtered by range when the parallelism changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    # The command line knows ranges of groups before its agent starts, and must be quick until then.
    import numpy as np
    import numpy.typing as npt

    Targets: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
    """Subtask indices, uint8 or uint16."""

KEY_GROUPS = 4096
"""G, fixed in format version 1."""
GROUP_SHIFT = 64 - 12


@dataclass(frozen=True)
class KeyGroupRange:
    """The key groups [start, stop)."""

    start: int
    stop: int

    def __contains__(self, group: int) -> bool:
        return self.start <= group < self.stop

    def holds(self, other: KeyGroupRange) -> bool:
        """Whether all groups of `other` are in this one."""
        return self.start <= other.start and other.stop <= self.stop

    def overlaps(self, other: KeyGroupRange) -> bool:
        """Whether any group is in both."""
        return self.start < other.stop and other.start < self.stop


ALL_GROUPS = KeyGroupRange(0, KEY_GROUPS)


def owned_groups(subtask: int, parallelism: int) -> KeyGroupRange:
    """The groups that subtask `subtask` of `parallelism` owns.

    >>> owned_groups(0, 1) == ALL_GROUPS
    True
    """
    assert 0 <= subtask < parallelism <= KEY_GROUPS
    return KeyGroupRange(
        subtask * KEY_GROUPS // parallelism, (subtask + 1) * KEY_GROUPS // parallelism
    )


@lru_cache(maxsize=64)
def group_to_subtask(parallelism: int) -> Targets:
    """A table from key group to subtask; uint8 up to 256 subtasks, so sorting is a radix sort."""
    import numpy as np

    table: Targets = np.empty(KEY_GROUPS, np.uint8 if parallelism <= 256 else np.uint16)
    for subtask in range(parallelism):
        groups = owned_groups(subtask, parallelism)
        table[groups.start : groups.stop] = subtask
    table.setflags(write=False)
    return table


def subtask_of(hashes: npt.NDArray[np.uint64], parallelism: int) -> Targets:
    """The subtask that owns each hash."""
    import numpy as np

    return np.take(group_to_subtask(parallelism), hashes >> np.uint64(GROUP_SHIFT))
