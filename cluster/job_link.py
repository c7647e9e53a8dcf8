"""A job process's connection to the cluster's controller: a socket pair, one thread each way.

Sending never blocks: the Controller of the job and the reading of news must not wait for each
other. The end of the connection is the end of the process.
"""

from __future__ import annotations

import queue
import socket
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

import msgspec

from penstock.elements.errors import ProtocolError
from penstock.runtime.framing import frame, receive_frame

from .job_messages import Ended, FromJob, LaunchJob, ToJob, decode_to_job, encode

GOODBYE_S = 10.0
"""For the last words to be taken."""


class JobLink:
    """`on_end` is called from either thread when the connection is over, and does not return."""

    def __init__(self, sock: socket.socket, on_end: Callable[[str], NoReturn]) -> None:
        self._sock = sock
        self._on_end = on_end
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="to-cluster", daemon=True)
        self._writer.start()

    def first(self) -> LaunchJob:
        """Wait for the first word."""
        message = self._receive()
        if not isinstance(message, LaunchJob):
            self._on_end(f"its first word was {type(message).__name__}")
        return message

    def read(self, on_message: Callable[[ToJob], None]) -> None:
        """Pass on all that follows, from a thread of its own."""

        def run() -> None:
            while True:
                message = self._receive()
                try:
                    on_message(message)
                except Exception:
                    # The next launch begins from the log; this one would go on half deaf.
                    self._on_end(f"{message} failed:\n{traceback.format_exc()}")

        threading.Thread(target=run, name="from-cluster", daemon=True).start()

    def send(self, message: FromJob) -> None:
        """Any thread; in order; never blocks. Raises ProtocolError beyond the frame limit."""
        self._outbox.put(frame(encode(message)))

    def finish(self, ended: Ended) -> None:
        """Say the last word and wait until it is written."""
        self.send(ended)
        self._outbox.put(None)
        self._writer.join(GOODBYE_S)

    def _receive(self) -> ToJob:
        try:
            body = receive_frame(self._sock)
            if body is None:
                self._on_end("it hung up")
            message: ToJob = decode_to_job(body)
        except (OSError, ProtocolError, msgspec.DecodeError) as error:
            self._on_end(f"{type(error).__name__}: {error}")
        return message

    def _write(self) -> None:
        while (data := self._outbox.get()) is not None:
            try:
                self._sock.sendall(data)
            except OSError as error:
                self._on_end(str(error))
