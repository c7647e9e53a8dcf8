"""AsyncCalls: runs calls of a user's function beside the subtask's loop, with timeout and retries.

One thread runs an event loop for coroutines; plain functions run in threads of a pool. Results lie
in a queue that the subtask's loop empties when it is woken: nothing of the engine runs out here.
What a function that timed out does afterwards is its own affair: its result is not looked at.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

RETRY_S = 0.1
"""The wait before the second try; it doubles with each further one."""
RETRY_S_MAX = 10.0
CLOSE_WAIT_S = 0.2
"""How long close() waits for the thread; one that is blocked in user code is left behind."""


@dataclass(frozen=True)
class Outcome:
    """What a call gave: a value, or the error of its last try."""

    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class CallSettings:
    """How calls are made. `timeout_s` is that of one try."""

    concurrency: int
    timeout_s: float | None = None
    retries: int = 0


class AsyncCalls:
    """Calls of one function in one subtask; `wake` rings the subtask's mailbox from any thread."""

    def __init__(
        self, function: Callable[[Any], Any], settings: CallSettings, wake: Callable[[], None]
    ) -> None:
        self._function, self._settings, self._wake = function, settings, wake
        self._is_async = is_async(function)
        self._done: deque[tuple[int, Outcome]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        if not self._is_async:
            self._pool = ThreadPoolExecutor(settings.concurrency, "penstock-call")
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="penstock-async", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    def begin(self, calls: Sequence[tuple[int, Any]]) -> None:
        """Start these calls, pairs of number and argument."""
        if calls:
            self._loop.call_soon_threadsafe(self._begin, list(calls))

    def _begin(self, calls: list[tuple[int, Any]]) -> None:
        for number, argument in calls:
            task = self._loop.create_task(self._call(number, argument))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _call(self, number: int, argument: Any) -> None:
        try:
            outcome = Outcome(await self._tries(argument))
        except Exception as error:
            outcome = Outcome(error=error)
        self._done.append((number, outcome))
        self._wake()

    async def _tries(self, argument: Any) -> Any:
        for failed in range(self._settings.retries):
            try:
                return await self._once(argument)
            except Exception:
                await asyncio.sleep(min(RETRY_S * 2**failed, RETRY_S_MAX))
        return await self._once(argument)

    async def _once(self, argument: Any) -> Any:
        limit_s = self._settings.timeout_s
        if self._pool is not None:
            made = asyncio.wrap_future(self._pool.submit(self._function, argument))
        else:
            made = asyncio.ensure_future(self._function(argument))
        if limit_s is None:
            return await made
        # Not wait_for: it would hide a TimeoutError of the user's own.
        finished, _ = await asyncio.wait([made], timeout=limit_s)
        if not finished:
            made.cancel()
            raise TimeoutError(f"no answer within {limit_s:g} s")
        return made.result()

    def finished(self) -> list[tuple[int, Outcome]]:
        """The outcomes since the last call, in the order in which they came."""
        found = []
        while self._done:
            found.append(self._done.popleft())
        return found

    def close(self) -> None:
        """Give up what is running."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._thread.join(CLOSE_WAIT_S)


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine."""
    if inspect.isfunction(function) or inspect.ismethod(function):
        return inspect.iscoroutinefunction(function)
    return inspect.iscoroutinefunction(getattr(function, "func", type(function).__call__))
