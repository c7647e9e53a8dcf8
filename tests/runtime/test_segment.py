"""A segment is nameless memory that says at the start when it cannot be had."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from penstock.elements.errors import EngineError, ProtocolError
from penstock.runtime.segment import Segment
from penstock.runtime.slab import SLOTS, RegionSize


def test_attaching_finds_the_regions_that_were_created() -> None:
    sizes = [RegionSize(2, 4096), RegionSize(8, 65536), RegionSize(3, 8192)]
    segment = Segment.create(sizes)
    attached = Segment.attach(os.dup(segment.fd))
    assert attached.regions == segment.regions
    assert [r.size for r in attached.regions] == sizes
    ends = [r.offset + r.size.total_bytes for r in segment.regions]
    assert [r.offset for r in segment.regions][1:] == ends[:-1]
    assert ends[-1] == segment.size
    attached.close()
    segment.close()


def test_a_segment_with_thousands_of_regions_has_a_table_of_several_pages() -> None:
    segment = Segment.create([RegionSize(2, 4096)] * 1000)
    attached = Segment.attach(os.dup(segment.fd))
    assert attached.regions == segment.regions
    assert segment.regions[0].offset >= 1000 * 24
    attached.close()
    segment.close()


def test_nothing_of_it_appears_in_dev_shm() -> None:
    before = set(Path("/dev/shm").iterdir())
    segment = Segment.create([RegionSize(4, 1 << 20)])
    appeared = {p.name for p in set(Path("/dev/shm").iterdir()) - before}
    assert not [name for name in appeared if not name.startswith("sem.")]
    assert os.readlink(f"/proc/self/fd/{segment.fd}").startswith("/memfd:penstock")
    segment.close()


def test_only_the_first_slots_take_memory_before_they_are_used() -> None:
    segment = Segment.create([RegionSize(8, 1 << 20)] * 2)
    allocated = os.fstat(segment.fd).st_blocks * 512
    assert 2 * (SLOTS + (2 << 20)) <= allocated < 2 * (3 << 20)
    segment.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
def test_no_memory_is_an_error_that_says_what_to_lower(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    open_before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(EngineError, match=r"2,121,728 bytes.*2 channels.*shuffle_memory_bytes"):
        Segment.create([RegionSize(8, 1 << 20), RegionSize(2, 4096)])
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_foreign_memory_is_no_segment() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 4096)
    with pytest.raises(ProtocolError, match="not a segment of this version"):
        Segment.attach(fd)
    os.close(fd)


def test_a_segment_whose_rows_may_be_in_use_cannot_be_unmapped() -> None:
    segment = Segment.create([RegionSize(2, 4096)])
    segment.address()
    with pytest.raises(BufferError):
        segment.close()
