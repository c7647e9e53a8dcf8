from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.cluster.membership import (
    GONE_KEPT,
    Admit,
    Member,
    Membership,
    NodeDrains,
    NodeIsGone,
    NodeIsLost,
    Refuse,
    Renew,
    Versions,
)
from penstock.cluster.node_messages import LABELS_MAX, PROTOCOL_VERSION, SLOTS_MAX, Join, NodeName

NS = 1_000_000_000
LEASE, MARGIN = 2 * NS, NS // 2


def join(node: str = "a", incarnation: str = "1", **changes: Any) -> Join:
    values: dict[str, Any] = {
        "name": NodeName(node, incarnation),
        "slots": 4,
        "labels": {},
        "memory_bytes": 1 << 30,
        "data_host": "127.0.0.1",
        "pid": 77,
        "protocol": PROTOCOL_VERSION,
        "penstock": "0.1.0",
        "python": "3.11",
    }
    return Join(**{**values, **changes})


def cluster() -> Membership:
    return Membership(Versions("0.1.0", "3.11"), LEASE, MARGIN)


A1, A2 = NodeName("a", "1"), NodeName("a", "2")


def test_nodes_that_cannot_reach_each_other_are_told_so() -> None:
    members = cluster()
    members.on_join(join("a", data_host="127.0.0.1"), 0)
    assert members.on_join(join("b", data_host="localhost"), 0) == [Admit(NodeName("b", "1"))]
    (refused,) = members.on_join(join("c", data_host="10.0.0.3"), 0)
    assert isinstance(refused, Refuse)
    assert refused.again
    assert "c at 10.0.0.3 and a at 127.0.0.1 cannot reach each other" in refused.reason
    for node in "ab":
        members.on_disconnect(NodeName(node, "1"), "it was started anew", 0)
    assert Admit(NodeName("c", "1")) in members.on_join(join("c", data_host="10.0.0.3"), 0)


def test_a_heartbeat_looks_at_no_other_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """The square of a thousand nodes would be more than the controller's thread can do."""
    looked: list[str] = []
    really = Membership._due_ns

    def due_ns(self: Membership, member: Member) -> int:
        looked.append(member.name.node)
        return really(self, member)

    monkeypatch.setattr(Membership, "_due_ns", due_ns)
    members = cluster()
    names = [NodeName(f"n{i}", "1") for i in range(100)]
    for name in names:
        members.on_join(join(name.node), 0)
    looked.clear()
    for name in names:
        assert members.on_heartbeat(name, 1, NS) == [Renew(name, 1)]
        assert members.tick(NS) == []
        assert members.deadline_ns is not None
    assert looked == []


def test_the_silent_one_among_many_is_lost_in_time() -> None:
    members = cluster()
    names = [NodeName(f"n{i}", "1") for i in range(20)]
    for at, name in enumerate(names):
        members.on_join(join(name.node), at)
    silent = names[7]
    for moment in range(0, 6 * NS, NS // 4):
        lost = [c for c in members.tick(moment) if isinstance(c, NodeIsLost | NodeIsGone)]
        due = {LEASE + NS // 4: [NodeIsLost], LEASE + MARGIN + NS // 4: [NodeIsGone]}
        assert [type(c) for c in lost] == due.get(moment, [])
        assert all(c.name == silent for c in lost)
        assert members.deadline_ns is not None
        assert members.deadline_ns > moment
        for name in names:
            if name != silent:
                members.on_heartbeat(name, moment, moment)


def test_a_node_joins_and_renews_its_lease() -> None:
    members = cluster()
    assert members.on_join(join(), 0) == [Admit(A1)]
    assert members.on_heartbeat(A1, 9, NS) == [Renew(A1, 9)]
    assert members.tick(NS + LEASE - 1) == []
    assert members.members[0].usable


def test_a_silent_node_is_lost_after_its_lease_and_gone_after_the_margin() -> None:
    members = cluster()
    members.on_join(join(), 0)
    assert members.deadline_ns == LEASE
    (lost,) = members.tick(LEASE)
    assert lost == NodeIsLost(A1, "no heartbeat for 2 s")
    assert members.on_heartbeat(A1, 10, LEASE + 1) == []
    assert members.deadline_ns == LEASE + MARGIN
    assert members.tick(LEASE + MARGIN - 1) == []
    assert members.tick(LEASE + MARGIN) == [NodeIsGone(A1)]
    assert members.members == []
    assert members.deadline_ns is None


def test_a_broken_link_is_a_loss_at_once_but_no_end_of_the_lease() -> None:
    members = cluster()
    members.on_join(join(), 0)
    members.on_heartbeat(A1, 1, NS)
    assert members.on_disconnect(A1, "it hung up", NS + 1) == [NodeIsLost(A1, "it hung up")]
    assert members.tick(NS + LEASE + MARGIN - 1) == []
    assert members.tick(NS + LEASE + MARGIN) == [NodeIsGone(A1)]


def test_a_lost_node_that_joins_anew_says_that_its_old_life_is_gone() -> None:
    members = cluster()
    members.on_join(join(), 0)
    members.on_disconnect(A1, "it hung up", 1)
    assert members.on_join(join(incarnation="2"), 2) == [NodeIsGone(A1), Admit(A2)]
    # What the old life's link still had to say is dropped.
    assert members.on_heartbeat(A1, 3, 3) == []
    assert members.on_disconnect(A1, "again", 4) == []
    assert members.members[0].name == A2


def test_a_second_node_of_a_live_name_is_refused_for_now() -> None:
    members = cluster()
    members.on_join(join(), 0)
    (refused,) = members.on_join(join(incarnation="2"), 1)
    assert isinstance(refused, Refuse)
    assert refused.again
    assert "--name" in refused.reason
    assert members.members[0].name == A1


def test_the_same_incarnation_never_joins_twice_in_a_row() -> None:
    members = cluster()
    members.on_join(join(), 0)
    members.on_disconnect(A1, "it hung up", 1)
    (refused,) = members.on_join(join(), 2)
    assert isinstance(refused, Refuse)
    assert members.find(A1) is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocol": PROTOCOL_VERSION + 1}, "install the same"),
        ({"penstock": "0.2.0"}, "0.2.0"),
        ({"python": "3.12"}, "byte code"),
        ({"slots": 0}, "slots"),
        ({"slots": SLOTS_MAX + 1}, "slots"),
        ({"labels": {str(i): "" for i in range(LABELS_MAX + 1)}}, "labels"),
        ({"labels": {"": "x"}}, "label"),
        ({"labels": {"x": "y" * 1000}}, "label"),
        ({"data_host": ""}, "address"),
        ({"name": NodeName("", "1")}, "name"),
        ({"name": NodeName("a\nb", "1")}, "name"),
        ({"name": NodeName("a", "")}, "incarnation"),
    ],
)
def test_what_does_not_fit_is_refused_for_good(changes: dict[str, Any], says: str) -> None:
    members = cluster()
    (refused,) = members.on_join(join(**changes), 0)
    assert isinstance(refused, Refuse)
    assert not refused.again
    assert says in refused.reason
    assert members.members == []


