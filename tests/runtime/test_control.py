"""Frames, the agent's non-blocking ends, and a subtask's control link."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Iterator

import pytest

from penstock.elements.errors import ProtocolError
from penstock.runtime import framing
from penstock.runtime.control import ControlLink
from penstock.runtime.framing import FrameDecoder, Outbox, frame, receive_exactly, receive_frame
from penstock.runtime.messages import (
    FRAME_BYTES_MAX,
    Commit,
    CommitDone,
    Decline,
    decode_event,
    encode,
)
from penstock.runtime.peer import Peer

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


# Frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_frames_come_out_whole_however_they_are_cut(piece: int) -> None:
    bodies = [b"", b"a", b"bc" * 50, b"\0" * 7]
    stream = b"".join(frame(body) for body in bodies)
    decoder = FrameDecoder()
    out = [
        body
        for start in range(0, len(stream), piece)
        for body in decoder.feed(stream[start : start + piece])
    ]
    assert out == bodies


def test_an_impossible_length_is_an_error_and_not_an_allocation() -> None:
    with pytest.raises(ProtocolError, match="announced"):
        FrameDecoder().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "little"))


def test_a_blocking_reader_refuses_an_impossible_length_too(pair: Pair) -> None:
    pair[0].sendall(b"\xff\xff\xff\xff")
    with pytest.raises(ProtocolError, match="announced"):
        receive_frame(pair[1])


def test_a_message_beyond_the_limit_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "FRAME_BYTES_MAX", 10)
    with pytest.raises(ProtocolError, match="let a source read large tables from files"):
        frame(b"x" * 11)


def test_a_hangup_within_a_frame_reads_as_the_end(pair: Pair) -> None:
    pair[0].sendall(frame(b"whole") + frame(b"half")[:-1])
    pair[0].close()
    assert receive_frame(pair[1]) == b"whole"
    assert receive_frame(pair[1]) is None


# Outboxes and peers -----------------------------------------------------------------------------


def test_outbox_keeps_the_order_of_bytes_and_descriptors_through_a_full_socket(
    pair: Pair,
) -> None:
    left, right = pair
    left.setblocking(False)
    outbox = Outbox(left)
    large = os.urandom(3_000_000)
    read_end, write_end = os.pipe()
    outbox.put(large)
    outbox.put(b"!", [write_end])
    outbox.put(b"tail")
    assert not outbox.flush()
    assert outbox.pending_bytes > 0
    received = bytearray()
    while len(received) < len(large):
        received += right.recv(len(large) - len(received))
        outbox.flush()
    assert received == large
    assert outbox.flush()
    assert outbox.pending_bytes == 0
    marker, descriptors, _, _ = socket.recv_fds(right, 1, 1)
    assert marker == b"!"
    os.write(descriptors[0], b"through")
    assert os.read(read_end, 7) == b"through"
    assert right.recv(10) == b"tail"
    for descriptor in (read_end, write_end, *descriptors):
        os.close(descriptor)


class _Listener:
    def __init__(self, sock: socket.socket) -> None:
        self.selector = selectors.DefaultSelector()
        self.bodies: list[bytes] = []
        self.ended = 0
        self.peer = Peer(self.selector, sock, self._body, self._end)

    def _body(self, body: bytes, descriptors: list[int]) -> None:
        self.bodies.append(body)
        for descriptor in descriptors:
            os.close(descriptor)

    def _end(self) -> None:
        self.ended += 1

    def turn(self) -> None:
        for key, mask in self.selector.select(0):
            key.data(mask)

    def close(self) -> None:
        self.peer.close()
        self.selector.close()


def test_peer_hears_frames_and_then_the_end_once(pair: Pair) -> None:
    listener = _Listener(pair[0])
    pair[1].sendall(frame(b"one") + frame(b"two"))
    listener.turn()
    pair[1].close()
    for _ in range(3):
        listener.turn()
    assert listener.bodies == [b"one", b"two"]
    assert listener.ended == 1
    listener.close()


def test_peer_that_is_paused_leaves_words_unread_until_it_goes_on(pair: Pair) -> None:
    listener = _Listener(pair[0])
    listener.peer.pause(True)
    pair[1].sendall(frame(b"later"))
    listener.turn()
    assert listener.bodies == []
    listener.peer.pause(False)
    listener.turn()
    assert listener.bodies == [b"later"]
    listener.close()


def test_peer_of_a_dead_process_still_gives_what_it_had_said(pair: Pair) -> None:
    listener = _Listener(pair[0])
    pair[1].sendall(frame(b"last words"))
    pair[1].close()
    listener.peer.drain()
    assert listener.bodies == [b"last words"]
    assert listener.ended == 1
    listener.close()


def test_peer_takes_writes_to_a_process_that_is_gone(pair: Pair) -> None:
    listener = _Listener(pair[0])
    pair[1].close()
    listener.peer.send(frame(b"into the void"))
    assert listener.peer.outbox.pending_bytes == 0
    listener.close()


def test_peer_sends_more_than_a_socket_holds_as_the_reader_takes_it(pair: Pair) -> None:
    listener = _Listener(pair[0])
    body = os.urandom(2_000_000)
    listener.peer.send(frame(body))
    assert listener.peer.outbox.pending_bytes > 0
    received: list[bytes | None] = []
    reader = threading.Thread(target=lambda: received.append(receive_frame(pair[1])))
    reader.start()
    while listener.peer.outbox.pending_bytes:
        for key, mask in listener.selector.select():
            key.data(mask)
    reader.join()
    assert received == [body]
    listener.close()


# The control link -------------------------------------------------------------------------------


class _Subtask:
    def __init__(self, sock: socket.socket) -> None:
        self.rung = threading.Semaphore(0)
        self.hung_up = threading.Event()
        self.link = ControlLink(sock, self.rung.release, self.hung_up.set)


def test_commands_ring_and_come_out_in_order(pair: Pair) -> None:
    subtask = _Subtask(pair[0])
    for number in (1, 2, 3):
        pair[1].sendall(frame(encode(Commit(number))))
    for _ in range(3):
        assert subtask.rung.acquire(timeout=30)
    assert [subtask.link.receive() for _ in range(4)] == [Commit(1), Commit(2), Commit(3), None]


def test_events_of_many_threads_arrive_whole_and_each_threads_in_order(pair: Pair) -> None:
    link = _Subtask(pair[0]).link
    each = 200

    def talk(thread: int) -> None:
        for number in range(each):
            link.send(Decline(number, f"{thread}" * 300))

    threads = [threading.Thread(target=talk, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    heard: dict[str, list[int]] = {}
    for _ in range(4 * each):
        body = receive_frame(pair[1])
        assert body is not None
        event = decode_event(body)
        assert isinstance(event, Decline)
        heard.setdefault(event.reason, []).append(event.checkpoint_id)
    for thread in threads:
        thread.join()
    assert list(heard.values()) == [list(range(each))] * 4


def test_the_agents_hangup_is_noticed_without_the_loop(pair: Pair) -> None:
    subtask = _Subtask(pair[0])
    pair[1].close()
    assert subtask.hung_up.wait(30)


def test_a_send_to_an_agent_that_is_gone_hangs_up(pair: Pair) -> None:
    subtask = _Subtask(pair[0])
    pair[1].close()
    subtask.link.send(CommitDone(1))
    assert subtask.hung_up.wait(30)


def test_what_is_no_command_ends_the_link(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    subtask = _Subtask(pair[0])
    pair[1].sendall(frame(b"\x90"))
    assert subtask.hung_up.wait(30)
    assert "the control link broke" in caplog.text


def test_receive_exactly_gives_nothing_when_the_rest_never_comes(pair: Pair) -> None:
    pair[0].sendall(b"abc")
    pair[0].close()
    assert receive_exactly(pair[1], 4) is None
