"""A full memory fence in pure Python, for machines that need one.

x86 keeps stores in order (TSO): publishing a message is payload, descriptor, HEAD, and nothing
more. Elsewhere another core may see HEAD before the payload, so both ends put a fence between.
An uncontended post and wait of a private semaphore is one: sem_post is a release and sem_wait an
acquire read-modify-write of the same word, and neither enters the kernel (about 0.2 µs together).
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import posix_ipc

ORDERED_MACHINES = frozenset({"x86_64", "AMD64", "i386", "i686"})
"""Machines on which a plain store is never seen before an earlier one."""

Fence = Callable[[], None]


def no_fence() -> None:
    """For machines that keep the order of stores by themselves."""


def full_fence() -> Fence:
    """A fence that works on every machine.

    Any thread may call it: each call posts once before it takes once, so none ever blocks.
    """
    semaphore = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=0)
    semaphore.unlink()
    release, acquire = semaphore.release, semaphore.acquire

    def fence() -> None:
        release()
        acquire()

    return fence


def order_fence(machine: str | None = None) -> Fence:
    """The fence that `machine` (default: this one) needs between a payload and its publication."""
    known = platform.machine() if machine is None else machine
    return no_fence if known in ORDERED_MACHINES else full_fence()
