"""What a peer may do wrong after it was let in, and what callers try who are not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from random import Random

import msgspec
import pytest
from net_pair import (
    LOOPBACK,
    PATIENCE_S,
    Pair,
    Wire,
    bell,
    eventually,
    hellos,
    numbers,
    shake_hands,
    sockets,
)

from penstock.elements.clock import SystemClock
from penstock.elements.errors import ChannelAborted, EngineError, ProtocolError
from penstock.elements.signals import Kind
from penstock.runtime.net import handshake
from penstock.runtime.net.connection import Connection
from penstock.runtime.net.credentials import MAGIC, PREAMBLE_BYTES, PROOF_BYTES, Credentials
from penstock.runtime.net.frames import CREDIT, PROTOCOL_VERSION, Control, write_head
from penstock.runtime.net.streams import ConnectionLost, Stream
from penstock.runtime.slab import DESCRIPTOR_COUNT, HEAD

SECRET = Credentials(secret=b"0123456789abcdef")


class Rogue:
    """A peer that was let in as "a" and says what it likes; node "b" is real."""

    def __init__(self, slots: int = 4, compression: str = "") -> None:
        self.wires = [Wire(n, numbers(0, 0).schema, slots, 65536, False) for n in range(2)]
        near, far = hellos(self.wires, compression)
        mine, theirs = shake_hands(near, far)
        assert isinstance(mine, tuple)
        assert isinstance(theirs, tuple)
        self.stream: Stream = mine[0]
        self.errors: list[EngineError | None] = []
        self.bell = bell()
        self.node = Connection(
            theirs[0], [], [w.inbound for w in self.wires], {}, self.bell, SystemClock(),
            compression, self.errors.append,
        )  # fmt: skip
        for wire in self.wires:
            wire.attach(self.bell, self.bell)
        self.node.start()
        self._sequence = 1

    def frame(self, kind: int, body: bytes = b"", channel: int = 0, meta: int = 0) -> bytes:
        """A frame with the next number."""
        head = write_head(len(body), len(body), self._sequence, channel, kind, meta)
        self._sequence += 1
        return head + body

    def refused(self, says: str) -> None:
        """The node has ended the connection and told its subtasks."""
        eventually(lambda: bool(self.errors))
        assert says in str(self.errors[0])
        for wire in self.wires:
            with pytest.raises(ChannelAborted):
                wire.receiver.poll()
        assert hung_up(self.stream)
        self.close()

    def close(self) -> None:
        assert self.node.join(PATIENCE_S)
        self.stream.close()
        for wire in self.wires:
            wire.close()


def hung_up(stream: Stream) -> bool:
    """Reads what was sent before; returns once the other side is gone, or not at all."""
    while True:
        try:
            stream.receive(memoryview(bytearray(1)))
        except ConnectionLost:
            return True


ROW_OF_RUBBISH = b"x" * 100

CRIMES: list[tuple[str, Callable[[Rogue], bytes], str]] = [
    ("garbage", lambda r: Random(1).randbytes(5000), "was due"),
    ("a frame twice", lambda r: r.frame(Kind.IDLE) + write_head(0, 0, 1, 0, 4, 0), "number 1"),
    ("a frame left out", lambda r: r.frame(4)[:0] + r.frame(Kind.IDLE), "number 2"),
    ("more than a slot", lambda r: r.frame(Kind.BATCH, b"x" * 65537), "65,537 bytes do not fit"),
    ("rows without bytes", lambda r: r.frame(Kind.BATCH, b"", 0, 1), "0 bytes do not fit"),
    (
        "more batches than slots",
        lambda r: b"".join(r.frame(Kind.BATCH, ROW_OF_RUBBISH) for _ in range(5)),
        "without a slot credit",
    ),
    (
        "more signals than descriptors",
        lambda r: b"".join(r.frame(Kind.BARRIER) for _ in range(DESCRIPTOR_COUNT + 1)),
        "without a credit",
    ),
    ("an unknown channel", lambda r: r.frame(Kind.IDLE, channel=2), "does not end here"),
    ("an unknown kind", lambda r: r.frame(Kind.SCHEMA), "unknown kind"),
    ("a second HELLO", lambda r: r.frame(Control.HELLO, b"x"), "after the handshake"),
    (
        "a credit to one that sends nothing",
        lambda r: r.frame(Control.CREDIT, CREDIT.pack(0, 0, 0, 0, 0)),
        "more channels than exist",
    ),
    ("a row too large", lambda r: r.frame(Kind.JUMBO, b"x", 0, 1 << 31), "a row of 2,147,483,648"),
    (
        "parts that do not add up",
        lambda r: r.frame(Kind.JUMBO, b"xxx", 0, 5) + r.frame(Kind.JUMBO, b"xxx", 0, 5),
        "do not add up",
    ),
    (
        "a signal between parts",
        lambda r: r.frame(Kind.JUMBO, b"xxx", 0, 5) + r.frame(Kind.BARRIER),
        "between the parts",
    ),
    (
        "a batch between parts",
        lambda r: r.frame(Kind.JUMBO, b"xxx", 0, 5) + r.frame(Kind.BATCH, b"xxx"),
        "between the parts",
    ),
    (
        "compression that was not agreed",
        lambda r: write_head(50, 99, 1, 0, Kind.BATCH, 1, 1) + bytes(50),
        "without compression",
    ),
]


@pytest.mark.parametrize(
    ("crime", "says"), [each[1:] for each in CRIMES], ids=[each[0] for each in CRIMES]
)
def test_a_broken_rule_ends_the_connection_and_all_its_channels(
    crime: Callable[[Rogue], bytes], says: str
) -> None:
    rogue = Rogue()
    rogue.stream.send([crime(rogue)])
    rogue.refused(says)


def test_compressed_garbage_ends_the_connection() -> None:
    rogue = Rogue(compression="zstd")
    rogue.stream.send([write_head(50, 99, 1, 0, Kind.BATCH, 1, 1) + bytes(50)])
    rogue.refused("cannot be decoded")


@pytest.mark.parametrize("cut_at", [1, 23, 24, 25, 90])
def test_a_link_cut_in_the_middle_of_a_frame_leaves_whole_messages_only(cut_at: int) -> None:
    rogue = Rogue()
    rogue.stream.send([rogue.frame(Kind.BARRIER, meta=7)])
    rogue.stream.send([rogue.frame(Kind.BATCH, ROW_OF_RUBBISH)[:cut_at]])
    eventually(lambda: rogue.wires[0].at_target(HEAD) == 1)
    rogue.stream.cut()
    rogue.refused("hung up")
    assert rogue.wires[0].at_target(HEAD) == 1


def test_random_frames_never_do_more_than_end_the_connection() -> None:
    for seed in range(40):
        r = Random(seed)
        rogue = Rogue(slots=r.randint(2, 5))
        kinds = [int(k) for k in Kind] + [int(k) for k in Control]
        try:
            for _ in range(200):
                body = r.randbytes(r.choice((0, 0, 0, 1, 40, 3000)))
                meta = r.choice((0, 1, 2, len(body), 1 << 40))
                rogue.stream.send([rogue.frame(r.choice(kinds), body, r.choice((0, 1, 2)), meta)])
        except ConnectionLost:
            pass
        eventually(lambda errors=rogue.errors: bool(errors))
        assert isinstance(rogue.errors[0], ProtocolError | ConnectionLost), seed
        for wire in rogue.wires:
            assert wire.inbound.aborted
        rogue.close()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (CREDIT.pack(0, 9, 0, 0, 0), "a credit returns 9 messages"),
        (CREDIT.pack(0, 0, 1, 0, 0), "a credit returns 0 messages and 1 slots"),
        (CREDIT.pack(0, 0, 0, 5, 0), "says 5 rows of channel 0 read"),
        (CREDIT.pack(7, 0, 0, 0, 0), "does not begin here"),
        (CREDIT.pack(0, 0, 0, 0, 0) * 3, "more channels than exist"),
    ],
)
def test_credit_for_what_was_not_sent_ends_the_connection(entry: bytes, says: str) -> None:
    pair = Pair(2)
    # The real far end is quiet: its own credits come later than this one, if at all.
    head = write_head(len(entry), len(entry), 1, 0, Control.CREDIT, 0)
    pair.far_stream.send([head + entry])
    eventually(lambda: set(pair.ends) == {"a", "b"})
    assert says in str(pair.ends["a"])
    for wire in pair.wires:
        with pytest.raises(ChannelAborted):
            wire.sender.flush()
    pair.close()


# Callers --------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[tuple[socket.socket, Callable[[], EngineError | None]]]:
    """A caller's socket to a listening node with a secret, and what became of the call there."""
    ours, theirs = sockets()
    _, far = hellos([])
    raised: list[EngineError] = []

    def answer() -> None:
        try:
            stream, _ = handshake.accept(theirs, SECRET, lambda _: far)
            stream.close()
        except EngineError as error:
            raised.append(error)

    thread = threading.Thread(target=answer)
    thread.start()

    def outcome() -> EngineError | None:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        return raised[0] if raised else None

    yield ours, outcome
    ours.close()
    outcome()


