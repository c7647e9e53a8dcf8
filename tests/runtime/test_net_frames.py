"""Heads, HELLO and credits hold their bounds: pure parts of the protocol between nodes."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from penstock.elements.errors import ProtocolError, SettingsError
from penstock.elements.signals import WATERMARK_MIN, Kind
from penstock.runtime.net.compression import Compression
from penstock.runtime.net.credentials import Credentials
from penstock.runtime.net.credits import Account, Allowance, Report
from penstock.runtime.net.frames import (
    CREDIT,
    HEAD,
    HELLO_BYTES_MAX,
    Control,
    read_head,
    write_head,
)
from penstock.runtime.net.hello import ChannelOffer, Hello, check_hello, decode_hello, encode_hello
from penstock.runtime.slab import (
    DESCRIPTOR_COUNT,
    SLOT_BYTES_MAX,
    WAITS_FOR_READ,
    WAITS_FOR_SLOT,
)

NEAR = Hello("j", 2, 1, "a", "b", "", [ChannelOffer(0, 7, 4, 4096)], [ChannelOffer(5, 8, 2, 4096)])
FAR = Hello("j", 2, 1, "b", "a", "", [ChannelOffer(5, 8, 2, 4096)], [ChannelOffer(0, 7, 3, 8192)])


def test_a_head_comes_back_as_it_was_written() -> None:
    head = read_head(write_head(10, 10, 5, 65535, Kind.BATCH, (1 << 64) - 1), 5)
    assert head == (10, 10, 65535, Kind.BATCH, False, (1 << 64) - 1)
    assert read_head(write_head(0, 0, 0, 1, Kind.WATERMARK, WATERMARK_MIN), 1 << 32).meta == 1 << 63


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (write_head(8, 8, 4, 0, Kind.BATCH, 1), "number 4 where 5 was due"),
        (write_head(8, 8, 6, 0, Kind.BATCH, 1), "number 6 where 5 was due"),
        (write_head(0, 0, 5, 0, Kind.SCHEMA, 0), "unknown kind 7"),
        (write_head(0, 0, 5, 0, 99, 0), "unknown kind 99"),
        (write_head(0, 0, 5, 0, 0, 0), "unknown kind 0"),
        (write_head(1, 1, 5, 0, Kind.END, 0), "announces 1 bytes, more than 0"),
        (write_head(8, 9, 5, 0, Kind.BATCH, 1), "a plain frame says 8 and 9 bytes"),
        (write_head(8, 9, 5, 0, Kind.BATCH, 1, flags=2), "unknown flags"),
        (write_head(9, 9, 5, 0, Kind.BATCH, 1, flags=1), "compressed frame says 9 bytes for 9"),
        (write_head(0, 9, 5, 0, Kind.BATCH, 1, flags=1), "compressed frame says 0 bytes"),
        (write_head(8, 9, 5, 0, Control.HELLO, 0, flags=1), "cannot be compressed"),
        (write_head(CREDIT.size + 1, CREDIT.size + 1, 5, 0, Control.CREDIT, 0), "no multiple"),
        (write_head(0, 0, 5, 0, Control.CREDIT, 0), "no multiple"),
        (write_head(1 << 31, 1 << 31, 5, 0, Control.CREDIT, 0), "more than"),
        (write_head(HELLO_BYTES_MAX + 1, HELLO_BYTES_MAX + 1, 5, 0, 17, 0), "more than"),
        (write_head(SLOT_BYTES_MAX + 1, SLOT_BYTES_MAX + 1, 5, 0, 1, 0), "more than"),
        (write_head(8, SLOT_BYTES_MAX + 1, 5, 0, Kind.BATCH, 0, flags=1), "8 bytes for"),
    ],
)
def test_an_impossible_head_is_refused(head: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read_head(head, 5)


def test_random_heads_are_refused_or_within_bounds() -> None:
    r = Random(1)
    passed = 0
    for _ in range(20_000):
        data = bytearray(r.randbytes(HEAD.size))
        # Most bits must be small for anything to pass at all.
        data[8:12] = (5).to_bytes(4, "little")
        data[14], data[15] = r.randrange(20), r.choice((0, 0, 1, 255))
        data[2:4] = data[6:8] = b"\0\0"
        if r.random() < 0.5:
            data[4:8] = data[0:4]
        try:
            head = read_head(data, 5)
        except ProtocolError:
            continue
        passed += 1
        assert head.plain_bytes <= SLOT_BYTES_MAX
        assert head.compressed or head.wire_bytes == head.plain_bytes
    assert passed > 100


def test_a_hello_survives_the_wire_and_two_that_fit_agree() -> None:
    assert decode_hello(encode_hello(NEAR)) == NEAR
    check_hello(NEAR, FAR)
    check_hello(FAR, NEAR)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"job": "k"}, "do not agree on the job: 'j' and 'k'"),
        ({"generation": 3}, "generation: 2 and 3"),
        ({"attempt": 2}, "attempt: 1 and 2"),
        ({"node": "c"}, "peer: 'b' and 'c'"),
        ({"peer": "c"}, "node: 'a' and 'c'"),
        ({"compression": "zstd"}, "compression"),
        ({"receives": []}, r"known to one end only: \[0\]"),
        ({"sends": [*FAR.sends, ChannelOffer(9, 1, 2, 4096)]}, r"one end only: \[9\]"),
        ({"receives": [ChannelOffer(0, 6, 3, 8192)]}, "two schemas: 0x7 and 0x6"),
        ({"receives": [ChannelOffer(0, 7, 3, 2048)]}, "slots of 4,096 bytes"),
        ({"receives": FAR.receives * 2}, "named twice"),
    ],
)
def test_two_hellos_that_do_not_fit_say_why(change: dict[str, object], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        check_hello(NEAR, msgspec.structs.replace(FAR, **change))


def test_what_is_no_hello_is_refused() -> None:
    r = Random(2)
    good = encode_hello(NEAR)
    for body in (b"", b"\xc0", good[:-1], good + b"\0", msgspec.msgpack.encode(["j", "2"])):
        with pytest.raises(ProtocolError, match="HELLO"):
            decode_hello(body)
    for _ in range(2000):
        damaged = bytearray(good)
        damaged[r.randrange(len(damaged))] = r.randrange(256)
        try:
            decode_hello(damaged)
        except ProtocolError:
            continue


def test_a_sender_stops_when_slots_or_descriptors_are_spent() -> None:
    allowance = Allowance(2)
    for _ in range(2):
        assert allowance.allows(slot=True)
        allowance.sent(slot=True)
    assert not allowance.allows(slot=True)
    for _ in range(DESCRIPTOR_COUNT - 2):
        assert allowance.allows(slot=False)
        allowance.sent(slot=False)
    assert not allowance.allows(slot=False)
    allowance.grant(Report(taken=3))
    assert allowance.allows(slot=False)
    assert not allowance.allows(slot=True)
    allowance.grant(Report(taken=3, freed=1))
    assert allowance.allows(slot=True)


@pytest.mark.parametrize(
    "report", [Report(taken=3), Report(freed=2), Report(taken=0), Report(taken=1, freed=0)]
)
def test_credits_for_what_was_never_sent_or_is_taken_back_are_refused(report: Report) -> None:
    allowance = Allowance(4)
    allowance.sent(slot=True)
    allowance.sent(slot=False)
    allowance.grant(Report(taken=1, freed=1))
    with pytest.raises(ProtocolError, match="a credit returns"):
        allowance.grant(report)


def test_credits_are_returned_in_batches_unless_the_sender_has_nothing_left() -> None:
    account = Account(8)
    assert not account.due(Report(taken=1, freed=1, rows=10), published=4, filled=4)
    assert account.due(Report(taken=2, freed=2, rows=20), published=4, filled=4)
    assert account.due(Report(taken=1, freed=1, rows=10), published=8, filled=8)
    assert account.due(Report(limit=100), published=0, filled=0)
    assert account.due(Report(taken=1), published=DESCRIPTOR_COUNT, filled=0)
    assert not account.due(Report(taken=1), published=DESCRIPTOR_COUNT - 1, filled=0)


def test_a_reader_rings_for_slots_only_when_they_will_be_missing_first() -> None:
    account = Account(8)
    assert account.rings(published=0, filled=0, rows_sent=0) == WAITS_FOR_READ
    assert account.rings(published=4, filled=4, rows_sent=9) == WAITS_FOR_SLOT
    assert account.rings(published=DESCRIPTOR_COUNT, filled=8, rows_sent=9) == WAITS_FOR_READ
    account.told = Report(limit=10)
    assert account.rings(published=4, filled=4, rows_sent=9) == WAITS_FOR_READ


def test_a_stalled_sender_is_always_told_of_what_it_waits_for() -> None:
    """Any interleaving of sends, takes and frees: a sender that may not send hears of the next
    thing that lets it, without a timer."""
    for seed in range(300):
        r = Random(seed)
        slots = r.randint(2, 9)
        allowance, account = Allowance(slots), Account(slots)
        taken = freed = slot_frames_taken = 0
        queue: list[bool] = []
        for _ in range(600):
            slot = r.random() < 0.5
            while r.random() < 0.8 and allowance.allows(slot):
                allowance.sent(slot)
                queue.append(slot)
            if queue and r.random() < 0.6:
                slot_frames_taken += queue.pop(0)
                taken += 1
            if freed < slot_frames_taken and r.random() < 0.6:
                freed += 1
            report = Report(taken, freed)
            if account.due(report, allowance.frames, allowance.slot_frames):
                account.told = report
                allowance.grant(report)
            if not allowance.allows(slot=False):
                assert taken == account.told.taken, seed
            if not allowance.allows(slot=True) and allowance.allows(slot=False):
                assert freed == account.told.freed, seed


@pytest.mark.parametrize("name", ["lz4", "zstd"])
def test_compression_fills_its_target_exactly_or_not_at_all(name: str) -> None:
    compression = Compression(name)
    body = memoryview(b"rows and rows " * 500)
    encoded = compression.encode(body)
    assert encoded is not None
    target = memoryview(bytearray(len(body)))
    compression.decode(encoded, target)
    assert target == body
    for size in (len(body) - 1, len(body) + 1):
        with pytest.raises(ProtocolError, match="does not hold"):
            compression.decode(encoded, memoryview(bytearray(size)))
    for bad in (bytes(50), b"garbage" * 9, bytes(encoded[: len(encoded) // 2])):
        with pytest.raises(ProtocolError):
            compression.decode(memoryview(bad), target)


def test_what_does_not_shrink_goes_plain() -> None:
    assert Compression("").encode(memoryview(bytes(5000))) is None
    assert Compression("zstd").encode(memoryview(bytes(100))) is None
    assert Compression("lz4").encode(memoryview(Random(1).randbytes(5000))) is None
    with pytest.raises(SettingsError, match="not 'gzip'"):
        Compression("gzip")


def test_credentials_are_exactly_one_kind_and_never_printed() -> None:
    for wrong in ({}, {"secret": b"x" * 16, "open_loopback": True}):
        with pytest.raises(SettingsError, match="one of them"):
            Credentials(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="at least 16"):
        Credentials(secret=b"short")
    assert "xxxx" not in repr(Credentials(secret=b"x" * 16))


def test_only_loopback_may_go_without_credentials() -> None:
    for address in ("127.0.0.1", "127.8.8.8", "::1"):
        Credentials(open_loopback=True).check_address(address)
    for address in ("10.0.0.1", "0.0.0.0", "::", "192.168.1.1"):
        with pytest.raises(SettingsError, match="not a loopback address"):
            Credentials(open_loopback=True).check_address(address)
        Credentials(secret=b"x" * 16).check_address(address)
