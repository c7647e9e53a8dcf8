"""What a subtask's process has in hand when its loop starts: everything opened and attached.

Made by subtask_process.py, consumed by subtask.py; pure data, so that a test can make one by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.dataflow.plan import Edge, Plan, Vertex
from penstock.dataflow.settings import JobSettings
from penstock.elements.clock import Clock

from .channel import Receiver, Sender
from .control import ControlLink
from .messages import SubtaskDeployment
from .progress_word import ProgressWord

if TYPE_CHECKING:
    from .doorbell import Doorbell


@dataclass(frozen=True)
class Inbound:
    """The receiving end of one channel into this subtask."""

    edge: Edge
    source_index: int
    receiver: Receiver


@dataclass(frozen=True)
class Outbound:
    """The sending end of one channel out of this subtask."""

    edge: Edge
    target_index: int
    sender: Sender


@dataclass
class SubtaskSetup:
    """All that one subtask needs. `vertex` is its own vertex of `plan`."""

    job: str
    generation: int
    attempt: int
    run_id: str
    store_root: str
    settings: JobSettings
    deployment: SubtaskDeployment
    plan: Plan
    vertex: Vertex
    receivers: list[Inbound]
    """By port, edge id, source index."""
    senders: list[Outbound]
    """By edge id, target index."""
    doorbell: Doorbell
    link: ControlLink
    scratch_dir: str
    """Exists, belongs to this subtask alone, and is gone after the attempt."""
    progress: ProgressWord
    clock: Clock
    pid: int
