"""The shared memory of one consumer subtask: a memfd with a region per incoming channel.

Nothing of it appears in /dev/shm, so nothing can leak: its pages go with the last process that
holds it, however that dies, and the size of /dev/shm does not matter. A new attempt gets new
segments; one is never repaired.

A process that has read or written rows never unmaps (hazard 41): views may live anywhere.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import pyarrow as pa

from penstock.elements.errors import EngineError, ProtocolError

from .slab import (
    ABORT,
    MAGIC,
    PAGE_BYTES,
    SLOTS,
    STATES,
    TABLE_REGION_WORDS,
    TABLE_WORDS,
    WORD_BYTES,
    Region,
    RegionSize,
)

ALLOCATED_SLOTS = 2
"""Per region, allocated at once: an idle channel touches no more, and if there is no memory for
these it is better said at the start than by a SIGBUS later (hazard 38)."""


class Segment:
    """A mapped segment. `fd` is what other processes attach to; it closes with `close` only."""

    def __init__(self, fd: int, mapped: mmap.mmap, regions: tuple[Region, ...]) -> None:
        self.fd = fd
        self.regions = regions
        self.map = mapped
        self.bytes = memoryview(mapped)
        self.words = self.bytes.cast("Q")
        self.signed_words = self.bytes.cast("q")
        self._address: pa.Buffer | None = None

    @classmethod
    def create(cls, sizes: Sequence[RegionSize]) -> Segment:
        """New zeroed memory with these regions; raises EngineError when it cannot be had."""
        assert sizes
        table_words = TABLE_WORDS + TABLE_REGION_WORDS * len(sizes)
        offset = -(-table_words * WORD_BYTES // PAGE_BYTES) * PAGE_BYTES
        regions: list[Region] = []
        for size in sizes:
            regions.append(Region(offset, size))
            offset += size.total_bytes
        fd = os.memfd_create("penstock", os.MFD_CLOEXEC)
        try:
            _allocate(fd, regions, offset)
            mapped = mmap.mmap(fd, offset)
        except BaseException:
            os.close(fd)
            raise
        segment = cls(fd, mapped, tuple(regions))
        words = segment.words
        words[1] = len(regions)
        for index, region in enumerate(regions):
            at = TABLE_WORDS + TABLE_REGION_WORDS * index
            words[at] = region.offset
            words[at + 1] = region.size.slots
            words[at + 2] = region.size.slot_bytes
        words[0] = MAGIC
        return segment

    @classmethod
    def attach(cls, fd: int) -> Segment:
        """Map what `create` made; takes over the descriptor, which must not be closed by hand."""
        mapped = mmap.mmap(fd, os.fstat(fd).st_size)
        words = memoryview(mapped).cast("Q")
        if words[0] != MAGIC:
            raise ProtocolError(
                f"descriptor {fd} is not a segment of this version: it begins with "
                f"{words[0]:#x} instead of {MAGIC:#x}; do agent and subtask run the same Penstock?"
            )
        regions: list[Region] = []
        for index in range(words[1]):
            at = TABLE_WORDS + TABLE_REGION_WORDS * index
            regions.append(Region(words[at], RegionSize(words[at + 1], words[at + 2])))
        words.release()
        return cls(fd, mapped, tuple(regions))

    @property
    def size(self) -> int:
        """Bytes of address space; of memory it takes what was touched."""
        return len(self.bytes)

    def address(self) -> int:
        """Where the segment is mapped; from now on it cannot be unmapped."""
        if self._address is None:
            self._address = pa.py_buffer(self.map)
        address: int = self._address.address
        return address

    def states(self, region: int) -> memoryview:
        """The state bytes of a region's slots."""
        place = self.regions[region]
        begin = place.offset + STATES
        return self.bytes[begin : begin + place.size.slots]

    def writer(self) -> pa.NativeFile:
        """A seekable file over the same pages; each sender needs its own."""
        return pa.memory_map(f"/proc/self/fd/{self.fd}", "r+")

    def abort(self, region: int) -> None:
        """Tell both ends of a channel that it is over; the caller rings their bells after it."""
        self.words[self.regions[region].word(ABORT)] = 1

    def abort_all(self) -> None:
        """Abort every channel of the segment."""
        for region in range(len(self.regions)):
            self.abort(region)

    def close(self) -> None:
        """Unmap and close; only for the agent, which never looks at rows."""
        self.signed_words.release()
        self.words.release()
        self.bytes.release()
        self.map.close()
        os.close(self.fd)


def _allocate(fd: int, regions: Sequence[Region], total_bytes: int) -> None:
    try:
        os.ftruncate(fd, total_bytes)
        for region in regions:
            first = SLOTS + ALLOCATED_SLOTS * region.size.slot_bytes
            os.posix_fallocate(fd, region.offset, first)
    except OSError as error:
        needed = sum(SLOTS + ALLOCATED_SLOTS * r.size.slot_bytes for r in regions)
        raise EngineError(
            f"no memory for the input channels of a subtask: {needed:,} bytes are needed at once "
            f"for {len(regions)} channels and up to {total_bytes:,} under load "
            f"({error.strerror}); lower shuffle_memory_bytes or the parallelism, or give the "
            "container more memory"
        ) from error
