"""Who is a member of a cluster, and what becomes of those who break the protocol."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from controlled_cluster import CREDENTIALS, PATIENCE_S, Cluster, until

from penstock.cluster.controller import ClusterController, ControllerSettings
from penstock.cluster.link import Link, dial
from penstock.cluster.node_messages import (
    Refused,
    Welcome,
)
from penstock.elements.errors import SettingsError, StateError


def test_a_node_is_welcomed_and_listed(cluster: Cluster) -> None:
    welcome = cluster.node().until(Welcome)
    assert (welcome.term, welcome.lease_ms, welcome.heartbeat_ms) == (1, 10_000, 100)
    (info,) = cluster.client.nodes()
    assert (info.name, info.state, info.slots, info.used) == ("a", "member", 2, 0)
    assert info.labels == {"zone": "x"}


def test_a_second_node_of_the_name_is_refused_until_the_first_is_gone(cluster: Cluster) -> None:
    first = cluster.node().joined()
    second = cluster.node(incarnation="2")
    refused = second.until(Refused)
    assert refused.again
    assert second.ended.wait(PATIENCE_S)
    first.close()
    until(lambda: cluster.client.nodes()[0].state == "lost")
    cluster.node(incarnation="3").joined()


def test_a_silent_node_is_lost_and_its_link_cut(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path / "data", stack, lease_s=0.4).start()
        node = cluster.node().joined()
        node.be_quiet()
        assert node.ended.wait(PATIENCE_S)
        assert "no heartbeat" in until(cluster.client.nodes)[0].note


def test_who_breaks_the_protocol_is_cut_off_and_nobody_else(cluster: Cluster) -> None:
    node = cluster.node().joined()
    for garbage in (b"", b"\xc1", b"\x91\x01" * 100):
        ended = threading.Event()
        on_end = partial(_set, ended)
        dial(cluster.address, CREDENTIALS, _ignore, on_end, 5).send(garbage)
        assert ended.wait(PATIENCE_S)
    stranger = cluster.node("b").joined()
    stranger.link.send(b"\xc1")
    assert stranger.ended.wait(PATIENCE_S)
    assert not node.ended.is_set()


def _ignore(link: Link, body: bytes) -> None:
    pass


def _set(ended: threading.Event, link: Link, reason: str) -> None:
    ended.set()


def test_one_directory_serves_one_controller(cluster: Cluster) -> None:
    settings = ControllerSettings("127.0.0.1:0", cluster.data, CREDENTIALS)
    with pytest.raises(StateError, match="another controller"):
        ClusterController(settings)


def test_a_heartbeat_that_cannot_keep_its_lease_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least twice"):
        ControllerSettings("127.0.0.1:0", tmp_path, CREDENTIALS, lease_s=1, heartbeat_s=0.6)
