"""Programs for the other process of test_channel_fuzz.py: `channel_entries.py <what> <args>`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count
from random import Random

import numpy as np
import pyarrow as pa

from penstock.elements.errors import ChannelAborted
from penstock.elements.signals import Kind
from penstock.runtime.doorbell import Doorbell
from penstock.runtime.segment import Segment
from penstock.runtime.slab_sender import SlabSender
from penstock.testing.batches import random_batch, random_kinds

ABORTED = 7
"""The exit code of a sender that ended by ChannelAborted."""
NUMBERS = pa.schema([("n", pa.int64()), ("text", pa.utf8())])


def random_rows(seed: int) -> tuple[pa.RecordBatch, list[pa.RecordBatch | tuple[Kind, int]]]:
    """A batch, and slices of it and signals to send; both processes make the same."""
    r = Random(seed)
    whole = random_batch(seed, r.randint(1, 80), random_kinds(seed, r.randint(1, 6)))
    offered: list[pa.RecordBatch | tuple[Kind, int]] = []
    for step in range(r.randint(1, 120)):
        if r.random() < 0.25:
            offered.append((Kind.BARRIER, step + 1))
            continue
        begin = r.randint(0, whole.num_rows)
        offered.append(whole.slice(begin, r.randint(0, whole.num_rows - begin)))
    return whole, [*offered, (Kind.END, 0)]


def numbered(first: int) -> pa.RecordBatch:
    """Rows that say themselves whether they are whole and next."""
    numbers = np.arange(first, first + 1000)
    text = pa.array(numbers).cast(pa.utf8())
    return pa.RecordBatch.from_arrays([pa.array(numbers), text], schema=NUMBERS)


def send(sender: SlabSender, offered: Iterator[pa.RecordBatch | tuple[Kind, int]]) -> None:
    """Send with back-pressure as a subtask does."""
    for each in offered:
        if isinstance(each, tuple):
            sender.offer_signal(*each)
        else:
            sender.offer(each)
        while not sender.flush():
            sender.bell.drain()
            if sender.flush():
                break
            sender.bell.wait(20)


def main() -> int:
    """Attach and send; the segment's descriptor was inherited."""
    what, fd, receiver_bell, sender_bell, seed = sys.argv[1:]
    segment = Segment.attach(int(fd))
    bells = Doorbell.open(receiver_bell), Doorbell.open(sender_bell)
    try:
        if what == "random":
            for region in range(len(segment.regions)):
                whole, offered = random_rows(int(seed) + region)
                send(SlabSender(segment, region, whole.schema, *bells), iter(offered))
        elif what == "numbers":
            sender = SlabSender(segment, 0, NUMBERS, *bells)
            send(sender, (numbered(1000 * i) for i in count()))
    except ChannelAborted:
        return ABORTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
