"""What the job's state machine orders, and the settings it goes by: pure data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import AttemptFailure

from .checkpoint import Action as CheckpointAction
from .messages import Failure
from .restart import RestartPolicy

NS = 1_000_000_000
Outcome = Literal["finished", "stopped"]


class Phase(Enum):
    """Where the present attempt stands."""

    LAUNCHING = "launching"
    DEPLOYING = "deploying"
    RUNNING = "running"
    CANCELLING = "cancelling"
    WAITING = "waiting"
    ENDED = "ended"


@dataclass(frozen=True)
class StartAgent:
    """There is none, or it was lost."""


@dataclass(frozen=True)
class Deploy:
    """Start this attempt from checkpoint `restores` (0: from the start)."""

    attempt: int
    restores: int


@dataclass(frozen=True)
class Cancel:
    """Kill this attempt; AttemptGone or the agent's loss is the answer."""

    attempt: int


@dataclass(frozen=True)
class RecordFinished:
    """Everything is committed: say so in the log, tidy the sinks."""

    checkpoint_id: int


@dataclass(frozen=True)
class SetAside:
    """Write the rows that failed twice to the poison folder."""

    failure: Failure


@dataclass(frozen=True)
class End:
    """The job is over, no attempt runs. `warning` is what the user should know."""

    outcome: Outcome
    warning: str = ""


@dataclass(frozen=True)
class GiveUp:
    """The job has failed, no attempt runs."""

    message: str
    attempts: tuple[AttemptFailure, ...]


Action = CheckpointAction | StartAgent | Deploy | Cancel | RecordFinished | SetAside | End | GiveUp


@dataclass(frozen=True)
class Policy:
    """The settings that this machine goes by."""

    interval_ns: int
    timeout_ns: int
    tolerated: int
    restart: RestartPolicy


def policy_of(settings: JobSettings) -> Policy:
    """The settings that the state machine goes by, in nanoseconds."""
    return Policy(
        interval_ns=int(settings.checkpoint_interval_s * NS),
        timeout_ns=int(settings.checkpoint_timeout_s * NS),
        tolerated=settings.tolerated_failed_checkpoints,
        restart=RestartPolicy(
            attempts=settings.restart_attempts,
            delay_ns=int(settings.restart_delay_s * NS),
            delay_ns_max=int(settings.restart_delay_s_max * NS),
            healthy_ns=int(settings.restart_healthy_s * NS),
        ),
    )
