"""From a fresh socket to an agreed connection: TLS or proof of the secret, then HELLO both ways.

All of it within HANDSHAKE_S, whatever the peer does. The connecting side speaks first, so the
listening side knows from HELLO which of its peers it has before it answers. A side that does not
agree says why (REFUSAL) to a peer that has proved who it is, and to no one else.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from penstock.elements.errors import EngineError, ProtocolError

from .credentials import MAGIC, Credentials, authenticate
from .frames import HEAD_BYTES, REFUSAL_BYTES_MAX, Control, read_head, write_head
from .hello import Hello, check_hello, decode_hello, encode_hello
from .streams import ConnectionLost, PlainStream, Stream, TlsStream, tune

HANDSHAKE_S = 5.0
"""From the first byte to both HELLOs."""


def connect(sock: socket.socket, credentials: Credentials, mine: Hello) -> tuple[Stream, Hello]:
    """The connecting side; owns `sock` from now on, and closes it if it raises."""
    with within_time(sock) as expired, closing_on_error(sock):
        try:
            stream, _ = open_stream(sock, credentials, server=False)
            _send(stream, Control.HELLO, encode_hello(mine))
            theirs = decode_hello(_receive_hello(stream))
            _agree(stream, mine, theirs)
        except ConnectionLost as lost:
            raise expired(lost) from lost
        return stream, theirs


def accept(
    sock: socket.socket, credentials: Credentials, expect: Callable[[Hello], Hello]
) -> tuple[Stream, Hello]:
    """The listening side. `expect` gives our HELLO for the node that theirs names, or raises."""
    with within_time(sock) as expired, closing_on_error(sock):
        try:
            stream, _ = open_stream(sock, credentials, server=True)
            theirs = decode_hello(_receive_hello(stream))
            try:
                mine = expect(theirs)
            except ProtocolError as error:
                _refuse(stream, str(error))
                raise
            _agree(stream, mine, theirs)
            _send(stream, Control.HELLO, encode_hello(mine))
        except ConnectionLost as lost:
            raise expired(lost) from lost
        return stream, theirs


def open_stream(
    sock: socket.socket, credentials: Credentials, server: bool, magic: bytes = MAGIC
) -> tuple[Stream, bytes]:
    """TLS if there is any, then the proof; with the stream goes what `authenticate` returns."""
    tune(sock)
    stream: Stream
    if credentials.tls is not None:
        stream = TlsStream(sock, credentials.tls_context(server), server)
    else:
        stream = PlainStream(sock)
    return stream, authenticate(stream, credentials, server, magic)


def _agree(stream: Stream, mine: Hello, theirs: Hello) -> None:
    try:
        check_hello(mine, theirs)
    except ProtocolError as error:
        _refuse(stream, str(error))
        raise


def _refuse(stream: Stream, why: str) -> None:
    try:
        _send(stream, Control.REFUSAL, why.encode()[:REFUSAL_BYTES_MAX])
    except ConnectionLost:
        # What is wrong is raised here anyway; the peer just does not hear it.
        pass


def _send(stream: Stream, kind: Control, body: bytes) -> None:
    # HELLO, or REFUSAL instead of it, is number 0 each way; the connection goes on with 1.
    stream.send([write_head(len(body), len(body), 0, 0, kind, 0), body])


def _receive_hello(stream: Stream) -> bytes:
    data = bytearray(HEAD_BYTES)
    stream.receive(memoryview(data))
    head = read_head(data, 0)
    if head.kind not in (Control.HELLO, Control.REFUSAL):
        raise ProtocolError(f"the peer begins with a frame of kind {head.kind} instead of HELLO")
    body = bytearray(head.wire_bytes)
    stream.receive(memoryview(body))
    if head.kind == Control.REFUSAL:
        raise ProtocolError(f"the peer refuses: {body.decode(errors='replace')}")
    return bytes(body)


@contextmanager
def within_time(
    sock: socket.socket,
) -> Iterator[Callable[[ConnectionLost], EngineError]]:
    """Cut the socket when time is up; what is given says whether that was why."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # The handshake has failed by itself meanwhile.
            pass

    def explain(lost: ConnectionLost) -> EngineError:
        if late.is_set():
            return ConnectionLost(f"the peer did not finish its handshake in {HANDSHAKE_S:g} s")
        return lost

    timer = threading.Timer(HANDSHAKE_S, cut)
    timer.daemon = True
    timer.start()
    try:
        yield explain
    finally:
        timer.cancel()


@contextmanager
def closing_on_error(sock: socket.socket) -> Iterator[None]:
    """A handshake that fails leaves no socket behind."""
    try:
        yield
    except BaseException:
        sock.close()
        raise
