"""What the agent makes for one attempt and owns until it is over: memory, bells, directories.

One memfd segment per consuming subtask with a region per incoming channel, and one per subtask
whose channels leave the node; one doorbell per subtask and per neighbouring node, one page of
progress words, the program as bytes. Nothing of it outlives its processes: memory has no name, and
the bells' names go as soon as every process has opened them.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .doorbell import Doorbell, doorbell_name
from .handover import ChannelEnd, Handover
from .messages import ChannelSpec, Deploy, RemoteChannel, SubtaskKey, UseNetwork
from .net import setup as net
from .progress_word import ProgressPage, create_page, page_bytes
from .segment import Segment
from .slab import RegionSize


class _Channel(NamedTuple):
    """`remote` is set if its other end is on another node."""

    spec: ChannelSpec
    remote: RemoteChannel | None


class _Slabs(NamedTuple):
    """A segment, and the channels of its regions in their order."""

    segment: Segment
    channels: list[_Channel]


class AttemptMemory:
    """Made in full or not at all; `close` when the last process is dead."""

    def __init__(self, deploy: Deploy, scratch_root: str, liveness: int) -> None:
        """`liveness` is a descriptor every process is to hold open for as long as it lives."""
        self._deploy = deploy
        self._liveness = liveness
        self.keys: list[SubtaskKey] = [each.key for each in deploy.subtasks]
        self._descriptors: list[int] = []
        self._bells: dict[SubtaskKey, Doorbell] = {}
        self._node_bells: dict[str, Doorbell] = {}
        """What the subtasks ring for their neighbours on that node: the net process's."""
        self._named = True
        self._arriving: dict[SubtaskKey, _Slabs] = {}
        self._leaving: dict[SubtaskKey, _Slabs] = {}
        self._scratch = os.path.join(scratch_root, f"{deploy.generation}-{deploy.attempt}")
        self.page: ProgressPage | None = None
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for ordinal, key in enumerate(self.keys):
            self._bells[key] = self._bell(ordinal)
            os.makedirs(self.scratch_dir(ordinal), 0o700)
        remote = {r.channel: r for r in self._deploy.net.channels} if self._deploy.net else {}
        for place, node in enumerate(sorted({each.node for each in remote.values()})):
            self._node_bells[node] = self._bell(len(self.keys) + place)
        self._make_slabs(remote)
        self._plan = os.memfd_create("penstock-plan", os.MFD_CLOEXEC)
        self._descriptors.append(self._plan)
        with os.fdopen(os.dup(self._plan), "wb") as file:
            file.write(self._deploy.plan)
        self._progress = create_page(len(self.keys))
        self._descriptors.append(self._progress)
        self.page = ProgressPage(self._progress, page_bytes(len(self.keys)))

    def _bell(self, ordinal: int) -> Doorbell:
        return Doorbell.create(doorbell_name(self._deploy.attempt, ordinal))

    def _make_slabs(self, remote: Mapping[int, RemoteChannel]) -> None:
        arriving: dict[SubtaskKey, list[_Channel]] = defaultdict(list)
        leaving: dict[SubtaskKey, list[_Channel]] = defaultdict(list)
        for place, spec in enumerate(self._deploy.channels):
            channel = _Channel(spec, remote.get(place))
            if spec.target in self._bells:
                arriving[spec.target].append(channel)
            else:
                leaving[spec.source].append(channel)
        for found, made in ((arriving, self._arriving), (leaving, self._leaving)):
            for key, channels in found.items():
                sizes = [RegionSize(each.spec.slots, each.spec.slot_bytes) for each in channels]
                made[key] = _Slabs(Segment.create(sizes), channels)

    def scratch_dir(self, ordinal: int) -> str:
        """The private directory of one subtask."""
        return os.path.join(self._scratch, str(ordinal))

    def handover(self, ordinal: int, entry: str) -> tuple[Handover, list[int]]:
        """What the subtask's process is to be told, and the descriptors to go with it."""
        deploy, key = self._deploy, self.keys[ordinal]
        descriptors = [self._plan, self._progress, self._liveness]
        inbound: list[ChannelEnd] = []
        outbound: list[ChannelEnd] = []
        for target, slabs in self._arriving.items():
            place, used = len(descriptors), False
            for region, (spec, remote) in enumerate(slabs.channels):
                if target == key:
                    peer = self._bell_of(spec.source, remote)
                    inbound.append(ChannelEnd(spec, place, region, peer))
                if spec.source == key:
                    outbound.append(ChannelEnd(spec, place, region, self._bells[target].name))
                used |= key in (target, spec.source)
            if used:
                descriptors.append(slabs.segment.fd)
        if key in self._leaving:
            slabs = self._leaving[key]
            for region, (spec, remote) in enumerate(slabs.channels):
                peer = self._bell_of(spec.target, remote)
                outbound.append(ChannelEnd(spec, len(descriptors), region, peer))
            descriptors.append(slabs.segment.fd)
        told = Handover(
            job=deploy.job,
            generation=deploy.generation,
            attempt=deploy.attempt,
            run_id=deploy.run_id,
            store_root=deploy.store_root,
            settings=deploy.settings,
            deployment=deploy.subtasks[ordinal],
            ordinal=ordinal,
            subtasks=len(self.keys),
            doorbell=self._bells[key].name,
            inbound=inbound,
            outbound=outbound,
            descriptors=len(descriptors),
            entry=entry,
            scratch_dir=self.scratch_dir(ordinal),
            python_path=deploy.python_path,
            cwd=deploy.cwd,
        )
        return told, descriptors

    def _bell_of(self, neighbour: SubtaskKey, remote: RemoteChannel | None) -> str:
        bell = self._bells[neighbour] if remote is None else self._node_bells[remote.node]
        return bell.name

    def net_setup(self, use: UseNetwork) -> tuple[net.NetSetup, list[int]]:
        """What the net process is to be told, and the descriptors to go with it.

        It gets no segment without a channel that leaves the node or comes from another one.
        """
        deploy = self._deploy
        assert deploy.net is not None
        descriptors: list[int] = []
        sends: dict[str, list[net.ChannelEnd]] = {node: [] for node in self._node_bells}
        receives: dict[str, list[net.ChannelEnd]] = {node: [] for node in self._node_bells}
        for ends, every in ((receives, self._arriving), (sends, self._leaving)):
            for key, slabs in every.items():
                place, used = len(descriptors), False
                for region, (_, remote) in enumerate(slabs.channels):
                    if remote is not None:
                        used = True
                        end = net.ChannelEnd(
                            remote.number, place, region, remote.fingerprint, self._bells[key].name
                        )
                        ends[remote.node].append(end)
                if used:
                    descriptors.append(slabs.segment.fd)
        peers = [
            net.PeerSetup(node, bell.name, sends[node], receives[node])
            for node, bell in self._node_bells.items()
        ]
        setup = net.NetSetup(
            job=deploy.job,
            generation=deploy.generation,
            attempt=deploy.attempt,
            node=deploy.net.node,
            address=use.host,
            peers=peers,
            descriptors=len(descriptors),
            compression=use.compression,
            secret=use.secret,
            tls=use.tls,
            open_loopback=use.open_loopback,
        )
        return setup, descriptors

    def ring_all(self) -> None:
        """Wake everyone: the bound on whatever a lost wake-up may cost (hazard 2)."""
        for bell in self._every_bell():
            bell.ring()

    def abort_channels_of(self, key: SubtaskKey) -> None:
        """Tell the neighbours of a dead subtask that nothing more comes or is taken."""
        for slabs in (*self._arriving.values(), *self._leaving.values()):
            for region, (spec, _) in enumerate(slabs.channels):
                if key in (spec.source, spec.target):
                    slabs.segment.abort(region)
        self.ring_all()

    def unlink_names(self) -> None:
        """Once every process has opened its bells, or none will any more."""
        if self._named:
            self._named = False
            for bell in self._every_bell():
                bell.unlink()

    def close(self) -> None:
        """Release everything. Requires: no process of the attempt lives."""
        self.unlink_names()
        for bell in self._every_bell():
            bell.close()
        for slabs in (*self._arriving.values(), *self._leaving.values()):
            slabs.segment.close()
        if self.page is not None:
            self.page.close()
            self.page = None
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _every_bell(self) -> Iterable[Doorbell]:
        yield from self._bells.values()
        yield from self._node_bells.values()
