"""The agent's lease: it ends before the controller believes it has, whatever the network does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cluster.membership import Membership, NodeIsGone, Renew, Versions
from penstock.cluster.node_lease import Lapsed, NodeLease, SendHeartbeat
from penstock.cluster.node_messages import PROTOCOL_VERSION, Join, NodeName

MS = 1_000_000
LEASE_NS, HEARTBEAT_NS, MARGIN_NS = 3000 * MS, 500 * MS, 500 * MS
DRIFT_PPM_MAX = 500
"""Between the two clocks; real ones differ by less than 100."""
NODE = NodeName("n", "first life")
VERSIONS = Versions("1", "3.11")
ACTIONS = ("node", "node", "to controller", "to controller", "to node", "to node", "lose", "repeat")
PAUSES_MS = (0, 0, 1, 190, 510, 900, 1700, 2400)


class World:
    """Two clocks, two cores, and a network that delays, loses, repeats and reorders."""

    def __init__(self, drift_ppm: int, offset_ns: int, first_delay_ns: int) -> None:
        self._drift_ppm, self._offset_ns = drift_ppm, offset_ns
        self.now_ns = 0
        self.gone = False
        self.to_controller: list[int] = []
        self.to_node: list[int] = []
        self.lease = NodeLease(self.node_ns, LEASE_NS, HEARTBEAT_NS)
        self.now_ns += first_delay_ns
        self.membership = Membership(VERSIONS, LEASE_NS, MARGIN_NS)
        join = Join(NODE, 1, {}, 1, "127.0.0.1", 1, PROTOCOL_VERSION, "1", "3.11")
        self.membership.on_join(join, self.now_ns)

    @property
    def node_ns(self) -> int:
        return self._offset_ns + self.now_ns + self.now_ns * self._drift_ppm // 1_000_000

    def node_runs(self) -> bool:
        return not self.lease.lapsed and self.node_ns < self.lease.expires_ns

    def act(self, action: str, which: int) -> None:
        # The controller is always on time: the sooner it believes a node gone, the harder for us.
        self._controller_says(self.membership.tick(self.now_ns))
        if action == "node":
            self._node_says(self.lease.on_time(self.node_ns))
        elif action == "to controller" and self.to_controller:
            sequence = self.to_controller.pop(which % len(self.to_controller))
            self._controller_says(self.membership.on_heartbeat(NODE, sequence, self.now_ns))
        elif action == "to node" and self.to_node:
            sequence = self.to_node.pop(which % len(self.to_node))
            self._node_says(self.lease.on_reply(sequence, self.node_ns))
        elif action == "lose" and self.to_controller:
            self.to_controller.pop(which % len(self.to_controller))
        elif action == "repeat" and self.to_node:
            self.to_node.append(self.to_node[which % len(self.to_node)])

    def _node_says(self, commands: list[SendHeartbeat | Lapsed]) -> None:
        for command in commands:
            if isinstance(command, SendHeartbeat):
                self.to_controller.append(command.sequence)

    def _controller_says(self, commands: list[object]) -> None:
        for command in commands:
            if isinstance(command, Renew):
                self.to_node.append(command.sequence)
            self.gone |= isinstance(command, NodeIsGone)


STEPS = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 50), st.sampled_from(PAUSES_MS)),
    min_size=20,
    max_size=80,
)


@settings(max_examples=400, deadline=None)
@given(
    STEPS,
    st.integers(-DRIFT_PPM_MAX, DRIFT_PPM_MAX),
    st.integers(-(10**18), 10**18),
    st.integers(0, 10_000 * MS),
)
def test_the_agents_lease_ends_before_the_controllers(
    steps: list[tuple[str, int, int]], drift_ppm: int, offset_ns: int, first_delay_ns: int
) -> None:
    world = World(drift_ppm, offset_ns, first_delay_ns)
    for action, which, pause_ms in steps:
        world.now_ns += pause_ms * MS
        world.act(action, which)
        assert not (world.gone and world.node_runs())


def test_a_lease_lives_while_heartbeats_are_answered() -> None:
    world = World(0, 0, 0)
    for _ in range(1000):
        world.now_ns += 100 * MS
        for action in ("node", "to controller", "to node"):
            world.act(action, 0)
    assert not world.lease.lapsed
    assert not world.gone
    assert world.lease.expires_ns >= world.now_ns + LEASE_NS - HEARTBEAT_NS


def test_a_lease_without_answers_lapses_once_and_for_good() -> None:
    lease = NodeLease(0, LEASE_NS, HEARTBEAT_NS)
    assert lease.on_time(0) == [SendHeartbeat(1)]
    assert lease.on_time(LEASE_NS - 1) == [SendHeartbeat(2)]
    assert lease.on_time(LEASE_NS) == [Lapsed()]
    assert lease.on_time(LEASE_NS + 1) == []
    assert lease.on_reply(2, LEASE_NS + 2) == []
    assert lease.lapsed


def test_who_wakes_up_too_late_hears_of_the_lapse_before_the_answer_counts() -> None:
    lease = NodeLease(0, LEASE_NS, HEARTBEAT_NS)
    lease.on_time(0)
    assert lease.on_reply(1, LEASE_NS) == [Lapsed()]


def test_an_answer_renews_from_the_moment_of_sending() -> None:
    lease = NodeLease(0, LEASE_NS, HEARTBEAT_NS)
    lease.on_time(10 * MS)
    lease.on_reply(1, 2500 * MS)
    assert lease.expires_ns == 10 * MS + LEASE_NS


def test_answers_to_nothing_and_old_answers_renew_nothing() -> None:
    lease = NodeLease(0, LEASE_NS, HEARTBEAT_NS)
    lease.on_time(0)
    lease.on_time(600 * MS)
    lease.on_reply(2, 700 * MS)
    for sequence in (1, 2, 3, -1):
        lease.on_reply(sequence, 800 * MS)
    assert lease.expires_ns == 600 * MS + LEASE_NS


def test_heartbeats_keep_their_rhythm_and_do_not_pile_up_after_a_pause() -> None:
    lease = NodeLease(0, LEASE_NS, HEARTBEAT_NS)
    lease.on_time(0)
    assert lease.deadline_ns == HEARTBEAT_NS
    assert lease.on_time(HEARTBEAT_NS - 1) == []
    assert lease.on_time(2000 * MS) == [SendHeartbeat(2)]
    assert lease.on_time(2000 * MS + 1) == []
