"""One Deploy split by node: everything is somewhere, and both ends of a channel agree."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pyarrow as pa
import pytest
from agent_harness import chain, deploy, edge, vertex

from penstock.dataflow.plan import Plan
from penstock.elements.errors import SettingsError
from penstock.runtime import splitting
from penstock.runtime.deploying import channel_fingerprints
from penstock.runtime.messages import Deploy, SubtaskKey
from penstock.runtime.slab_sender import schema_fingerprint
from penstock.runtime.splitting import split_deploy

PLAN = Plan(
    "t",
    (vertex("a", 4), vertex("b", 4), vertex("c", 3)),
    (edge("a", "b", "forward"), edge("b", "c", "hash"), edge("a", "c", "broadcast", port=1)),
)


def placed(plan: Plan, nodes: str) -> dict[SubtaskKey, str]:
    """Index i of every vertex on node i modulo the nodes."""
    return {
        SubtaskKey(v.id, index): nodes[index % len(nodes)]
        for v in plan.vertices
        for index in range(v.parallelism)
    }


def split(plan: Plan, nodes: str) -> tuple[Deploy, dict[str, Deploy]]:
    whole = deploy("echo", plan)
    fingerprints = channel_fingerprints(plan, whole.channels)
    return whole, split_deploy(whole, placed(plan, nodes), fingerprints)


@pytest.mark.parametrize("nodes", ["x", "xy", "xyz", "wxyz"])
def test_every_subtask_is_on_its_node_in_the_plans_order(nodes: str) -> None:
    whole, parts = split(PLAN, nodes)
    where = placed(PLAN, nodes)
    assert set(parts) == set(nodes)
    for node, part in parts.items():
        assert part.subtasks == [s for s in whole.subtasks if where[s.key] == node]
        assert (part.attempt, part.plan, part.settings) == (1, whole.plan, whole.settings)


@pytest.mark.parametrize("nodes", ["xy", "xyz", "wxyz"])
def test_a_node_gets_the_channels_with_an_end_on_it_in_the_same_order(nodes: str) -> None:
    whole, parts = split(PLAN, nodes)
    where = placed(PLAN, nodes)
    for node, part in parts.items():
        assert part.channels == [
            c for c in whole.channels if node in (where[c.source], where[c.target])
        ]


@pytest.mark.parametrize("nodes", ["xy", "xyz", "wxyz"])
def test_both_ends_of_a_channel_give_it_the_same_number_and_fingerprint(nodes: str) -> None:
    _, parts = split(PLAN, nodes)
    where = placed(PLAN, nodes)
    ends: dict[tuple[str, str, int, int], list[object]] = {}
    for node, part in parts.items():
        assert part.net is not None
        assert part.net.node == node
        for each in part.net.channels:
            channel = part.channels[each.channel]
            way = (where[channel.source], where[channel.target])
            assert set(way) == {node, each.node}
            ends.setdefault((*way, each.number, each.fingerprint), []).append(channel)
    assert all(len(found) == 2 and found[0] == found[1] for found in ends.values())
    per_way = Counter(key[:2] for key in ends)
    for way, count in per_way.items():
        assert sorted(key[2] for key in ends if key[:2] == way) == list(range(count))


@pytest.mark.parametrize("nodes", ["x", "xy", "xyz", "wxyz"])
def test_no_channel_between_subtasks_of_one_node_is_a_remote_one(nodes: str) -> None:
    _, parts = split(PLAN, nodes)
    where = placed(PLAN, nodes)
    for part in parts.values():
        remote = {each.channel for each in part.net.channels} if part.net else set()
        for place, channel in enumerate(part.channels):
            assert (place in remote) == (where[channel.source] != where[channel.target])


def test_nodes_without_neighbours_have_no_net() -> None:
    _, parts = split(chain("a", "b", parallelism=4), "xy")
    assert [part.net for part in parts.values()] == [None, None]
    assert sum(len(part.channels) for part in parts.values()) == 4


def test_a_fingerprint_is_that_of_what_is_on_the_wire() -> None:
    dictionary = pa.schema([("s", pa.dictionary(pa.int8(), pa.utf8()))])
    plain, other = pa.schema([("s", pa.utf8())]), pa.schema([("s", pa.int64())])
    edges = [
        dataclasses.replace(edge(source, "d"), schema=schema)
        for source, schema in (("a", dictionary), ("b", plain), ("c", other))
    ]
    plan = Plan("t", tuple(vertex(name) for name in "abcd"), tuple(edges))
    whole = deploy("echo", plan)
    first, second, third = channel_fingerprints(plan, whole.channels)
    assert first == second == schema_fingerprint(plain)
    assert third == schema_fingerprint(other) != first


def test_more_channels_than_frames_can_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "CHANNELS_BETWEEN_NODES_MAX", 3)
    plan = chain("a", "b", parallelism=4, partition="hash")
    with pytest.raises(SettingsError, match=r"4 channels go from node \w to node \w, more than 3"):
        split(plan, "xy")
