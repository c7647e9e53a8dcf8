"""Non-keyed state of the memory backend, and how it is dealt out after a rescale."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from .backend import OperatorList, Redistribution, RestoredState, Section

ITEM_SCHEMA = pa.schema([("index", pa.int64()), ("item", pa.large_binary())])


class MemoryList(OperatorList):
    """A list of small items."""

    def __init__(self, operator_id: str, name: str, redistribute: Redistribution) -> None:
        self._operator_id = operator_id
        self._name = name
        self._redistribute = redistribute
        self._items: tuple[bytes, ...] = ()

    def items(self) -> list[bytes]:
        return list(self._items)

    def replace(self, items: Sequence[bytes]) -> None:
        self._items = tuple(bytes(item) for item in items)

    def restore(self, sections: Sequence[Section], restored: RestoredState) -> None:
        """Take this subtask's share of what all old subtasks held."""
        if self._redistribute == "broadcast":
            # All held the same, so one copy is enough; an old subtask that had nothing to say
            # (it had finished before it saw a row) does not erase the others'.
            sections = [section for section in sections if section.batch.num_rows][:1]
        whole: list[bytes] = []
        for section in sections:
            whole.extend(section.batch.column("item").to_pylist())
        if self._redistribute == "list":
            whole = whole[restored.subtask :: restored.parallelism]
        self._items = tuple(whole)

    def seal(self) -> SealedList:
        """The items as of now."""
        return SealedList(self._operator_id, self._name, self._redistribute, self._items)


class SealedList:
    """Items at a cut."""

    def __init__(
        self,
        operator_id: str,
        name: str,
        redistribute: Redistribution,
        items: tuple[bytes, ...],
    ) -> None:
        self._operator_id = operator_id
        self._name = name
        self._redistribute = redistribute
        self._items = items

    def section(self) -> Section:
        """One row per item."""
        items = pa.array(self._items, pa.large_binary())
        index = pa.array(range(len(self._items)), pa.int64())
        batch = pa.RecordBatch.from_arrays([index, items], schema=ITEM_SCHEMA)
        declared = {"redistribute": self._redistribute}
        return Section(self._operator_id, self._name, "operator", batch, declared)
