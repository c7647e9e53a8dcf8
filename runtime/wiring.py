"""From a subtask's channels to its outputs: one router per edge, one buffer per channel."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from penstock.dataflow.settings import JobSettings
from penstock.operators.source import Split

from .messages import SourceSplit
from .output import Output, OutputChannel, Outputs
from .partition import router_of
from .setup import Outbound, SubtaskSetup

Wired = tuple[dict[tuple[int, str], list[Output]], dict[int, Outputs], Outputs]


def wire(setup: SubtaskSetup, settings: JobSettings) -> Wired:
    """(outputs by operator and output name, channels by operator, all channels)."""
    by_edge: dict[str, list[Outbound]] = defaultdict(list)
    for outbound in setup.senders:
        by_edge[outbound.edge.id].append(outbound)
    linger_ns = int(settings.linger_ms * 1e6)
    outputs: dict[tuple[int, str], list[Output]] = defaultdict(list)
    channels: dict[int, list[OutputChannel]] = defaultdict(list)
    for outbounds in by_edge.values():
        edge = outbounds[0].edge
        router = router_of(edge, len(outbounds), setup.deployment.key.index, settings.batch_rows)
        made = [OutputChannel(o.sender, settings.batch_rows, linger_ns) for o in outbounds]
        outputs[edge.source_operator, edge.output].append(Output(router, made))
        channels[edge.source_operator].extend(made)
    every = Outputs([channel for made in channels.values() for channel in made])
    return dict(outputs), {index: Outputs(made) for index, made in channels.items()}, every


def splits_of(splits: Sequence[SourceSplit]) -> list[Split]:
    """Splits as the source knows them."""
    return [Split(split.id, split.size, json.loads(split.detail)) for split in splits]
