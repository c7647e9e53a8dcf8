"""How a job runs, as opposed to what it computes. Argument < file < environment < command line."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
Number = Annotated[int, msgspec.Meta(ge=0)]
Span = Annotated[float, msgspec.Meta(ge=0)]
Interval = Annotated[float, msgspec.Meta(ge=0.001)]
"""A time that cannot be nothing, in the unit of its setting."""
Slots = Annotated[int, msgspec.Meta(ge=2)]
"""With one, producer and consumer would wait for each other's turn."""


class JobSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of a run, with its unit in its name. `--set name=value` reaches each."""

    state_dir: str | None = None
    """Where the job's log, manifests and runs lie; None: a temporary directory, gone at the end."""
    parallelism: Count = 1
    """Subtasks per operator where the program names none."""
    fresh: bool = False
    """Begin anew although the state directory holds a job of this name."""
    checkpoint_interval_s: Interval = 10.0
    checkpoint_timeout_s: Interval = 600.0
    tolerated_failed_checkpoints: Number = 3
    """In a row; one more fails the attempt."""
    retained_checkpoints: Count = 3
    restart_attempts: Number = 10
    """Restarts in a row before the job gives up; a healthy time resets the count."""
    restart_delay_s: Span = 0.05
    """Before the first restart; doubles with each further one up to restart_delay_s_max."""
    restart_delay_s_max: Span = 30.0
    restart_healthy_s: Span = 60.0
    durability: Literal["process", "machine"] = "machine"
    """machine: fsync before a checkpoint counts; process: survive kill -9 but not power loss."""
    batch_rows: Count = 8192
    """Rows gathered per output channel before they are sent, unless the linger ends first."""
    linger_ms: Span = 5.0
    watermark_interval_ms: Span = 50.0
    channel_slots: Slots = 8
    shuffle_memory_bytes: Count = 128 * 1024 * 1024
    """All slots of one shuffle together; smaller slots, never fewer than two per channel."""
    inflight_ms: Interval = 500.0
    """Rows waiting in front of a slow operator, as time (hazard 8)."""
    statistics_interval_s: Interval = 1.0
    allow_dropped_state: bool = False
    restore_from: Count | None = None
    accept_duplicates: bool = False
