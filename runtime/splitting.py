"""One Deploy for a whole attempt → one per node: who gets which subtasks and ends of channels.

Pure. A channel between two nodes is named by both: each has an end of it and a slab of its own. The
order of subtasks and channels stays, so a consumer's inputs are in the same order wherever it runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from penstock.elements.errors import SettingsError

from .messages import ChannelSpec, Deploy, NetDeployment, RemoteChannel, SubtaskKey

CHANNELS_BETWEEN_NODES_MAX = 1 << 16
"""From one node to another; a frame has 16 bits for the channel (docs/formats/frame.md)."""


def split_deploy(
    deploy: Deploy, node_of: Mapping[SubtaskKey, str], fingerprints: Sequence[int]
) -> dict[str, Deploy]:
    """By node, what it is to run. `fingerprints`: see `deploying.channel_fingerprints`.

    A node without neighbours elsewhere gets `net=None`: it starts no net process, says no
    NetListening, and needs no address. Raises SettingsError for more channels between two nodes
    than can be numbered.
    """
    assert len(fingerprints) == len(deploy.channels)
    channels: dict[str, list[ChannelSpec]] = defaultdict(list)
    remote: dict[str, list[RemoteChannel]] = defaultdict(list)
    between: dict[tuple[str, str], int] = defaultdict(int)
    for channel, fingerprint in zip(deploy.channels, fingerprints, strict=True):
        source, target = node_of[channel.source], node_of[channel.target]
        if source == target:
            channels[source].append(channel)
            continue
        number = between[source, target]
        between[source, target] += 1
        for here, there in ((source, target), (target, source)):
            remote[here].append(RemoteChannel(len(channels[here]), there, number, fingerprint))
            channels[here].append(channel)
    _check_counts(between)
    nodes = dict.fromkeys(node_of[subtask.key] for subtask in deploy.subtasks)
    return {
        node: msgspec.structs.replace(
            deploy,
            subtasks=[each for each in deploy.subtasks if node_of[each.key] == node],
            channels=channels[node],
            net=NetDeployment(node, remote[node]) if remote[node] else None,
        )
        for node in nodes
    }


def _check_counts(between: Mapping[tuple[str, str], int]) -> None:
    for (source, target), count in between.items():
        if count > CHANNELS_BETWEEN_NODES_MAX:
            raise SettingsError(
                f"{count:,} channels go from node {source} to node {target}, more than "
                f"{CHANNELS_BETWEEN_NODES_MAX:,}: lower the parallelism, or spread the job over "
                "more nodes"
            )
