"""Links: who gets one, what cannot pass over one, and how they end."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.cluster.link import (
    BODY_BYTES_MAX,
    FIRST_BODY_BYTES_MAX,
    HANDSHAKES_MAX,
    Link,
    Listener,
    dial,
    parse_address,
)
from penstock.cluster.seals import Seals, draw_keys
from penstock.cluster.security import make_tls
from penstock.elements.errors import EngineError, ProtocolError, SettingsError
from penstock.runtime.net import handshake
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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Credentials]:
    ours = make_tls(tmp_path_factory.mktemp("ours"), ["controller", "127.0.0.1"])
    foreign = make_tls(tmp_path_factory.mktemp("foreign"), ["controller"])
    return {
        "controller": Credentials(tls=ours["controller"]),
        "node": Credentials(tls=ours["127.0.0.1"]),
        "foreign": Credentials(tls=foreign["controller"]),
        "misled": Credentials(tls=(*foreign["controller"][:2], ours["controller"][2])),
    }


@pytest.fixture(params=["secret", "tls"])
def both(request: pytest.FixtureRequest, certificates: dict[str, Credentials]) -> Credentials:
    return SECRET if request.param == "secret" else certificates["controller"]


def test_bodies_arrive_in_order_both_ways_and_the_end_comes_last(both: Credentials) -> None:
    with listening(both) as (listener, server):
        link, client = dialled(listener.address, both)
        assert server.body() == b"hello"
        accepted = server.links.get(timeout=PATIENCE_S)
        sent = [bytes([n % 256]) * (n * 37 % 5000) for n in range(500)]
        for body in sent:
            link.send(body)
            accepted.send(body)
        assert [server.body() for _ in sent] == sent
        assert [client.body() for _ in sent] == sent
        large = b"x" * (8 * 1024 * 1024)
        link.send(large)
        link.close("goodbye")
        assert server.body() == large
        assert "hung up" in server.end()
        assert client.end() == "goodbye"
        assert client.ends.empty()
        assert server.ends.empty()
        link.send(b"too late")
        link.close()


def test_what_was_sent_before_close_arrives(both: Credentials) -> None:
    with listening(both) as (listener, server):
        _, client = dialled(listener.address, both)
        server.body()
        accepted = server.links.get(timeout=PATIENCE_S)
        accepted.send(b"refused")
        accepted.close()
        assert client.body() == b"refused"
        assert client.end()


def test_a_cut_link_ends_at_both_ends_at_once() -> None:
    with listening() as (listener, server):
        link, client = dialled(listener.address)
        server.body()
        link.cut("lease over")
        assert client.end() == "lease over"
        assert "hung up" in server.end()


def test_a_peer_that_does_not_read_costs_a_bounded_outbox_and_never_blocks_the_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.cluster.link.OUTBOX_BYTES_MAX", 32 * 1024 * 1024)
    block = threading.Event()
    with listening() as (listener, server):
        link, client = dialled(listener.address)
        server.body()

        def stuck(link: Link, body: bytes) -> None:
            block.wait(PATIENCE_S)

        server.on_body = stuck  # type: ignore[method-assign]
        link.cut()
        client.end()
        link, client = dialled(listener.address)
        for _ in range(64):
            link.send(bytes(1024 * 1024))
        assert "too slow" in client.end()
        block.set()


def test_a_receiver_that_fails_ends_its_link_with_the_reason() -> None:
    def refuse(link: Link, body: bytes) -> None:
        raise ProtocolError("it says nonsense")

    server = End()
    server.on_body = refuse  # type: ignore[method-assign]
    listener = Listener("127.0.0.1:0", SECRET, server.take)
    _, client = dialled(listener.address)
    assert server.end() == "it says nonsense"
    assert client.end()
    listener.close()


# Who gets one -------------------------------------------------------------------------------------


def test_the_wrong_secret_gets_no_link_and_no_reason() -> None:
    with listening() as (listener, server):
        with pytest.raises(EngineError, match="credentials"):
            dialled(listener.address, OTHER_SECRET)
        settled(listener, 1)
        assert server.links.empty()


@pytest.mark.parametrize("caller", ["foreign", "misled"])
def test_a_certificate_of_another_authority_gets_no_link(
    certificates: dict[str, Credentials], caller: str
) -> None:
    with listening(certificates["controller"]) as (listener, server):
        # TLS 1.3: who calls may learn only after its own half that it was refused.
        with contextlib.suppress(EngineError):
            _, client = dialled(listener.address, certificates[caller])
            assert client.end()
        settled(listener, 1)
        assert server.links.empty()


def test_a_controller_of_another_authority_is_not_believed(
    certificates: dict[str, Credentials],
) -> None:
    with listening(certificates["foreign"]) as (listener, server):
        with pytest.raises(EngineError, match="TLS"):
            dialled(listener.address, certificates["node"])
        settled(listener, 1)
        assert server.links.empty()


def test_nodes_of_one_authority_link(certificates: dict[str, Credentials]) -> None:
    with listening(certificates["controller"]) as (listener, server):
        dialled(listener.address, certificates["node"])
        assert server.body() == b"hello"


def test_different_kinds_of_credentials_do_not_link(certificates: dict[str, Credentials]) -> None:
    with listening(certificates["controller"]) as (listener, server):
        with pytest.raises(EngineError):
            dialled(listener.address, SECRET)
        settled(listener, 1)
        assert server.links.empty()


def test_there_is_no_open_mode() -> None:
    open_mode = Credentials(open_loopback=True)
    with pytest.raises(SettingsError, match="carries code"):
        Listener("127.0.0.1:0", open_mode, lambda link: None)
    with pytest.raises(SettingsError, match="carries code"):
        dial("127.0.0.1:1", open_mode, End().on_body, End().on_end, 1)


def test_proofs_of_net_processes_are_no_proofs_of_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening() as (listener, server):
        sock = socket.create_connection(listener.address, PATIENCE_S)
        with pytest.raises(EngineError):
            handshake.open_stream(sock, SECRET, server=False)
        sock.close()
        settled(listener, 1)
        assert server.links.empty()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(200), b"\xff" * 4096, b"PSCTL" + b"\xff" * 99]
)
def test_garbage_gets_no_link(both: Credentials, garbage: bytes) -> None:
    with listening(both) as (listener, server):
        with socket.create_connection(listener.address, PATIENCE_S) as sock:
            sock.sendall(garbage)
            settled(listener, 1)
        assert server.links.empty()
        dialled(listener.address, both)
        assert server.body() == b"hello"


def test_who_says_nothing_or_little_is_turned_away_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_S", 0.3)
    with listening() as (listener, server):
        silent = socket.create_connection(listener.address, PATIENCE_S)
        slow = socket.create_connection(listener.address, PATIENCE_S)
        slow.sendall(b"PS")
        end = End()
        # This one proves itself and then says nothing.
        dial(f"127.0.0.1:{listener.address[1]}", SECRET, end.on_body, end.on_end, PATIENCE_S)
        settled(listener, 3)
        assert end.end()
        assert server.links.empty()
        silent.close()
        slow.close()


def test_only_so_many_strangers_are_listened_to_at_once() -> None:
    with listening() as (listener, server):
        crowd = [
            socket.create_connection(listener.address, PATIENCE_S)
            for _ in range(HANDSHAKES_MAX + 5)
        ]
        settled(listener, 5)
        for sock in crowd:
            sock.close()
        settled(listener, HANDSHAKES_MAX + 5)
        dialled(listener.address)
        assert server.body() == b"hello"


def test_the_first_word_is_short() -> None:
    with listening() as (listener, server):
        with pytest.raises(ProtocolError, match="limit"):
            dialled(listener.address, first=bytes(FIRST_BODY_BYTES_MAX + 1))
        link, _ = dialled(listener.address, first=bytes(FIRST_BODY_BYTES_MAX))
        assert len(server.body()) == FIRST_BODY_BYTES_MAX
        with pytest.raises(ProtocolError, match="limit"):
            link.send(bytes(BODY_BYTES_MAX + 1))


def test_a_peer_that_announces_too_much_is_cut_before_it_is_read() -> None:
    for size in (FIRST_BODY_BYTES_MAX + 1, 0xFFFFFFFF):
        with listening() as (listener, server):
            sock = socket.create_connection(listener.address, PATIENCE_S)
            stream, _ = handshake.open_stream(sock, SECRET, server=False, magic=b"PSCTL")
            stream.send([struct.pack("<I", size)])
            settled(listener, 1)
            assert server.links.empty()
            sock.close()


def test_later_frames_are_bounded_too() -> None:
    with listening() as (listener, server):
        sock = socket.create_connection(listener.address, PATIENCE_S)
        stream, transcript = handshake.open_stream(sock, SECRET, server=False, magic=b"PSCTL")
        seals = Seals(draw_keys(SECRET.secret, transcript)[0])
        stream.send([struct.pack("<I", 2), b"hi", seals.next_seal(b"hi")])
        assert server.body() == b"hi"
        stream.send([struct.pack("<I", BODY_BYTES_MAX + 1)])
        assert "announces" in server.end()
        sock.close()


# The man in the middle ----------------------------------------------------------------------------


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


# Addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":80", "::1:80", "host:eighty", "h:70000"]
)
def test_what_is_no_address_is_said_so(address: str) -> None:
    with pytest.raises(SettingsError, match="host:port"):
        parse_address(address)


def test_a_port_that_is_taken_is_said_so() -> None:
    with listening() as (listener, _), pytest.raises(SettingsError, match="cannot listen"):
        Listener(f"127.0.0.1:{listener.address[1]}", SECRET, lambda link: None)


def test_links_work_over_ipv6(tmp_path: Path) -> None:
    end = End()
    try:
        listener = Listener("[::1]:0", SECRET, end.take)
    except SettingsError:
        pytest.skip("no IPv6 here")
    link = dial(f"[::1]:{listener.address[1]}", SECRET, end.on_body, end.on_end, PATIENCE_S)
    assert link.local_host == "::1"
    assert link.peer == f"[::1]:{listener.address[1]}"
    link.send(b"hello")
    assert end.body() == b"hello"
    listener.close()