def test_a_draining_node_is_a_member_that_takes_nothing_and_is_gone_when_it_left() -> None:
    members = cluster()
    members.on_join(join(), 0)
    assert members.on_draining(A1, "SIGTERM") == [NodeDrains(A1, "SIGTERM")]
    assert members.on_draining(A1, "SIGTERM") == []
    assert not members.members[0].usable
    assert members.on_heartbeat(A1, 1, 1) == [Renew(A1, 1)]
    members.on_leave(A1)
    assert members.on_disconnect(A1, "it hung up", 2) == [
        NodeIsLost(A1, "it left"),
        NodeIsGone(A1),
    ]
    assert members.gone[0].lost == "it left"


def test_a_draining_node_that_was_not_told_to_leave_may_still_run_something() -> None:
    members = cluster()
    members.on_join(join(), 0)
    members.on_draining(A1, "SIGTERM")
    assert members.on_disconnect(A1, "it hung up", 1) == [NodeIsLost(A1, "it hung up")]


def test_only_the_newest_of_those_that_went_are_remembered() -> None:
    members = cluster()
    for number in range(GONE_KEPT + 5):
        members.on_join(join(f"n{number:03}"), number)
        members.on_disconnect(NodeName(f"n{number:03}", "1"), "x", number)
    members.tick(100 * NS)
    assert len(members.gone) == GONE_KEPT
    assert members.gone[0].name.node == "n005"


class Lives(RuleBasedStateMachine):
    """Agents that keep rule 2 of the cluster: whatever the order of events, no life is said to be
    gone while its agent, by its own clock, may still run something."""

    def __init__(self) -> None:
        super().__init__()
        self.members = cluster()
        self.now_ns = 0
        self.count = 0
        self.life: dict[str, NodeName] = {}
        self.leases: dict[NodeName, int] = {}
        self.state: dict[NodeName, str] = {}

    def take(self, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Admit):
                assert command.name not in self.state
                self.state[command.name] = "member"
            elif isinstance(command, NodeIsLost):
                assert self.state[command.name] == "member"
                self.state[command.name] = "lost"
            elif isinstance(command, NodeIsGone):
                assert self.state[command.name] == "lost"
                self.state[command.name] = "gone"
                joined_anew = self.life[command.name.node] != command.name
                assert joined_anew or self.now_ns >= self.leases[command.name]
            elif isinstance(command, Renew):
                assert self.state[command.name] == "member"

    @rule(node=st.sampled_from("abc"))
    def joins(self, node: str) -> None:
        self.count += 1
        name = NodeName(node, str(self.count))
        before = self.life.get(node)
        self.life[node] = name
        self.leases[name] = self.now_ns + LEASE
        self.take(self.members.on_join(join(node, name.incarnation), self.now_ns))
        if name not in self.state:
            assert before is not None
            assert self.state[before] == "member"
            self.life[node] = before

    @rule(node=st.sampled_from("abc"), age=st.integers(0, LEASE // 2))
    def beats(self, node: str, age: int) -> None:
        """Sent `age` ago, received now."""
        name = self.life.get(node)
        if name is None:
            return
        commands = self.members.on_heartbeat(name, 1, self.now_ns)
        self.take(commands)
        if Renew(name, 1) in commands:
            self.leases[name] = max(self.leases[name], self.now_ns - age + LEASE)

    @rule(node=st.sampled_from("abc"))
    def breaks(self, node: str) -> None:
        if node in self.life:
            self.take(self.members.on_disconnect(self.life[node], "cut", self.now_ns))

    @rule(node=st.sampled_from("abc"))
    def drains(self, node: str) -> None:
        if node in self.life:
            self.take(self.members.on_draining(self.life[node], "SIGTERM"))

    @rule(step=st.integers(0, LEASE), ticks=st.booleans())
    def passes(self, step: int, ticks: bool) -> None:
        self.now_ns += step
        if ticks:
            self.take(self.members.tick(self.now_ns))

    @invariant()
    def knows_each_life_once(self) -> None:
        known = {member.name for member in self.members.members}
        assert known == {name for name, state in self.state.items() if state != "gone"}

    @invariant()
    def always_has_something_to_wait_for(self) -> None:
        assert (self.members.deadline_ns is None) == (not self.members.members)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