Listening = tuple[socket.socket, Callable[[], EngineError | None]]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n" * 10, bytes(500), b"\xff" * 500])
def test_garbage_on_the_port_is_turned_away_unanswered(listening: Listening, data: bytes) -> None:
    caller, outcome = listening
    caller.sendall(data)
    assert "no Penstock process" in str(outcome())
    # Nothing but the listener's own preamble comes before the caller has proved itself.
    received = b""
    try:
        while answer := caller.recv(4096):
            received += answer
    except ConnectionResetError:
        # It hung up with bytes of ours unread.
        pass
    assert len(received) <= PREAMBLE_BYTES


def test_another_version_is_told_to_install_the_same(listening: Listening) -> None:
    caller, outcome = listening
    version = (PROTOCOL_VERSION + 1).to_bytes(2, "little")
    caller.sendall(MAGIC + version + b"\x01" + bytes(32))
    assert "install the same Penstock on all nodes" in str(outcome())


def test_a_wrong_proof_is_refused(listening: Listening) -> None:
    caller, outcome = listening
    version = PROTOCOL_VERSION.to_bytes(2, "little")
    caller.sendall(MAGIC + version + b"\x01" + bytes(32) + bytes(PROOF_BYTES))
    assert "does not know the shared secret" in str(outcome())


