"""Mutual TLS: the same laws, and nobody in whom the cluster's authority has not signed for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from net_certificates import authority, member
from net_pair import LOOPBACK, PATIENCE_S, Pair, channel_ends, hellos, numbers, shake_hands

from penstock.elements.errors import EngineError, SettingsError
from penstock.elements.signals import Kind
from penstock.runtime.net.credentials import Credentials
from penstock.testing.channel import CHANNEL_LAWS, ChannelEnds, MakeChannel

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Credentials]:
    """Two members of the cluster's; "stranger", who trusts it and is another's."""
    folder = tmp_path_factory.mktemp("tls")
    authority(folder, "cluster")
    authority(folder, "other")
    return {
        "a": member(folder, "a", "cluster", "cluster"),
        "b": member(folder, "b", "cluster", "cluster"),
        "stranger": member(folder, "stranger", "other", "cluster"),
    }


@pytest.mark.parametrize("law", CHANNEL_LAWS, ids=lambda law: law.__name__)
def test_a_channel_under_tls_keeps_the_law(
    law: Callable[[MakeChannel], None], certificates: dict[str, Credentials]
) -> None:
    def make(schema: pa.Schema, slots: int, slot_bytes: int) -> ChannelEnds:
        return channel_ends(schema, slots, slot_bytes, "", certificates["a"])

    law(make)


def test_both_directions_at_full_speed_do_not_tangle(
    certificates: dict[str, Credentials],
) -> None:
    """Rows one way and credits the other, encrypted by two threads at once."""
    pair = Pair(2, slots=8, slot_bytes=1 << 20, credentials=certificates["a"])
    first, second = pair.wires
    got: dict[int, int] = {0: 0, 1: 0}
    sent = 0
    while min(got.values()) < 2_000_000:
        for wire in (first, second):
            if wire.sender.flush() and sent < 40_000_000:
                wire.sender.offer(numbers(wire.sender.statistics().rows, 50_000))
                sent += 50_000
            wire.sender.flush()
            message = wire.receiver.poll()
            if message is not None:
                assert message.kind is Kind.BATCH
                assert message.batch is not None
                expected = numbers(got[wire.number], message.batch.num_rows)
                assert message.batch.equals(expected)
                got[wire.number] += message.batch.num_rows
            else:
                wire.reading.wait(PATIENCE_S / 1000)
    pair.close()


@pytest.mark.parametrize(
    ("near", "far"),
    [("stranger", "b"), ("a", "stranger"), ("nobody", "b"), ("a", "nobody")],
)
def test_who_has_no_certificate_of_the_cluster_is_not_let_in(
    near: str, far: str, certificates: dict[str, Credentials]
) -> None:
    known = {**certificates, "nobody": LOOPBACK}
    ours, theirs = hellos([])
    results = shake_hands(ours, theirs, known[near], known[far])
    assert all(isinstance(each, EngineError) for each in results), results


def test_two_members_meet(certificates: dict[str, Credentials]) -> None:
    ours, theirs = hellos([])
    results = shake_hands(ours, theirs, certificates["a"], certificates["b"])
    for each in results:
        assert isinstance(each, tuple), each
        each[0].close()


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    credentials = Credentials(tls=("no.pem", "no.key", str(tmp_path / "authority.pem")))
    with pytest.raises(SettingsError, match=r"TLS files no\.pem, no\.key"):
        credentials.tls_context(server=True)
