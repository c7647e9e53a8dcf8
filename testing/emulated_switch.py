"""A switch between network namespaces: one TAP per host, rules per direction.

`python emulated_switch.py TAP...` answers one line of JSON on stdout for each on stdin: host i
(from 1) is the i-th TAP. A rule {"source": 1, "target": 2, "delay_s": 0.1, "loss": 0.03,
"cut": true} replaces the one of its direction. It ends when its stdin does.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x2, 0x1000
FRAMES_PER_TURN = 64
DELAYED_MAX = 100_000
"""Frames on the way; beyond them a link loses, as a full queue does."""
Rule = dict[str, float]


def open_tap(name: str) -> int:
    """A TAP device of this name; it goes with its descriptor."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


class Switch:
    """Forwards frames by the last byte of their MAC address, which is the host's number."""

    def __init__(self, taps: list[int]) -> None:
        self.taps = dict(enumerate(taps, 1))
        self.rules: dict[tuple[int, int], Rule] = {}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def serve(self) -> None:
        hosts = {tap: host for host, tap in self.taps.items()}
        pending = b""
        while True:
            wait = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            for ready in select.select([*hosts, 0], [], [], wait)[0]:
                if ready == 0:
                    data = os.read(0, 65536)
                    if not data:
                        return
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        self._obey(json.loads(line))
                else:
                    self._forward(ready, hosts[ready])
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, target, frame = heapq.heappop(self._late)
                self._deliver(target, frame)

    def _obey(self, said: Rule) -> None:
        link = int(said.pop("source")), int(said.pop("target"))
        self.rules[link] = said
        sys.stdout.write("{}\n")
        sys.stdout.flush()

    def _forward(self, tap: int, source: int) -> None:
        for _ in range(FRAMES_PER_TURN):
            try:
                frame = os.read(tap, 65536)
            except BlockingIOError:
                return
            known = frame[:5] == b"\x02\0\0\0\0" and frame[5] in self.taps
            targets = [frame[5]] if known else [host for host in self.taps if host != source]
            for target in targets:
                self._send(source, target, frame)

    def _send(self, source: int, target: int, frame: bytes) -> None:
        rule = self.rules.get((source, target), {})
        if rule.get("cut") or random.random() < rule.get("loss", 0.0):
            return
        if delay_s := rule.get("delay_s"):
            if len(self._late) < DELAYED_MAX:
                self._count += 1
                due = time.monotonic() + delay_s
                heapq.heappush(self._late, (due, self._count, target, frame))
            return
        self._deliver(target, frame)

    def _deliver(self, target: int, frame: bytes) -> None:
        try:
            os.write(self.taps[target], frame)
        except OSError:
            # A full or downed device loses the frame, as hardware would.
            pass


if __name__ == "__main__":
    opened = [open_tap(name) for name in sys.argv[1:]]
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    Switch(opened).serve()
