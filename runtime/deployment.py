"""From a plan to its channels: how many, between whom, and how much memory they may take.

Forward edges join equal indices; all others join every producer with every consumer. The slots of
one shuffle share a budget (hazard 38): pages count only once touched, but back-pressure touches
them all, so the sum is what a job must be allowed to take.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from penstock.dataflow.plan import Edge, Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import SettingsError

from .messages import ChannelSpec, SubtaskKey

SLOT_BYTES_MIN = 64 * 1024
"""Below this an 8k-row batch falls apart into too many messages."""
SLOT_BYTES_MAX = 2 * 1024 * 1024
SLOTS_MIN = 2
"""One being filled while the other is read."""
PAGE_BYTES = 4096
PROCESS_BYTES = 25 * 1024 * 1024
"""Private memory of a subtask before it holds state; benchmarks/start_up.py measures it."""


@dataclass(frozen=True)
class MemoryBudget:
    """What a plan may take beside its state."""

    channels: int
    channel_bytes: int
    subtasks: int
    process_bytes: int

    def __str__(self) -> str:
        mib = 1024 * 1024
        total = (self.channel_bytes + self.process_bytes) / mib
        return (
            f"memory: {self.channels} channels up to {self.channel_bytes / mib:,.0f} MiB, "
            f"{self.subtasks} subtasks about {self.process_bytes / mib:,.0f} MiB, "
            f"together {total:,.0f} MiB beside state"
        )


def channels_of(plan: Plan, settings: JobSettings) -> list[ChannelSpec]:
    """Every channel of the plan; a consumer's are in the order of its inputs.

    That order is port, edge id, source index. Raises SettingsError when a shuffle does not fit
    its budget even with the fewest and smallest slots.
    """
    channels: list[ChannelSpec] = []
    for vertex in plan.vertices:
        inputs = plan.inputs(vertex.id)
        sizes = {edge.id: _slots_of(plan, edge, settings) for edge in inputs}
        for index in range(vertex.parallelism):
            target = SubtaskKey(vertex.id, index)
            for edge in inputs:
                slots, slot_bytes = sizes[edge.id]
                for source_index in _sources_of(plan, edge, index):
                    source = SubtaskKey(edge.source_vertex, source_index)
                    channels.append(ChannelSpec(edge.id, source, target, slots, slot_bytes))
    return channels


def subtask_keys(plan: Plan) -> list[SubtaskKey]:
    """Every subtask, vertices in topological order."""
    return [
        SubtaskKey(vertex.id, index)
        for vertex in plan.vertices
        for index in range(vertex.parallelism)
    ]


def user_surroundings() -> tuple[list[str], str]:
    """(sys.path, working directory) of this process, as subtasks are to find them.

    The empty entry, and relative ones, mean the working directory of now.
    """
    try:
        cwd = os.getcwd()
    except OSError:
        # Removed under our feet: relative paths mean nothing here, nor in a subtask.
        cwd = ""
    return [os.path.join(cwd, entry) if cwd else entry for entry in sys.path], cwd


def memory_budget(plan: Plan, settings: JobSettings) -> MemoryBudget:
    """The budget that `explain` prints."""
    channels = channels_of(plan, settings)
    subtasks = len(subtask_keys(plan))
    return MemoryBudget(
        channels=len(channels),
        channel_bytes=sum(channel.slots * channel.slot_bytes for channel in channels),
        subtasks=subtasks,
        process_bytes=subtasks * PROCESS_BYTES,
    )


def _sources_of(plan: Plan, edge: Edge, target_index: int) -> range:
    parallelism = plan.vertex(edge.source_vertex).parallelism
    if edge.partition == "forward":
        assert parallelism == plan.vertex(edge.target_vertex).parallelism
        return range(target_index, target_index + 1)
    return range(parallelism)


def _channel_count(plan: Plan, edge: Edge) -> int:
    targets = plan.vertex(edge.target_vertex).parallelism
    if edge.partition == "forward":
        return targets
    return targets * plan.vertex(edge.source_vertex).parallelism


def _slots_of(plan: Plan, edge: Edge, settings: JobSettings) -> tuple[int, int]:
    """(slots, bytes of each) for every channel of the edge."""
    channels = _channel_count(plan, edge)
    share = settings.shuffle_memory_bytes // channels
    # Fewer slots before smaller ones than the minimum: batches must fit.
    slots = max(SLOTS_MIN, min(settings.channel_slots, share // SLOT_BYTES_MIN))
    slot_bytes = share // slots
    if slot_bytes < SLOT_BYTES_MIN:
        needed = channels * SLOTS_MIN * SLOT_BYTES_MIN
        raise SettingsError(
            f"the {edge.partition} exchange into {edge.target_vertex} has {channels:,} channels, "
            f"which need {needed:,} bytes at least, but shuffle_memory_bytes is "
            f"{settings.shuffle_memory_bytes:,}: raise it to {needed}, or lower the parallelism"
        )
    return slots, min(SLOT_BYTES_MAX, slot_bytes) // PAGE_BYTES * PAGE_BYTES
