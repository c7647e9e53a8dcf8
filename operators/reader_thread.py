"""A split that user code produces: a generator runs in a thread, the subtask's loop never waits.

1. The queue is bounded: a generator that is ahead waits, so memory and replay are bounded.
2. The position of a chunk is the one yielded with its last row; rows without positions are counted.
3. The mailbox rings when the queue becomes non-empty and when the generator ends (hazard 28).

The thread competes with the loop for the interpreter lock; a shorter switch interval keeps the
loop from waiting 5 ms at each turn (hazard 44c). A blocked `next` cannot be interrupted: the
thread is a daemon and dies with its process.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from penstock.elements.errors import UserCodeError

from .source import Chunk, EndOfSplit, Position, SplitReader

QUEUE_ITEMS_MAX = 16 * 1024
"""Rows that the generator may be ahead of the loop."""
QUEUE_BATCHES_MAX = 8
"""Batches that the generator may be ahead of the loop."""
ROOM_CHECK_S = 0.1
"""A waiting producer looks again this often, in case it must stop."""
ASYNC_ROOM_CHECK_S = 0.002
SWITCH_INTERVAL_S = 0.0005
CLOSE_WAIT_S = 0.2
"""How long close() waits for the thread; one that is blocked in user code is left behind."""


@dataclass(frozen=True)
class Reading:
    """How to run one split's generator and what to make of its items.

    `start(position)` makes the generator. `paired` says that it yields (row, position); None:
    a plain tuple of two is taken for a pair. `skip` leaves out rows already read, for generators
    that begin anew at each start. `conform` makes an item that is a batch fit the schema.
    """

    start: Callable[[Position], Iterator[Any] | AsyncIterator[Any]]
    encode: Callable[[list[Any]], pa.RecordBatch]
    conform: Callable[[Any], pa.RecordBatch]
    paired: bool | None
    skip: bool
    name: str
    subtask: int


class GeneratorReader(SplitReader):
    """Hands out what a generator yields; the generator starts at the first poll."""

    def __init__(self, reading: Reading, position: Position, wake: Callable[[], None]) -> None:
        self._reading = reading
        self._wake = wake
        self._position = position
        self._counted = position if isinstance(position, int) else 0
        self._skip = self._counted if reading.skip else 0
        self._items: deque[Any] = deque()
        self._limit = QUEUE_ITEMS_MAX
        self._room = threading.Event()
        self._closing = False
        self._ended = False
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # The loop's side -------------------------------------------------------------------------

    def poll(self, limit_rows: int) -> Chunk | None:
        """What the generator has yielded so far, up to `limit_rows` rows or one batch."""
        if self._thread is None:
            self._begin()
        # Read before the queue: what ended has queued everything it had.
        ended = self._ended
        rows: list[Any] = []
        while self._items and len(rows) < limit_rows:
            row = self._unpaired(self._items.popleft())
            if _is_batch(row):
                if rows:
                    raise self._misuse("mixes rows and batches")
                return self._chunk(self._reading.conform(row), None)
            rows.append(row)
        if len(self._items) <= self._limit // 2:
            self._room.set()
        if rows:
            return self._chunk(self._reading.encode(rows), rows)
        if not ended:
            return None
        if self._error is not None:
            raise self._user_error(self._error)
        raise EndOfSplit

    def _begin(self) -> None:
        if sys.getswitchinterval() > SWITCH_INTERVAL_S:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        name = f"penstock-read-{self._reading.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _unpaired(self, item: Any) -> Any:
        paired = self._reading.paired
        is_pair = type(item) is tuple and len(item) == 2
        if paired is None:
            paired = is_pair
        if not paired:
            return item
        if not is_pair:
            raise self._misuse(f"yielded {item!r:.200}, not (row, position)")
        self._position = item[1]
        self._counted = -1
        return item[0]

    def _chunk(self, batch: pa.RecordBatch, rows: list[Any] | None) -> Chunk | None:
        self._room.set()
        if self._counted < 0:
            return Chunk(batch, self._position, f"before position {self._position}")
        first = self._counted
        self._counted += batch.num_rows
        if self._skip:
            left_out = min(batch.num_rows, self._skip)
            self._skip -= left_out
            self._counted -= left_out
            batch = batch.slice(left_out)
            if not batch.num_rows:
                return None
        return Chunk(batch, self._counted, f"row {first}")

    def close(self) -> None:
        """Ask the generator to stop; one that is blocked dies with the process."""
        self._closing = True
        self._room.set()
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._task.cancel)
            except RuntimeError:
                pass  # The loop has closed in the meantime: the generator is through.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_WAIT_S)

    # The generator's side ----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            produced = self._reading.start(self._position)
            if hasattr(produced, "__aiter__"):
                asyncio.run(self._drive_async(cast(AsyncIterator[Any], produced)))
            else:
                self._drive(iter(produced))
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._wake()

    def _drive(self, produced: Iterator[Any]) -> None:
        for item in produced:
            self._put(item)
            while len(self._items) >= self._limit and not self._closing:
                self._room.clear()
                if len(self._items) >= self._limit:
                    self._room.wait(ROOM_CHECK_S)
            if self._closing:
                break
        close = getattr(produced, "close", None)
        if close is not None:
            close()

    async def _drive_async(self, produced: AsyncIterator[Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        try:
            async for item in produced:
                self._put(item)
                # The event loop keeps turning meanwhile: a feed's heartbeats are answered.
                while len(self._items) >= self._limit and not self._closing:
                    await asyncio.sleep(ASYNC_ROOM_CHECK_S)
                if self._closing:
                    break
        finally:
            self._loop = None
            close = getattr(produced, "aclose", None)
            if close is not None:
                await close()

    def _put(self, item: Any) -> None:
        if self._limit != QUEUE_BATCHES_MAX and _is_batch(
            item[0] if type(item) is tuple and item else item
        ):
            self._limit = QUEUE_BATCHES_MAX
        self._items.append(item)
        # One item now means that there was none before: whoever empties the queue looks again.
        if len(self._items) == 1:
            self._wake()

    # Errors --------------------------------------------------------------------------------------

    def _misuse(self, what: str) -> UserCodeError:
        return UserCodeError(
            self._reading.name,
            self._reading.subtask,
            "read",
            f"the source {what}",
            source=self._where(),
            hint="Yield rows, (row, position) pairs, or batches; one kind throughout.",
        )

    def _user_error(self, error: BaseException) -> UserCodeError:
        # The first frame is this file's own loop; the user's begin behind it.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        frames = "".join(traceback.format_tb(trace))
        return UserCodeError(
            self._reading.name,
            self._reading.subtask,
            "read",
            f"{type(error).__name__}: {error}",
            source=self._where(),
            traceback=frames,
        )

    def _where(self) -> str:
        if self._counted >= 0:
            return f"after row {self._counted}"
        return f"after position {self._position!r}"


def _is_batch(item: Any) -> bool:
    """Whether an item is an Arrow batch or table, or a data frame."""
    return isinstance(item, (pa.RecordBatch, pa.Table)) or hasattr(item, "iter_slices")
