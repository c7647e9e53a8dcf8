"""From a plan to channels: who is joined with whom, and how much memory that may take."""

from __future__ import annotations

import os
import sys

import pytest
from agent_harness import chain, edge, vertex

from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import SettingsError
from penstock.runtime.deployment import (
    PAGE_BYTES,
    SLOT_BYTES_MAX,
    SLOT_BYTES_MIN,
    channels_of,
    memory_budget,
    subtask_keys,
    user_surroundings,
)
from penstock.runtime.messages import SubtaskKey


def test_forward_edges_join_equal_indices() -> None:
    channels = channels_of(chain("a", "b", parallelism=3), JobSettings())
    assert [(c.source.index, c.target.index) for c in channels] == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("partition", ["hash", "rebalance", "broadcast"])
def test_other_edges_join_everyone_with_everyone(partition: str) -> None:
    plan = Plan("t", (vertex("a", 2), vertex("b", 3)), (edge("a", "b", partition),))  # type: ignore[arg-type]
    pairs = [(c.source.index, c.target.index) for c in channels_of(plan, JobSettings())]
    assert sorted(pairs) == [(s, t) for s in range(2) for t in range(3)]


def test_channels_of_a_consumer_stand_in_the_order_of_its_inputs() -> None:
    edges = (edge("b", "c", "hash", port=1), edge("a", "c", "hash"), edge("d", "c", "hash"))
    plan = Plan("t", (vertex("a", 2), vertex("b"), vertex("d"), vertex("c", 2)), edges)
    ours = [
        (c.edge, c.source.index)
        for c in channels_of(plan, JobSettings())
        if c.target == SubtaskKey("c", 1)
    ]
    assert ours == [("a-c", 0), ("a-c", 1), ("d-c", 0), ("b-c", 0)]


def test_subtask_keys_follow_the_order_of_vertices() -> None:
    plan = Plan("t", (vertex("a", 2), vertex("b")), (edge("a", "b", "hash"),))
    assert subtask_keys(plan) == [SubtaskKey("a", 0), SubtaskKey("a", 1), SubtaskKey("b", 0)]


@pytest.mark.parametrize("parallelism", [1, 2, 3, 4, 7, 16, 31])
def test_all_slots_of_a_shuffle_stay_within_its_budget(parallelism: int) -> None:
    settings = JobSettings()
    plan = chain("a", "b", parallelism=parallelism, partition="hash")
    channels = channels_of(plan, settings)
    assert sum(c.slots * c.slot_bytes for c in channels) <= settings.shuffle_memory_bytes
    for channel in channels:
        assert SLOT_BYTES_MIN <= channel.slot_bytes <= SLOT_BYTES_MAX
        assert channel.slot_bytes % PAGE_BYTES == 0
        assert 2 <= channel.slots <= settings.channel_slots


def test_slots_grow_fewer_before_they_grow_too_small() -> None:
    settings = JobSettings(shuffle_memory_bytes=16 * 3 * SLOT_BYTES_MIN)
    channels = channels_of(chain("a", "b", parallelism=4, partition="hash"), settings)
    assert {(c.slots, c.slot_bytes) for c in channels} == {(3, SLOT_BYTES_MIN)}


def test_a_shuffle_that_cannot_fit_is_refused_with_what_would_help() -> None:
    plan = chain("a", "b", parallelism=64, partition="hash")
    with pytest.raises(SettingsError, match=f"raise it to {64 * 64 * 2 * SLOT_BYTES_MIN}"):
        channels_of(plan, JobSettings())
    enough = JobSettings(shuffle_memory_bytes=64 * 64 * 2 * SLOT_BYTES_MIN)
    assert len(channels_of(plan, enough)) == 64 * 64


def test_the_budget_line_names_channels_and_processes() -> None:
    budget = memory_budget(chain("a", "b", parallelism=4, partition="hash"), JobSettings())
    assert budget.channels == 16
    assert budget.subtasks == 8
    assert "16 channels up to 128 MiB" in str(budget)
    assert "8 subtasks" in str(budget)


def test_the_users_path_reaches_subtasks_without_relative_entries(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "lib", "/usr/lib"])
    path, cwd = user_surroundings()
    assert cwd == os.getcwd()
    assert path == [os.path.join(cwd, ""), os.path.join(cwd, "lib"), "/usr/lib"]
