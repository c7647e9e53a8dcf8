"""Slab channels between real processes: random rows, retained views, deaths at any moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from channel_entries import ABORTED, NUMBERS, random_rows

from penstock.elements.signals import Kind
from penstock.runtime.channel import Message
from penstock.runtime.doorbell import Doorbell, doorbell_name
from penstock.runtime.segment import Segment
from penstock.runtime.slab import RegionSize
from penstock.runtime.slab_receiver import SlabReceiver
from penstock.testing.batches import rows_of

ENTRIES = Path(__file__).with_name("channel_entries.py")
CHANNELS = 12
_ordinals = count(5000)


class Reader:
    """This process's side: a segment, two bells, and a child that sends."""

    def __init__(self, what: str, sizes: list[RegionSize], seed: int = 0) -> None:
        self.segment = Segment.create(sizes)
        self.bells = [Doorbell.create(doorbell_name(0, next(_ordinals))) for _ in range(2)]
        names = [bell.name for bell in self.bells]
        self.child = subprocess.Popen(
            [sys.executable, str(ENTRIES), what, str(self.segment.fd), *names, str(seed)],
            pass_fds=[self.segment.fd],
        )

    def receiver(self, region: int, schema: pa.Schema) -> SlabReceiver:
        return SlabReceiver(self.segment, region, schema, *self.bells)

    def receive(self, receiver: SlabReceiver) -> Message:
        bell = self.bells[0]
        while True:
            message = receiver.poll()
            if message is None:
                bell.drain()
                message = receiver.poll()
            if message is not None:
                return message
            assert bell.wait(60), "the sender has fallen silent"


@contextmanager
def reader(what: str, sizes: list[RegionSize], seed: int = 0) -> Iterator[Reader]:
    made = Reader(what, sizes, seed)
    try:
        yield made
    finally:
        made.child.kill()
        made.child.wait()
        for bell in made.bells:
            bell.unlink()


@pytest.mark.parametrize("seed", [0, 1000, 2000])
def test_random_rows_cross_processes_unchanged_while_views_are_kept(seed: int) -> None:
    r = Random(seed)
    sizes = [RegionSize(r.randint(2, 8), 4096 * r.choice((8, 16, 64))) for _ in range(CHANNELS)]
    with reader("random", sizes, seed) as here:
        for region in range(CHANNELS):
            whole, offered = random_rows(seed + region)
            receiver = here.receiver(region, whole.schema)
            kept: list[tuple[str, pa.RecordBatch]] = []
            for expected in offered:
                if isinstance(expected, tuple):
                    message = here.receive(receiver)
                    assert (message.kind, message.value) == expected, f"seed {seed + region}"
                    continue
                kept += _receive_rows(here, receiver, expected, f"seed {seed + region}")
                if r.random() < 0.1:
                    _compare(kept)
                    kept.clear()
            _compare(kept)
        assert here.child.wait(60) == 0


def _receive_rows(
    here: Reader, receiver: SlabReceiver, expected: pa.RecordBatch, what: str
) -> list[tuple[str, pa.RecordBatch]]:
    """The messages that carry `expected`, which may have been cut, each with the text it must
    have for as long as it is kept."""
    received: list[tuple[str, pa.RecordBatch]] = []
    rows = 0
    while not received or rows < expected.num_rows:
        message = here.receive(receiver)
        assert message.kind is Kind.BATCH, what
        assert message.batch is not None
        part = rows_of(expected.slice(rows, message.batch.num_rows))
        received.append((part, message.batch))
        rows += message.batch.num_rows
    _compare(received)
    return received


def _compare(kept: list[tuple[str, pa.RecordBatch]]) -> None:
    for expected, batch in kept:
        assert rows_of(batch) == expected


@pytest.mark.parametrize("after", [0, 1, 7, 40, 150, 400])
def test_a_sender_killed_at_full_speed_leaves_no_torn_or_missing_row(after: int) -> None:
    with reader("numbers", [RegionSize(4, 65536)]) as here:
        receiver = here.receiver(0, NUMBERS)
        received = 0
        for _ in range(after):
            received = _check(here.receive(receiver), received)
        here.child.kill()
        here.child.wait()
        # What it had published is whole; what it was writing was never published.
        for _ in range(10_000):
            message = receiver.poll()
            if message is None:
                break
            received = _check(message, received)
            del message
        else:
            raise AssertionError("a dead sender goes on sending")
        assert received >= 1000 * after


def _check(message: Message, first: int) -> int:
    """The message is the next of the sequence, whole; returns what comes after it."""
    batch = message.batch
    assert batch is not None
    batch.validate(full=True)
    expected = list(range(first, first + batch.num_rows))
    assert batch.column(0).to_pylist() == expected
    assert batch.column(1).to_pylist() == [str(n) for n in expected]
    return first + batch.num_rows


def test_an_abort_ends_a_sender_that_waits_for_room() -> None:
    with reader("numbers", [RegionSize(2, 65536)]) as here:
        receiver = here.receiver(0, NUMBERS)
        here.receive(receiver)
        # Nobody reads any more, as if this end were dead: the agent says so and rings.
        here.segment.abort_all()
        here.bells[1].ring()
        assert here.child.wait(60) == ABORTED