def test_a_silent_caller_is_turned_away_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 0.05)
    caller, called = sockets()
    _, far = hellos([])
    with pytest.raises(ConnectionLost, match=r"did not finish its handshake in 0\.05 s"):
        handshake.accept(called, SECRET, lambda _: far)
    caller.close()


def test_a_recorded_session_is_worth_nothing() -> None:
    near, far = hellos([])
    recorded = bytearray()
    real = socket.socket.sendmsg

    class Recording(socket.socket):
        def sendmsg(self, buffers, *rest):  # type: ignore[no-untyped-def,override]
            sent = real(self, buffers, *rest)
            recorded.extend(b"".join(bytes(b) for b in buffers)[:sent])
            return sent

    def session(call: Callable[[socket.socket], None]) -> object:
        caller, called = sockets()
        results: list[object] = []

        def answer() -> None:
            try:
                stream, _ = handshake.accept(called, SECRET, lambda _: far)
                results.append("let in")
                stream.close()
            except EngineError as error:
                results.append(str(error))

        thread = threading.Thread(target=answer)
        thread.start()
        call(caller)
        thread.join(PATIENCE_S)
        return results[0]

    def real_call(caller: socket.socket) -> None:
        stream, _ = handshake.connect(Recording(fileno=caller.detach()), SECRET, near)
        stream.close()

    def replay(caller: socket.socket) -> None:
        caller.sendall(recorded)
        caller.close()

    assert session(real_call) == "let in"
    assert len(recorded) > PREAMBLE_BYTES + PROOF_BYTES
    assert "does not know the shared secret" in str(session(replay))


def test_two_nodes_with_different_secrets_do_not_meet() -> None:
    near, far = hellos([])
    mine, theirs = shake_hands(near, far, SECRET, Credentials(secret=b"fedcba9876543210"))
    assert "does not know the shared secret" in str(theirs)
    assert isinstance(mine, ConnectionLost)


def test_a_node_without_the_secret_is_not_let_in() -> None:
    near, far = hellos([])
    mine, theirs = shake_hands(near, far, LOOPBACK, SECRET)
    assert "give all nodes the same credentials" in str(theirs)
    assert "give all nodes the same credentials" in str(mine)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"generation": 2}, "generation"), ({"attempt": 9}, "attempt"), ({"job": "x"}, "job")],
)
def test_a_node_of_another_life_is_refused_and_told_why(
    change: dict[str, object], says: str
) -> None:
    near, far = hellos([])
    mine, theirs = shake_hands(msgspec.structs.replace(near, **change), far, SECRET)
    assert f"do not agree on the {says}" in str(theirs)
    assert f"the peer refuses: the two nodes do not agree on the {says}" in str(mine)


def test_a_peer_with_the_secret_that_says_no_hello_is_refused() -> None:
    near, far = hellos([])
    for frame in (
        write_head(0, 0, 0, 0, Kind.END, 0),
        write_head(1 << 30, 1 << 30, 0, 0, Control.HELLO, 0),
        write_head(3, 3, 0, 0, Control.HELLO, 0) + b"abc",
    ):
        caller, called = sockets()
        results: list[EngineError] = []

        def answer(sock: socket.socket = called, into: list[EngineError] = results) -> None:
            try:
                handshake.accept(sock, LOOPBACK, lambda _: far)
            except EngineError as error:
                into.append(error)

        thread = threading.Thread(target=answer)
        thread.start()
        caller.sendall(MAGIC + PROTOCOL_VERSION.to_bytes(2, "little") + bytes(33) + frame)
        thread.join(PATIENCE_S)
        assert isinstance(results[0], ProtocolError), frame
        caller.close()
    assert near.node == "a"
