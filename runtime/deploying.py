"""What an attempt is told: the Deploy message made of plan, settings, manifest and splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import cloudpickle
import msgspec

from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import PlanError
from penstock.elements.keygroup import owned_groups
from penstock.elements.wire import wire_schema

from .deployment import channels_of, user_surroundings
from .enumerators import Dealt, Enumerators
from .manifest import Manifest, finished_vertices, restored_parts, restored_runs
from .messages import ChannelSpec, Deploy, SubtaskDeployment, SubtaskKey
from .slab_sender import schema_fingerprint


def upstream_of(plan: Plan, channels: list[ChannelSpec]) -> dict[SubtaskKey, frozenset[SubtaskKey]]:
    """For every subtask, in the plan's order, those that it has channels from."""
    upstream: dict[SubtaskKey, set[SubtaskKey]] = {
        SubtaskKey(vertex.id, index): set()
        for vertex in plan.vertices
        for index in range(vertex.parallelism)
    }
    for channel in channels:
        upstream[channel.target].add(channel.source)
    return {key: frozenset(sources) for key, sources in upstream.items()}


def channel_fingerprints(plan: Plan, channels: Sequence[ChannelSpec]) -> list[int]:
    """Of each channel, that of the schema it carries: what two nodes compare before rows flow."""
    by_edge = {edge.id: schema_fingerprint(wire_schema(edge.schema)) for edge in plan.edges}
    return [by_edge[channel.edge] for channel in channels]


class Deployer:
    """Makes the Deploy messages of one job. Pickles the plan once, at the start.

    Raises PlanError if the program cannot be sent to its processes, SettingsError if its channels
    do not fit the memory they may take.
    """

    def __init__(self, plan: Plan, settings: JobSettings, store_root: str) -> None:
        self._plan = plan
        self.store_root = store_root
        self._settings = msgspec.json.encode(settings)
        self._python_path, self._cwd = user_surroundings()
        self.channels = channels_of(plan, settings)
        try:
            self._blob: bytes = cloudpickle.dumps(replace(plan, program=None))
        except Exception as error:
            raise PlanError(
                f"the program cannot be sent to its processes: {error}\n"
                "  What an operator holds when the job starts must be picklable: keep paths and "
                "settings in __init__, connect and load in open()."
            ) from error

    def message(
        self,
        generation: int,
        attempt: int,
        run_id: str,
        manifest: Manifest | None,
        enumerators: Enumerators,
    ) -> Deploy:
        """The attempt that goes on from `manifest`; deals the splits out afresh."""
        dealt = enumerators.deal_afresh(manifest.seen_splits if manifest else {})
        return Deploy(
            job=self._plan.name,
            generation=generation,
            attempt=attempt,
            run_id=run_id,
            store_root=self.store_root,
            plan=self._blob,
            subtasks=self._subtasks(manifest, dealt, enumerators),
            channels=self.channels,
            settings=self._settings,
            python_path=self._python_path,
            cwd=self._cwd,
        )

    def _subtasks(
        self, manifest: Manifest | None, dealt: Mapping[str, Dealt], enumerators: Enumerators
    ) -> list[SubtaskDeployment]:
        finished = finished_vertices(manifest, self._plan) if manifest else set()
        subtasks = []
        for vertex in self._plan.vertices:
            head = vertex.operators[0]
            runs = restored_runs(manifest, vertex) if manifest else []
            for index in range(vertex.parallelism):
                key = SubtaskKey(vertex.id, index)
                groups = owned_groups(index, vertex.parallelism)
                mine = dealt.get(head.id, {}).get(key, [])
                subtasks.append(
                    SubtaskDeployment(
                        key=key,
                        title=f"{vertex.name}[{index}]",
                        restored=runs,
                        splits={head.id: mine} if head.is_source else {},
                        no_more_splits=enumerators.no_more(head.id),
                        finished=vertex.id in finished,
                        commit_up_to=manifest.id if manifest else 0,
                        restored_parts=restored_parts(manifest, vertex, groups) if manifest else [],
                    )
                )
        return subtasks
