"""A submission as the catalog keeps it, and what the life of a job orders: pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .job_messages import ToJob
from .node_messages import NodeName


@dataclass(frozen=True)
class JobRecord:
    """All of a submission that must outlive the controller."""

    id: int
    submission: str
    """Names it among all that there ever were, in any cluster."""
    job: str
    bundle: str
    bundle_bytes: int
    settings: bytes
    """JobSettings as JSON, as the user gave them."""
    placement: str
    environment: Mapping[str, str] = field(default_factory=dict)
    parallelism: Mapping[str, int] = field(default_factory=dict)
    """What `scale` has said so far; "" stands for the default."""
    fallback: Mapping[str, int] | None = None
    """What to go back to if the job cannot start with `parallelism`; None once it has run so."""
    stop: str = ""
    """A StopMode once the user wants it to end."""
    ran: bool = False
    """It has run at least once, so it would rather share slots than wait for them."""
    launch: int = 0
    """The last one of it; 0 before the first."""
    submitted_ns: int = 0
    ended_ns: int = 0
    outcome: str = ""
    """Empty while it lives, then finished, stopped, already finished or failed."""
    note: str = ""
    summary: bytes = b""


@dataclass(frozen=True)
class SaveJob:
    """Durable before anything that follows is done."""

    record: JobRecord


@dataclass(frozen=True)
class StartProcess:
    """Launch number `record.launch`; nothing of an older one is left."""

    record: JobRecord


@dataclass(frozen=True)
class KillProcess:
    """It should have ended by itself."""

    job: str
    launch: int


@dataclass(frozen=True)
class TellJob:
    """To the job's process, if it is this launch's."""

    job: str
    launch: int
    message: ToJob


@dataclass(frozen=True)
class OpenOnNode:
    """Have an agent of the job there."""

    name: NodeName
    record: JobRecord


@dataclass(frozen=True)
class CloseOnNode:
    """Have it killed there."""

    name: NodeName
    job: str
    launch: int


@dataclass(frozen=True)
class AskSlots:
    """See NeedSlots."""

    job: str
    grant: int
    count: int
    again: bool
    placement: str


@dataclass(frozen=True)
class FreeSlots:
    """The job needs none for now."""

    job: str


JobCommand = (
    SaveJob | StartProcess | KillProcess | TellJob | OpenOnNode | CloseOnNode | AskSlots
    | FreeSlots
)  # fmt: skip
