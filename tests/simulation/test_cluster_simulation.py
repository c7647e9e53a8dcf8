"""Whole clusters under seeded faults; scripts/simulate --core cluster runs the long form."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from penstock.cluster import coordination, fleet_core, membership
from penstock.testing.simulated_cluster import simulate_cluster


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Every fault is told of, which is all that these schedules are made of."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def simulate_all(seeds: range) -> None:
    for seed in seeds:
        simulate_cluster(seed)


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_every_schedule_keeps_every_promise(first: int) -> None:
    simulate_all(range(first, first + 25))


@pytest.mark.parametrize("seed", [5819, 50814])
def test_schedules_that_broke_a_promise_once_keep_it(seed: int) -> None:
    simulate_cluster(seed)


def test_a_schedule_is_the_same_each_time() -> None:
    assert simulate_cluster(5) == simulate_cluster(5)


def _gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def due_ns(self: membership.Membership, member: membership.Member) -> int:
        return member.expires_ns - self._margin_ns if member.lost is None else 0

    monkeypatch.setattr(membership.Membership, "_due_ns", due_ns)


def _lost_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = fleet_core.FleetCore._over_on
    monkeypatch.setattr(fleet_core.FleetCore, "node_lost", lost)


def _no_waiting_for_nodes_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordination.Coordination, "_hold_up", lambda self, now_ns: None)


@pytest.mark.parametrize(
    "breakage", [_gone_at_once, _lost_is_gone, _no_waiting_for_nodes_of_before]
)
def test_two_attempts_at_a_time_are_found_out(
    breakage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breakage(monkeypatch)
    with pytest.raises(AssertionError, match="whose lease is valid"):
        simulate_all(range(600))
