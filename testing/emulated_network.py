"""Hosts of one machine's kernel: network namespaces on a switch whose links can be harmed.

They share CPU, disk, clock and /dev/shm, so each needs directories of its own. Needs root, `ip` and
/dev/net/tun; `why_not()` says what is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

SWITCH = Path(__file__).with_name("emulated_switch.py")
SUBNET = "10.77.13"
CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """Why hosts cannot be emulated here; None if they can."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    if shutil.which("ip") is None:
        return "there is no ip command (package iproute2)"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    name = f"ps{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class EmulatedNetwork:
    """Hosts 1 to n, each with address(i); used as a context."""

    def __init__(self, hosts: int) -> None:
        self.hosts = range(1, hosts + 1)
        self._made: list[int] = []
        self._switch: subprocess.Popen[str] | None = None

    def address(self, host: int) -> str:
        """The IPv4 address of a host."""
        return f"{SUBNET}.{host}"

    def on(self, host: int) -> list[str]:
        """Words to put before a command that is to run on this host."""
        return ["ip", "netns", "exec", self._namespace(host)]

    @contextlib.contextmanager
    def entered(self, host: int) -> Iterator[None]:
        """Sockets that this thread makes meanwhile, and commands that it starts, are of a host."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/run/netns/{self._namespace(host)}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(there)
            os.close(before)

    def link(
        self, source: int, target: int, *, delay_s: float = 0, loss: float = 0, cut: bool = False
    ) -> None:
        """What happens from now on to frames of one direction; without arguments: nothing."""
        rule = {"source": source, "target": target, "delay_s": delay_s, "loss": loss, "cut": cut}
        assert self._switch is not None
        assert self._switch.stdin is not None
        self._switch.stdin.write(json.dumps(rule) + "\n")
        self._switch.stdin.flush()
        self._answered()

    def isolate(self, host: int, cut: bool = True) -> None:
        """Cut a host off from all others, both ways, or heal all its links."""
        for other in self.hosts:
            if other != host:
                self.link(host, other, cut=cut)
                self.link(other, host, cut=cut)

    def heal(self) -> None:
        """Every link whole, both ways."""
        for source in self.hosts:
            for target in self.hosts:
                if source != target:
                    self.link(source, target)

    def __enter__(self) -> EmulatedNetwork:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _make(self) -> None:
        taps = [f"ps{os.getpid() % 10**6}-{host}" for host in self.hosts]
        self._switch = subprocess.Popen(
            [sys.executable, str(SWITCH), *taps],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answered()
        for host, tap in zip(self.hosts, taps, strict=True):
            name = self._namespace(host)
            _ip("netns", "add", name)
            self._made.append(host)
            _ip("link", "set", tap, "netns", name)
            inside = ["-n", name, "link", "set"]
            _ip(*inside, tap, "name", "eth0")
            _ip(*inside, "eth0", "address", f"02:00:00:00:00:{host:02x}", "mtu", "9000")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip(*inside, "eth0", "up")
            _ip(*inside, "lo", "up")

    def _remove(self) -> None:
        # The switch first: a namespace takes its device along when it goes.
        if self._switch is not None:
            assert self._switch.stdin is not None
            assert self._switch.stdout is not None
            self._switch.stdin.close()
            self._switch.stdout.close()
            self._switch.wait(10)
            self._switch = None
        for host in self._made:
            _ip("netns", "del", self._namespace(host))
        self._made.clear()

    def _answered(self) -> None:
        assert self._switch is not None
        assert self._switch.stdout is not None
        if not self._switch.stdout.readline():
            raise RuntimeError(f"the switch ended with code {self._switch.wait(10)}")

    def _namespace(self, host: int) -> str:
        return f"ps{os.getpid()}-{host}"


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
