"""Net processes as agents use them: real processes, their control sockets, their deaths."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest
from net_pair import NUMBERS, PATIENCE_S, bell, eventually, hellos, numbers

from penstock.elements.clock import ManualClock
from penstock.elements.errors import ChannelAborted, ProtocolError
from penstock.elements.signals import Kind
from penstock.runtime.doorbell import Doorbell, doorbell_name
from penstock.runtime.framing import Outbox, frame, receive_frame
from penstock.runtime.net import peers as peers_module
from penstock.runtime.net.credentials import Credentials
from penstock.runtime.net.handshake import connect
from penstock.runtime.net.peers import Peers
from penstock.runtime.net.setup import (
    Addresses,
    ChannelEnd,
    Listening,
    NetEvent,
    NetFailed,
    NetSetup,
    PeerFinished,
    PeerLost,
    PeerReady,
    PeerSetup,
    Rejected,
    decode_event,
    encode,
    put_setup,
)
from penstock.runtime.segment import Segment
from penstock.runtime.slab import RegionSize
from penstock.runtime.slab_receiver import SlabReceiver
from penstock.runtime.slab_sender import SlabSender, schema_fingerprint

SECRET = b"a secret of the test"
FINGERPRINT = schema_fingerprint(NUMBERS)
_ordinals = iter(range(20_000, 30_000))


def named_bell() -> Doorbell:
    return Doorbell.create(doorbell_name(0, next(_ordinals)))


class Node:
    """An agent's view of its net process: one channel from "a" to "b", one back."""

    def __init__(self, node: str, peer: str, **change: object) -> None:
        self.node = node
        self.net, self.subtask = named_bell(), named_bell()
        self.segment = Segment.create([RegionSize(4, 65536), RegionSize(4, 65536)])
        first, second = (
            ChannelEnd(0, 0, region, FINGERPRINT, self.subtask.name) for region in range(2)
        )
        setup = NetSetup(
            "job", 5, 2, node, "127.0.0.1",
            [PeerSetup(peer, self.net.name, [first], [second])], 1, secret=SECRET,
        )  # fmt: skip
        self.control, theirs = socket.socketpair()
        self.control.settimeout(PATIENCE_S)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock.runtime.net.process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        outbox = Outbox(self.control)
        put_setup(outbox, msgspec.structs.replace(setup, **change), [self.segment.fd])
        assert outbox.flush()

    def attach(self) -> None:
        """What the node's only subtask does."""
        mine = Segment.attach(os.dup(self.segment.fd))
        self.sender = SlabSender(mine, 0, NUMBERS, self.net, self.subtask)
        self.receiver = SlabReceiver(mine, 1, NUMBERS, self.subtask, self.net)
        self._mapped = mine

    def event(self) -> NetEvent:
        """The next event; fails after PATIENCE_S."""
        body = receive_frame(self.control)
        assert body is not None, "the net process is gone"
        return decode_event(body)

    def listening(self) -> int:
        event = self.event()
        assert isinstance(event, Listening), event
        return event.port

    def told(self, addresses: dict[str, tuple[str, int]]) -> None:
        self.control.sendall(frame(encode(Addresses(addresses))))

    def close(self) -> None:
        self.control.close()
        self.process.wait(PATIENCE_S)
        os.close(self.segment.fd)
        for each in (self.net, self.subtask):
            each.unlink()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Those that a test starts; hung up on afterwards."""
    started: list[Node] = []
    yield started
    for node in started:
        node.close()


def start(nodes: list[Node], **change: object) -> tuple[Node, Node]:
    """Two nodes that know of each other; `change` is to the setup of the second."""
    nodes += [Node("a", "b"), Node("b", "a", **change)]
    addresses = {node.node: ("127.0.0.1", node.listening()) for node in nodes}
    for node in nodes:
        node.told(addresses)
    return nodes[0], nodes[1]


def connected(nodes: list[Node]) -> tuple[Node, Node]:
    near, far = start(nodes)
    for node in (near, far):
        assert node.event() == PeerReady("b" if node is near else "a")
        node.attach()
    return near, far


def pass_rows(near: Node, far: Node, batches: int) -> None:
    """Both ways at once, through both net processes; each row once and in order."""
    read = {near.node: 0, far.node: 0}
    sent = {near.node: 0, far.node: 0}

    def step() -> bool:
        for node in (near, far):
            if sent[node.node] < batches and node.sender.flush():
                node.sender.offer(numbers(100 * sent[node.node], 100))
                sent[node.node] += 1
            node.sender.flush()
            while (message := node.receiver.poll()) is not None:
                assert message.batch is not None
                assert message.batch.equals(numbers(100 * read[node.node], 100))
                read[node.node] += 1
        return all(count == batches for count in read.values())

    eventually(step)


def test_rows_pass_between_two_net_processes_in_both_directions(nodes: list[Node]) -> None:
    near, far = connected(nodes)
    pass_rows(near, far, 200)
    for node in (near, far):
        node.sender.offer_signal(Kind.END)
        node.sender.flush()
    for node in (near, far):
        eventually(lambda node=node: (m := node.receiver.poll()) is not None and m.kind is Kind.END)
    # A limit travels with the account of what was taken: who knows it knows that END was read.
    for node, other in ((near, far), (far, near)):
        node.receiver.limit_rows(77)
        eventually(lambda other=other: other.sender.unread_limit == 77)
    near.control.shutdown(socket.SHUT_WR)
    assert far.event() == PeerFinished("a")
    assert far.receiver.poll() is None


def test_a_node_may_be_called_by_name(nodes: list[Node]) -> None:
    nodes.append(Node("b", "a", address="localhost", secret=b"", open_loopback=True))
    assert nodes[0].listening()


def test_a_killed_net_process_aborts_the_channels_of_the_other_node(nodes: list[Node]) -> None:
    near, far = connected(nodes)
    pass_rows(near, far, 5)
    near.process.send_signal(signal.SIGKILL)
    lost = far.event()
    assert isinstance(lost, PeerLost), lost
    assert lost.node == "a"
    with pytest.raises(ChannelAborted):
        far.receiver.poll()
    with pytest.raises(ChannelAborted):
        far.sender.flush()
    assert far.subtask.wait(PATIENCE_S), "an abort rings"


def test_a_net_process_goes_with_its_agent(nodes: list[Node]) -> None:
    near, far = connected(nodes)
    near.control.shutdown(socket.SHUT_RDWR)
    assert near.process.wait(PATIENCE_S) == 0
    assert isinstance(far.event(), PeerLost)
    with pytest.raises(ChannelAborted):
        far.receiver.poll()


@pytest.mark.parametrize(
    ("change", "caller_hears", "listener_says"),
    [
        ({"secret": b"another secret of it"}, "hung up|receiving", "shared secret"),
        ({"generation": 4}, "do not agree on the generation: 4 and 5", "generation: 4 and 5"),
        ({"attempt": 1}, "do not agree on the attempt: 1 and 2", "attempt: 1 and 2"),
    ],
)
def test_nodes_that_do_not_belong_together_never_pass_a_row(
    change: dict[str, object], caller_hears: str, listener_says: str, nodes: list[Node]
) -> None:
    near, far = start(nodes, **change)
    near.attach()
    rejected = far.event()
    assert isinstance(rejected, Rejected), rejected
    assert listener_says in rejected.reason
    lost = near.event()
    assert isinstance(lost, PeerLost), lost
    assert any(each in lost.reason for each in caller_hears.split("|"))
    with pytest.raises(ChannelAborted):
        near.sender.flush()


def test_garbage_on_the_port_leaves_the_running_channels_alone(nodes: list[Node]) -> None:
    nodes += [Node("a", "b"), Node("b", "a")]
    ports = {node.node: node.listening() for node in nodes}
    for node in nodes:
        node.told({name: ("127.0.0.1", port) for name, port in ports.items()})
    near, far = nodes
    for node in nodes:
        assert isinstance(node.event(), PeerReady)
        node.attach()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", ports["b"])) as caller:
            caller.sendall(b"\0garbage" * 100)
    pass_rows(near, far, 50)
    rejected = far.event()
    assert isinstance(rejected, Rejected), rejected
    assert "no Penstock process" in rejected.reason


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"address": "0.0.0.0", "secret": b"", "open_loopback": True}, "not a loopback address"),
        ({"secret": b""}, "one of them"),
        ({"address": "no-such-host.invalid"}, "no-such-host.invalid is not the address"),
        ({"compression": "gzip"}, "not 'gzip'"),
        ({"peers": [PeerSetup("a", "/ps-no-such-bell", [], [])]}, "exist"),
    ],
)
def test_a_setup_that_cannot_be_used_says_why(
    change: dict[str, object], says: str, nodes: list[Node]
) -> None:
    nodes.append(Node("b", "a", **change))
    failed = nodes[0].event()
    assert isinstance(failed, NetFailed), failed
    assert says in failed.reason


# Peers, within this process -------------------------------------------------------------------


class Gathering:
    """Peers of node "b", who expects "a" and will call "c"."""

    def __init__(self, clock: ManualClock) -> None:
        segment = Segment.create([RegionSize(2, 4096)])
        self.bells = {"/a": bell(), "/c": bell()}
        self.events: list[NetEvent] = []
        setup = NetSetup(
            "job", 3, 1, "b", "127.0.0.1",
            [PeerSetup("a", "/a", [], []), PeerSetup("c", "/c", [], [])], 0, open_loopback=True,
        )  # fmt: skip
        self.peers = Peers(setup, [segment], self.bells, clock, self.events.append)
        os.close(segment.fd)

    def call(self) -> None:
        """What node "a" does."""
        near, _ = hellos([])
        sock = socket.create_connection(("127.0.0.1", self.peers.port))
        stream, _ = connect(sock, Credentials(open_loopback=True), near)
        self.stream = stream


def test_a_second_connection_from_the_same_node_is_refused() -> None:
    gathering = Gathering(ManualClock())
    gathering.call()
    eventually(lambda: PeerReady("a") in gathering.events)
    first = gathering.stream
    with pytest.raises(ProtocolError, match="node a has called already"):
        gathering.call()
    eventually(lambda: any(isinstance(e, Rejected) for e in gathering.events), gathering.peers.tick)
    gathering.peers.close()
    first.close()


def test_a_peer_that_never_comes_is_lost_when_its_time_is_up() -> None:
    clock = ManualClock()
    gathering = Gathering(clock)
    gathering.peers.connect({})
    assert [e.node for e in gathering.events if isinstance(e, PeerLost)] == ["c"]
    gathering.peers.tick()
    assert len(gathering.events) == 1
    clock.advance_ns(int(peers_module.CONNECT_S * 1e9) + 1)
    gathering.peers.tick()
    lost = gathering.events[-1]
    assert isinstance(lost, PeerLost)
    assert lost.reason == "node a did not connect within 10 s"
    with pytest.raises(ProtocolError, match="has called already"):
        gathering.call()
    gathering.peers.close()
