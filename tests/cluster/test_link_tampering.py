"""Links whose bytes pass through somebody: what is changed or sent again ends them."""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Callable

import pytest
from link_ends import PATIENCE_S, SECRET, End, listening, settled

from penstock.cluster.link import (
    Link,
    Listener,
    dial,
)
from penstock.runtime.net.credentials import Credentials


def _frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        found.append(data[: 4 + size + 32])
        data = data[4 + size + 32 :]
    return found


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece
        data += piece
    return data


def _between(
    listener: Listener, credentials: Credentials = SECRET
) -> tuple[Link, End, socket.socket, socket.socket]:
    """A link whose handshake passed through us: its ends' sockets are ours from now on."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        end = End()
        made: queue.Queue[Link] = queue.Queue()

        def call() -> None:
            address = f"127.0.0.1:{trap.getsockname()[1]}"
            made.put(dial(address, credentials, end.on_body, end.on_end, PATIENCE_S))

        threading.Thread(target=call, daemon=True).start()
        caller, _ = trap.accept()
    caller.settimeout(PATIENCE_S)
    server = socket.create_connection(listener.address, PATIENCE_S)
    for source, target, size in (
        (caller, server, 40),
        (server, caller, 40),
        (caller, server, 32),
        (server, caller, 32),
    ):
        target.sendall(_exactly(source, size))
    return made.get(timeout=PATIENCE_S), end, caller, server


def _once(frames: list[bytes]) -> list[bytes]:
    return [frames[0], frames[0]]


def _changed(frames: list[bytes]) -> list[bytes]:
    frame = bytearray(frames[1])
    frame[5] ^= 1
    return [frames[0], bytes(frame)]


def _left_out(frames: list[bytes]) -> list[bytes]:
    return [frames[0], frames[2]]


def _swapped(frames: list[bytes]) -> list[bytes]:
    return [frames[0], frames[2], frames[1]]


def _shortened(frames: list[bytes]) -> list[bytes]:
    (size,) = struct.unpack_from("<I", frames[1])
    return [frames[0], struct.pack("<I", size - 1) + frames[1][4:-1]]


@pytest.mark.parametrize("tamper", [_once, _changed, _left_out, _swapped, _shortened])
def test_the_man_in_the_middle_can_pass_on_or_cut_but_not_meddle(
    tamper: Callable[[list[bytes]], list[bytes]],
) -> None:
    with listening() as (listener, server):
        link, _, caller, onward = _between(listener)
        for body in (b"first", b"second", b"third!"):
            link.send(body)
        frames = _frames(_exactly(caller, 3 * 36 + 17))
        for frame in tamper(frames):
            onward.sendall(frame)
        assert server.body() == b"first"
        assert "changed, repeated or left out" in server.end()
        assert server.bodies.empty()
        caller.close()
        onward.close()


def test_an_untouched_relay_works_so_the_tests_above_fail_for_their_reason() -> None:
    with listening() as (listener, server):
        link, _, caller, onward = _between(listener)
        link.send(b"first")
        onward.sendall(_exactly(caller, 36 + 5))
        assert server.body() == b"first"
        caller.close()
        onward.close()


def test_a_frame_cannot_be_sent_back_to_its_sender() -> None:
    with listening() as (listener, _):
        link, client, caller, onward = _between(listener)
        link.send(b"mine")
        frame = _exactly(caller, 36 + 4)
        caller.sendall(frame)
        assert "changed, repeated or left out" in client.end()
        assert client.bodies.empty()
        caller.close()
        onward.close()


def test_a_recorded_session_is_worthless() -> None:
    with listening() as (listener, server):
        link, _, caller, onward = _between(listener)
        link.send(b"first")
        frame = _exactly(caller, 36 + 5)
        onward.sendall(frame)
        assert server.body() == b"first"
        # Record a whole handshake by being in the middle again, then play it to the listener.
        recording = _record(listener)
        with socket.create_connection(listener.address, PATIENCE_S) as sock:
            sock.sendall(recording + frame)
            settled(listener, 1)
        assert server.bodies.empty()
        # Nor do frames of one connection fit another.
        other, _, caller2, onward2 = _between(listener)
        onward2.sendall(frame)
        settled(listener, 2)
        assert server.bodies.empty()
        for sock in (caller, onward, caller2, onward2):
            sock.close()
        other.cut()


def _record(listener: Listener) -> bytes:
    """The caller's half of a good handshake."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        end = End()

        def call() -> None:
            address = f"127.0.0.1:{trap.getsockname()[1]}"
            dial(address, SECRET, end.on_body, end.on_end, PATIENCE_S).send(b"recorded")

        threading.Thread(target=call, daemon=True).start()
        caller, _ = trap.accept()
    with caller, socket.create_connection(listener.address, PATIENCE_S) as onward:
        caller.settimeout(PATIENCE_S)
        preamble = _exactly(caller, 40)
        onward.sendall(preamble)
        caller.sendall(_exactly(onward, 40))
        proof = _exactly(caller, 32)
        onward.sendall(proof)
        caller.sendall(_exactly(onward, 32))
        frame = _exactly(caller, 36 + 8)
    # The listener heard no first word and ends that call; it counts as turned away.
    settled(listener, 1)
    listener.rejected = 0
    return preamble + proof + frame
