"""A shuffle between two net processes over loopback, beside a bare sendmsg/recv_into loop.

python benchmarks/tcp_shuffle.py [--seconds 1] [--repeats 3] [--slots 8] [--compression zstd]

A sending subtask, two net processes and a reading subtask: four processes share the cores where the
bare loop has two. `share` is of its speed; `cpu_share` compares the CPU seconds that a gigabyte
takes in the bare loop with those of the two net processes. Bids of 142 bytes in messages of 1k and
8k rows; the reader sums a column. Targets: 60 % of the bare loop at 8k rows; one stalled channel
of eight slows the other seven by less than 10 %.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pyarrow as pa
from channel import bids
from probe import report
from pyarrow import ipc

from penstock.elements.errors import ChannelAborted
from penstock.elements.signals import Kind
from penstock.runtime.doorbell import Doorbell, doorbell_name
from penstock.runtime.framing import Outbox, frame, receive_frame
from penstock.runtime.net.setup import (
    Addresses,
    ChannelEnd,
    Listening,
    NetSetup,
    PeerReady,
    PeerSetup,
    decode_event,
    encode,
    put_setup,
)
from penstock.runtime.segment import Segment
from penstock.runtime.slab import RegionSize
from penstock.runtime.slab_receiver import SlabReceiver
from penstock.runtime.slab_sender import SlabSender, schema_fingerprint

SLOT_BYTES = 2 << 20
SIZES = (1024, 8192)
SHARE_TARGET = 0.6
STALL_TARGET = 0.1
CHANNELS = 8
"""Of the connection in the run with a stalled one."""


def forked(body: Callable[[], Any]) -> int:
    """A child that runs `body` and leaves; its pid."""
    child = os.fork()
    if child == 0:
        try:
            body()
        except ChannelAborted:
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def buffers(size: int, count: int) -> list[memoryview]:
    """As many as there are slots, touched: sent or filled in turn, they are as cold as slots."""
    return [memoryview(bytearray(b"x" * size)) for _ in range(count)]


def bare(size: int, seconds: float, slots: int) -> dict[str, float]:
    """One process sends over loopback, this one receives, each from and into `slots` buffers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def send() -> None:
            sock = socket.create_connection(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head, bodies = bytes(24), itertools.cycle(buffers(size, slots))
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                rest: list[Any] = [head, next(bodies)]
                while rest:
                    sent = sock.sendmsg(rest)
                    while rest and sent >= len(rest[0]):
                        sent -= len(rest.pop(0))
                    if sent:
                        rest[0] = memoryview(rest[0])[sent:]

        child = forked(send)
        sock, _ = server.accept()
    views, head = itertools.cycle(buffers(size, slots)), memoryview(bytearray(24))
    received, begin, cpu = 0, time.perf_counter(), time.process_time()
    while sock.recv_into(head, 24, socket.MSG_WAITALL):
        view, have = next(views), 0
        while have < size:
            have += sock.recv_into(view[have:], size - have, socket.MSG_WAITALL)
        received += size
    elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu
    sock.close()
    _, _, used = os.wait4(child, 0)
    gb = received / 1e9
    return {
        "bare_gb_s": gb / elapsed,
        "bare_cpu_s_per_gb": (cpu + used.ru_utime + used.ru_stime) / gb,
    }


class Nodes:
    """Two net processes with `count` channels from "a" to "b"; slabs and bells as an agent's."""

    def __init__(self, schema: pa.Schema, count: int, slots: int, compression: str) -> None:
        self.schema = schema
        sizes = [RegionSize(slots, SLOT_BYTES)] * count
        self.segments = {node: Segment.create(sizes) for node in "ab"}
        # Per node: the connection's bell, then its subtask's.
        self.bells = {
            node: [Doorbell.create(doorbell_name(0, 2 * i + k)) for k in range(2)]
            for i, node in enumerate("ab")
        }
        fingerprint = schema_fingerprint(schema)
        self.controls: list[socket.socket] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        addresses: dict[str, tuple[str, int]] = {}
        for node, peer in ("ab", "ba"):
            net, subtask = self.bells[node]
            ends = [ChannelEnd(i, 0, i, fingerprint, subtask.name) for i in range(count)]
            sends, receives = (ends, []) if node == "a" else ([], ends)
            setup = NetSetup(
                "bench", 1, 1, node, "127.0.0.1", [PeerSetup(peer, net.name, sends, receives)], 1,
                compression, open_loopback=True,
            )  # fmt: skip
            mine, theirs = socket.socketpair()
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "penstock.runtime.net.process", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                )
            )
            theirs.close()
            outbox = Outbox(mine)
            put_setup(outbox, setup, [self.segments[node].fd])
            outbox.flush()
            listening = decode_event(receive_frame(mine) or b"")
            assert isinstance(listening, Listening), listening
            addresses[node] = ("127.0.0.1", listening.port)
            self.controls.append(mine)
        for control in self.controls:
            control.sendall(frame(encode(Addresses(addresses))))
        for control in self.controls:
            ready = decode_event(receive_frame(control) or b"")
            assert isinstance(ready, PeerReady), ready
        for bell in (*self.bells["a"], *self.bells["b"]):
            bell.unlink()

    def cpu_s(self) -> float:
        """What both net processes have used so far."""
        times = [psutil.Process(process.pid).cpu_times() for process in self.processes]
        return sum(each.user + each.system for each in times)

    def senders(self) -> list[SlabSender]:
        """Those of the subtask on "a"."""
        net, subtask = self.bells["a"]
        segment = self.segments["a"]
        return [
            SlabSender(segment, i, self.schema, net, subtask) for i in range(len(segment.regions))
        ]

    def receivers(self) -> list[SlabReceiver]:
        """Those of the subtask on "b"."""
        net, subtask = self.bells["b"]
        segment = self.segments["b"]
        return [
            SlabReceiver(segment, i, self.schema, subtask, net) for i in range(len(segment.regions))
        ]

    def close(self) -> None:
        """Hang up, as an agent that dies."""
        for control in self.controls:
            control.close()
        for process in self.processes:
            process.wait(10)


