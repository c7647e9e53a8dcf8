"""Links: who gets one, and how they end."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path

import pytest
from link_ends import OTHER_SECRET, PATIENCE_S, SECRET, End, dialled, listening, settled

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
from penstock.elements.errors import EngineError, ProtocolError, SettingsError
from penstock.runtime.net import handshake
from penstock.runtime.net.credentials import Credentials


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
