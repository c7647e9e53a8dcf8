"""The log of a simulated subtask: the real LogHistory around rows that are plain numbers.

What it names goes through the job's store, its manifests and their collection; what a restore
reads must be every row that the subtask had processed, in order.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.elements.keygroup import KeyGroupRange
from penstock.state.log_history import LogHistory, LogPart, LogSeal
from penstock.state.store import Store


@dataclass
class SealedNumbers:
    """The log at a cut; `parts` are set once it is uploaded."""

    sealed: LogSeal
    young: list[int]
    parts: list[LogPart] | None = None
    written: bool = False


class SimulatedLog:
    """Numbers in order. `rows` is the model: all of them."""

    def __init__(
        self, parts: Sequence[LogPart], young: Sequence[int], groups: KeyGroupRange, store: Store
    ) -> None:
        self._store, self._groups = store, groups
        self.rows = [row for part in parts for row in self._read(part)]
        # Far more eager than the real choice: a simulated job has few rows.
        self._history = LogHistory(parts, lambda present: range(len(present) // 2 * 2))
        self._first = len(self.rows)
        for row in young:
            self.append(row)
        self._sealed: dict[int, SealedNumbers] = {}

    def append(self, row: int) -> None:
        """One row is one append."""
        self.rows.append(row)
        self._history.append()

    def seal(self, checkpoint_id: int) -> SealedNumbers:
        """Freeze it."""
        sealed = self._history.seal()
        young = self.rows[self._first + sealed.first : self._first + sealed.appends]
        self._sealed[checkpoint_id] = SealedNumbers(sealed, young)
        return self._sealed[checkpoint_id]

    def upload(self, numbers: SealedNumbers, token: Callable[[], str], write: bool) -> None:
        """What the snapshot thread does; StateError if the store refuses."""
        merge, parts = numbers.sealed.merge, list(numbers.sealed.parts)
        if merge:
            rows = [row for at in merge for row in self._read(parts[at])]
            parts[merge.start : merge.stop] = [self._put(rows, token)]
        numbers.written = write and bool(numbers.young)
        if numbers.written:
            parts.append(self._put(numbers.young, token))
        numbers.parts = parts

    def confirm(self, checkpoint_id: int) -> None:
        """It counts."""
        numbers = self._sealed.pop(checkpoint_id, None)
        self._sealed = {n: other for n, other in self._sealed.items() if n > checkpoint_id}
        if numbers is not None and numbers.parts is not None:
            self._history.confirm(numbers.sealed, numbers.parts, numbers.written)

    def discard(self, checkpoint_id: int) -> None:
        """It was given up."""
        numbers = self._sealed.pop(checkpoint_id, None)
        if numbers is not None:
            self._history.discard(numbers.sealed)

    def _put(self, rows: list[int], token: Callable[[], str]) -> LogPart:
        body = pickle.dumps(rows)
        name = f"run/{token()}"
        self._store.put(name, body)
        first, stop = self._groups.start, self._groups.stop
        return LogPart(
            name, len(body), zlib.crc32(body), "middle", "log", first, stop, stop - first,
            len(rows), 0, 0,
        )  # fmt: skip

    def _read(self, part: LogPart) -> list[int]:
        body = self._store.get(part.run)
        assert (len(body), zlib.crc32(body)) == (part.size, part.crc), "a damaged part was restored"
        rows: list[int] = pickle.loads(body)
        return rows
