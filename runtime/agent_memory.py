"""What the agent makes for one attempt and owns until it is over: memory, bells, directories.

One memfd segment per consuming subtask with a region per incoming channel, one doorbell per
subtask, one page of progress words, the program as bytes. Nothing of it outlives its processes:
memory has no name, and the bells' names go as soon as every process has opened them.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict

from .doorbell import Doorbell, doorbell_name
from .handover import ChannelEnd, Handover
from .messages import ChannelSpec, Deploy, SubtaskKey
from .progress_word import ProgressPage, create_page, page_bytes
from .segment import Segment
from .slab import RegionSize


class AttemptMemory:
    """Made in full or not at all; `close` when the last process is dead."""

    def __init__(self, deploy: Deploy, scratch_root: str, liveness: int) -> None:
        """`liveness` is a descriptor every process is to hold open for as long as it lives."""
        self._deploy = deploy
        self._liveness = liveness
        self.keys: list[SubtaskKey] = [each.key for each in deploy.subtasks]
        self._ordinals = {key: ordinal for ordinal, key in enumerate(self.keys)}
        self._descriptors: list[int] = []
        self._names: list[str] = []
        self._bells: dict[SubtaskKey, Doorbell] = {}
        self._named = True
        self._segments: dict[SubtaskKey, Segment] = {}
        self._regions: dict[SubtaskKey, list[ChannelSpec]] = defaultdict(list)
        self._scratch = os.path.join(scratch_root, f"{deploy.generation}-{deploy.attempt}")
        self.page: ProgressPage | None = None
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for ordinal, key in enumerate(self.keys):
            name = doorbell_name(self._deploy.attempt, ordinal)
            self._bells[key] = Doorbell.create(name)
            os.makedirs(self.scratch_dir(ordinal), 0o700)
        for channel in self._deploy.channels:
            self._regions[channel.target].append(channel)
        for target, channels in self._regions.items():
            self._segments[target] = Segment.create(
                [RegionSize(channel.slots, channel.slot_bytes) for channel in channels]
            )
        self._plan = os.memfd_create("penstock-plan", os.MFD_CLOEXEC)
        self._descriptors.append(self._plan)
        with os.fdopen(os.dup(self._plan), "wb") as file:
            file.write(self._deploy.plan)
        self._progress = create_page(len(self.keys))
        self._descriptors.append(self._progress)
        self.page = ProgressPage(self._progress, page_bytes(len(self.keys)))

    def scratch_dir(self, ordinal: int) -> str:
        """The private directory of one subtask."""
        return os.path.join(self._scratch, str(ordinal))

    def handover(self, ordinal: int, entry: str) -> tuple[Handover, list[int]]:
        """What the subtask's process is to be told, and the descriptors to go with it."""
        deploy, key = self._deploy, self.keys[ordinal]
        descriptors = [self._plan, self._progress, self._liveness]
        inbound: list[ChannelEnd] = []
        outbound: list[ChannelEnd] = []
        if key in self._segments:
            for region, channel in enumerate(self._regions[key]):
                peer = self._bells[channel.source].name
                inbound.append(ChannelEnd(channel, len(descriptors), region, peer))
            descriptors.append(self._segments[key].fd)
        for target, segment in self._segments.items():
            ends = [
                ChannelEnd(channel, len(descriptors), region, self._bells[target].name)
                for region, channel in enumerate(self._regions[target])
                if channel.source == key
            ]
            if ends:
                outbound.extend(ends)
                descriptors.append(segment.fd)
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

    def ring_all(self) -> None:
        """Wake every subtask: the bound on whatever a lost wake-up may cost (hazard 2)."""
        for bell in self._bells.values():
            bell.ring()

    def abort_channels_of(self, key: SubtaskKey) -> None:
        """Tell the neighbours of a dead subtask that nothing more comes or is taken."""
        for target, channels in self._regions.items():
            for region, channel in enumerate(channels):
                if key in (channel.source, channel.target):
                    self._segments[target].abort(region)
        self.ring_all()

    def unlink_names(self) -> None:
        """Once every process has opened its bells, or none will any more."""
        if self._named:
            self._named = False
            for bell in self._bells.values():
                bell.unlink()

    def close(self) -> None:
        """Release everything. Requires: no process of the attempt lives."""
        self.unlink_names()
        for bell in self._bells.values():
            bell.close()
        for segment in self._segments.values():
            segment.close()
        if self.page is not None:
            self.page.close()
            self.page = None
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        shutil.rmtree(self._scratch, ignore_errors=True)
