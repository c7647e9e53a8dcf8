from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.cluster.node_messages import NodeName
from penstock.cluster.slots import NS, SHARE_AFTER_S, Grant, Slots, Wait

A, B, C = NodeName("a", "1"), NodeName("b", "1"), NodeName("c", "1")
SHARE = int(SHARE_AFTER_S * NS)


def nodes(*sizes: int) -> Slots:
    slots = Slots()
    for name, size in zip((A, B, C), sizes):
        assert slots.node_up(name, size, 0) == []
    return slots


def need(
    slots: Slots, job: str, count: int, now: int = 0, *, again: bool = False, how: str = "pack"
) -> list[Any]:
    return slots.need(job, 1, count, again, how, now)


def test_pack_takes_the_smallest_node_that_has_room_for_all() -> None:
    (grant,) = need(nodes(8, 3, 2), "j", 3)
    assert grant == Grant("j", 1, {B: 3}, "")


def test_pack_takes_the_fewest_nodes_when_none_has_room_for_all() -> None:
    (grant,) = need(nodes(2, 4, 3), "j", 6)
    assert grant.slots == {B: 4, C: 2}


def test_spread_takes_the_most_nodes() -> None:
    (grant,) = need(nodes(4, 4, 1), "j", 5, how="spread")
    assert grant.slots == {A: 2, B: 2, C: 1}


def test_a_first_start_waits_until_there_is_room_however_long() -> None:
    slots = nodes(2)
    (wait,) = need(slots, "j", 4)
    assert wait == Wait(
        "j", 1, "it needs 4 slots; 2 of 2 are free: add nodes, or lower its parallelism"
    )
    assert slots.tick(100 * SHARE) == []
    assert slots.deadline_ns is None
    (grant,) = slots.node_up(B, 2, 100 * SHARE)
    assert grant.slots == {A: 2, B: 2}


def test_a_job_that_ran_shares_after_a_while_and_says_so() -> None:
    slots = nodes(2)
    need(slots, "j", 4, again=True)
    assert slots.deadline_ns == SHARE
    assert slots.tick(SHARE - 1) == []
    (grant,) = slots.tick(SHARE)
    assert grant.slots == {A: 4}
    assert grant.note.startswith("4 slots share 2")
    assert slots.used(A) == 4


def test_patience_counts_from_the_loss() -> None:
    slots = nodes(2, 2)
    need(slots, "j", 4)
    slots.node_closed(B, SHARE)
    slots.node_gone(B)
    (wait,) = need(slots, "j", 4, SHARE + NS, again=True)
    assert isinstance(wait, Wait)
    (grant,) = slots.tick(2 * SHARE)
    assert grant.slots == {A: 4}


def test_sharing_is_even_by_size_and_uses_what_is_free_first() -> None:
    slots = nodes(4, 2)
    need(slots, "other", 4)
    need(slots, "j", 6, again=True)
    (grant,) = slots.tick(SHARE)
    assert grant.slots == {A: 4, B: 2}
    assert slots.used(A) == 8


def test_without_any_node_even_the_impatient_wait() -> None:
    slots = nodes()
    need(slots, "j", 1, again=True)
    assert slots.tick(10 * SHARE) == []
    assert slots.deadline_ns is None
    (grant,) = slots.node_up(A, 1, 10 * SHARE)
    assert grant.slots == {A: 1}


def test_small_jobs_do_not_overtake_a_large_one_for_ever() -> None:
    slots = nodes(4)
    need(slots, "first", 3)
    need(slots, "large", 4)
    (wait,) = need(slots, "small", 1)
    assert "large came before" in wait.reason
    (grant, _) = slots.release("first", 1)
    assert grant.job == "large"
    (grant,) = slots.release("large", 2)
    assert grant.job == "small"


def test_who_asks_for_more_than_there_is_holds_up_nobody() -> None:
    slots = nodes(4)
    need(slots, "huge", 5)
    (grant,) = need(slots, "small", 1)
    assert grant.job == "small"


def test_jobs_that_ran_come_before_first_starts() -> None:
    slots = nodes(2)
    need(slots, "holder", 2)
    need(slots, "new", 2)
    need(slots, "old", 2, again=True)
    commands = slots.release("holder", 1)
    assert isinstance(commands[0], Grant)
    assert commands[0].job == "old"