def send_all(nodes: Nodes, batch: pa.RecordBatch, seconds: float) -> None:
    """Keep every channel full, a batch for each that has room, in turn; END after `seconds`."""
    senders = nodes.senders()
    bell = senders[0].bell
    end = time.perf_counter() + seconds

    def step() -> bool:
        moved = False
        for sender in senders:
            if sender.flush():
                sender.offer(batch)
                sender.flush()
                moved = True
        return moved

    while time.perf_counter() < end:
        if step():
            continue
        bell.drain()
        if not step():
            bell.wait(0.1)
    for sender in senders:
        sender.offer_signal(Kind.END)
    waiting = list(senders)
    while waiting:
        bell.drain()
        waiting = [sender for sender in waiting if not sender.flush()]
        if waiting:
            bell.wait(0.1)


def receive_all(receivers: list[SlabReceiver], stalled: int | None) -> dict[str, float]:
    """Until END on all but the stalled one, which is never read; from the first message on."""
    counted = [r for i, r in enumerate(receivers) if i != stalled]
    unfinished = list(counted)
    begin, cpu, total = 0.0, 0.0, 0
    bell = receivers[0].bell
    drained = False
    while unfinished:
        moved = False
        for receiver in list(unfinished):
            message = receiver.poll()
            if message is None:
                continue
            moved = True
            if not begin:
                begin, cpu = time.perf_counter(), time.process_time()
            if message.kind is Kind.END:
                unfinished.remove(receiver)
            else:
                assert message.batch is not None
                total += int(message.batch.column(0).to_numpy().sum())
            del message
        if moved:
            drained = False
        elif drained:
            bell.wait(0.1)
            drained = False
        else:
            bell.drain()
            drained = True
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    assert total
    read = [receiver.statistics() for receiver in counted]
    gb = sum(s.bytes for s in read) / 1e9
    return {
        "gb": gb,
        "gb_s": gb / seconds,
        "us_message": seconds / sum(s.messages for s in read) * 1e6,
        "reader_cpu": cpu / seconds,
    }


def shuffle(
    batch: pa.RecordBatch, count: int, slots: int, seconds: float, compression: str,
    stalled: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """One run: sender and net processes beside this one, which reads."""
    nodes = Nodes(batch.schema, count, slots, compression)
    cpu = nodes.cpu_s()
    child = forked(lambda: send_all(nodes, batch, seconds))
    figures = receive_all(nodes.receivers(), stalled)
    figures["net_cpu_s_per_gb"] = (nodes.cpu_s() - cpu) / figures.pop("gb")
    if stalled is not None:
        # The sender still waits for the reader that stalls.
        nodes.segments["a"].abort_all()
        nodes.bells["a"][1].ring()
    _, status = os.waitpid(child, 0)
    nodes.close()
    assert status == 0
    return figures


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {k: round(statistics.median(run[k] for run in runs), 3) for k in runs[0]}


def measure(rows: int, given: argparse.Namespace) -> dict[str, Any]:
    """Bare loop and shuffle in turn, so that both see the same machine."""
    batch = bids(rows)
    size = ipc.get_record_batch_size(batch)
    runs = []
    for _ in range(given.repeats):
        alone = bare(size, given.seconds, given.slots)
        run = shuffle(batch, 1, given.slots, given.seconds, given.compression)
        share = run["gb_s"] / alone["bare_gb_s"]
        cpu_share = alone["bare_cpu_s_per_gb"] / run["net_cpu_s_per_gb"]
        runs.append({**run, **alone, "share": share, "cpu_share": cpu_share})
    return {**medians(runs), "share_best": round(max(run["share"] for run in runs), 3)}


def measure_stall(given: argparse.Namespace) -> dict[str, Any]:
    """Eight channels: seven with and without the eighth's reader standing still.

    Per channel: without the stall the eighth takes its share as well.
    """
    batch = bids(1024)
    runs = []
    for _ in range(given.repeats):
        free = shuffle(batch, CHANNELS, given.slots, given.seconds, given.compression)
        held = shuffle(batch, CHANNELS, given.slots, given.seconds, given.compression, stalled=0)
        each, rest = free["gb_s"] / CHANNELS, held["gb_s"] / (CHANNELS - 1)
        runs.append({"free_gb_s": each, "beside_stall_gb_s": rest, "slower": 1 - rest / each})
    return medians(runs)


def main() -> int:
    """One line; exit 1 if a stalled channel halves the others, whatever the machine does."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=1)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--slots", type=int, default=8)
    arguments.add_argument("--compression", default="")
    given = arguments.parse_args()
    figures = {f"{rows}_rows": measure(rows, given) for rows in SIZES}
    stall = measure_stall(given)
    report(
        "tcp shuffle",
        slots=given.slots,
        compression=given.compression,
        share_target_met=figures["8192_rows"]["share"] >= SHARE_TARGET,
        stall_target_met=stall["slower"] < STALL_TARGET,
        load=round(os.getloadavg()[0], 1),
        stall=stall,
        **figures,
    )
    return 1 if stall["slower"] > 0.5 else 0


if __name__ == "__main__":
    sys.exit(main())
