"""Both ends of a link under test, and what each was told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.cluster.link import (
    Link,
    Listener,
    dial,
)
from penstock.runtime.net.credentials import Credentials

SECRET = Credentials(secret=b"0123456789abcdef")
OTHER_SECRET = Credentials(secret=b"fedcba9876543210")
PATIENCE_S = 20.0


class End:
    """One end of a link under test: what it was told."""

    def __init__(self) -> None:
        self.bodies: queue.Queue[bytes] = queue.Queue()
        self.ends: queue.Queue[str] = queue.Queue()
        self.links: queue.Queue[Link] = queue.Queue()

    def body(self) -> bytes:
        return self.bodies.get(timeout=PATIENCE_S)

    def end(self) -> str:
        return self.ends.get(timeout=PATIENCE_S)

    def take(self, link: Link) -> None:
        link.start(self.on_body, self.on_end)
        self.links.put(link)

    def on_body(self, link: Link, body: bytes) -> None:
        self.bodies.put(body)

    def on_end(self, link: Link, reason: str) -> None:
        self.ends.put(reason)


@contextmanager
def listening(credentials: Credentials = SECRET) -> Iterator[tuple[Listener, End]]:
    end = End()
    listener = Listener("127.0.0.1:0", credentials, end.take)
    try:
        yield listener, end
    finally:
        listener.close()


def dialled(
    address: tuple[str, int], credentials: Credentials = SECRET, first: bytes = b"hello"
) -> tuple[Link, End]:
    end = End()
    link = dial(f"{address[0]}:{address[1]}", credentials, end.on_body, end.on_end, PATIENCE_S)
    link.send(first)
    return link, end


def settled(listener: Listener, rejected: int) -> None:
    """Wait until so many callers have been turned away."""
    waiting = threading.Event()
    for _ in range(int(PATIENCE_S * 100)):
        if listener.rejected >= rejected:
            return
        waiting.wait(0.01)
    raise AssertionError(f"{listener.rejected} callers were turned away, not {rejected}")