def test_asking_gives_back_what_one_had() -> None:
    slots = nodes(2, 2)
    need(slots, "j", 4)
    slots.node_closed(B, 1)
    slots.node_gone(B)
    (grant,) = need(slots, "j", 2, 1, again=True)
    assert grant.slots == {A: 2}


def test_a_draining_node_gets_nothing_new_and_keeps_what_it_has() -> None:
    slots = nodes(2, 2)
    need(slots, "j", 2)
    assert slots.held("j") == {A: 2}
    slots.node_closed(A, 1)
    assert slots.jobs_on(A) == ["j"]
    (grant,) = need(slots, "j", 2, 2)
    assert grant.slots == {B: 2}


def test_nothing_is_granted_while_members_of_the_last_term_are_awaited() -> None:
    slots = nodes(2)
    slots.hold_up("waiting for node b", 0)
    assert need(slots, "j", 2, again=True) == [Wait("j", 1, "waiting for node b")]
    assert slots.tick(SHARE * 2) == []
    (grant,) = slots.hold_up("", SHARE * 2)
    assert grant.slots == {A: 2}


LIVES = [NodeName(node, str(life)) for node in "abc" for life in range(4)]


class Cluster(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots()
        self.now = 0
        self.sizes: dict[NodeName, int] = {}
        self.open: set[NodeName] = set()
        self.over: set[NodeName] = set()
        self.asked: dict[str, tuple[int, int, bool, int]] = {}
        self.granted: dict[str, Grant] = {}
        self.grants = 0

    def take(self, commands: list[Any]) -> None:
        for command in commands:
            grant, count, again, since = self.asked[command.job]
            assert command.grant == grant
            if isinstance(command, Wait):
                continue
            del self.asked[command.job]
            assert sum(command.slots.values()) == count
            assert set(command.slots) <= self.open
            assert all(n >= 1 for n in command.slots.values())
            shared = any(self.slots.used(n) > self.sizes[n] for n in command.slots)
            if command.note:
                assert again
                assert self.now - since >= 0
            else:
                assert not shared
            self.granted[command.job] = command

    @rule(node=st.sampled_from(LIVES), size=st.integers(1, 5))
    def up(self, node: NodeName, size: int) -> None:
        # What is gone never comes back: who joins again is a new incarnation.
        if node not in self.sizes and node not in self.over:
            self.sizes[node] = size
            self.open.add(node)
            self.take(self.slots.node_up(node, size, self.now))

    @rule(node=st.sampled_from(LIVES))
    def closed(self, node: NodeName) -> None:
        self.open.discard(node)
        self.take(self.slots.node_closed(node, self.now))

    @rule(node=st.sampled_from(LIVES))
    def gone(self, node: NodeName) -> None:
        if node in self.sizes and node not in self.open:
            del self.sizes[node]
            self.over.add(node)
            self.slots.node_gone(node)

    @rule(job=st.sampled_from("xyz"), n=st.integers(1, 8), again=st.booleans(),
          how=st.sampled_from(["pack", "spread"]))  # fmt: skip
    def needs(self, job: str, n: int, again: bool, how: str) -> None:
        self.grants += 1
        self.granted.pop(job, None)
        self.asked[job] = (self.grants, n, again, self.now)
        self.take(self.slots.need(job, self.grants, n, again, how, self.now))

    @rule(job=st.sampled_from("xyz"))
    def releases(self, job: str) -> None:
        self.granted.pop(job, None)
        self.asked.pop(job, None)
        self.take(self.slots.release(job, self.now))

    @rule(step=st.integers(0, SHARE))
    def passes(self, step: int) -> None:
        self.now += step
        self.take(self.slots.tick(self.now))

    @invariant()
    def holds_what_was_granted(self) -> None:
        for job in "xyz":
            slots = self.granted[job].slots if job in self.granted else {}
            held = {n: k for n, k in slots.items() if n in self.sizes}
            assert dict(self.slots.held(job)) == held

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        """The first in line gets what is free; nobody waits alone."""
        if not self.asked:
            return
        free = sum(max(0, self.sizes[n] - self.slots.used(n)) for n in self.open)
        total = sum(self.sizes[n] for n in self.open)
        possible = [count for _, count, _, _ in self.asked.values() if count <= total]
        assert not possible or max(possible) > free


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
