"""The error tree. One class of errors per moment.

* PenstockError
  + PlanError            building a pipeline: names the operator, the column, the user's line
  + SettingsError        a setting or an argument of a command that cannot be used
  + UserCodeError        an exception in user code: operator, subtask, epoch, key, row, source
  + ConnectorError       a source or a sink could not read, decode, write or commit
  + StateError           undeclared state, damaged snapshots, state that does not fit the program
  + JobFailed            the job gave up; carries the cause of each attempt
  + EngineError          our own machinery
    - ProtocolError      a peer broke the protocol; a bug or a foreign process
    - ChannelAborted     the other end died or the attempt was cancelled
    - Fenced             a newer generation owns the job
    - Unreachable        a process elsewhere cannot be reached; trying again later may help
"""

from __future__ import annotations

from dataclasses import dataclass


class PenstockError(Exception):
    """The root: catching it catches everything Penstock raises on purpose."""


class PlanError(PenstockError):
    """The program cannot run as written. The text says what, where and what to do."""


class SettingsError(PenstockError):
    """A setting has a value that cannot be used; the text names it and what it may be."""


class UserCodeError(PenstockError):
    """User code raised. `str()` is the whole report; the fields are for tools.

    `row` is the `repr` of the offending row (or of the batch's first rows), `source` its
    position where it is known, `traceback` the user's frames only.
    """

    def __init__(
        self,
        operator: str,
        subtask: int,
        method: str,
        cause: str,
        *,
        epoch: int | None = None,
        key: str | None = None,
        row: str | None = None,
        source: str | None = None,
        traceback: str = "",
        hint: str | None = None,
    ) -> None:
        self.operator = operator
        self.subtask = subtask
        self.method = method
        self.cause = cause
        self.epoch = epoch
        self.key = key
        self.row = row
        self.source = source
        self.traceback = traceback
        self.hint = hint
        self.poison = b""
        """The offending rows as an Arrow IPC stream; set by whoever knows them."""
        super().__init__(self._report())

    def _report(self) -> str:
        head = f"{self.operator}[{self.subtask}] failed in {self.method}()"
        if self.epoch is not None:
            head += f" at epoch {self.epoch}"
        if self.key is not None:
            head += f", key {self.key}"
        lines = [head]
        if self.row is not None:
            lines.append(f"  row    {self.row}")
        if self.source is not None:
            lines.append(f"  source {self.source}")
        lines.extend(f"  {line}" for line in self.traceback.rstrip().splitlines())
        lines.extend(f"  {line}" for line in self.cause.splitlines())
        if self.hint is not None:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild_user_code_error, (
            self.operator,
            self.subtask,
            self.method,
            self.cause,
            self.epoch,
            self.key,
            self.row,
            self.source,
            self.traceback,
            self.hint,
        )


def _rebuild_user_code_error(
    operator: str,
    subtask: int,
    method: str,
    cause: str,
    epoch: int | None,
    key: str | None,
    row: str | None,
    source: str | None,
    traceback: str,
    hint: str | None,
) -> UserCodeError:
    return UserCodeError(
        operator,
        subtask,
        method,
        cause,
        epoch=epoch,
        key=key,
        row=row,
        source=source,
        traceback=traceback,
        hint=hint,
    )


class ConnectorError(PenstockError):
    """A source or sink failed; the text names the connector, the object and the position."""


class StateError(PenstockError):
    """State that is undeclared, damaged, or does not belong to this program."""


@dataclass(frozen=True)
class AttemptFailure:
    """Why one attempt of a job ended: `cause` is the full text of the first failure."""

    attempt: int
    cause: str


class JobFailed(PenstockError):
    """The job gave up. `attempts` holds the cause of each attempt, oldest first."""

    def __init__(self, message: str, attempts: tuple[AttemptFailure, ...] = ()) -> None:
        self.message = message
        self.attempts = attempts
        story = "".join(f"\n  attempt {a.attempt}: {a.cause}" for a in attempts)
        super().__init__(message + story)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return JobFailed, (self.message, self.attempts)


class EngineError(PenstockError):
    """Our own machinery failed."""


class ProtocolError(EngineError):
    """A peer said something the protocol does not allow."""


class ChannelAborted(EngineError):
    """The other end of a channel died, or the attempt was cancelled."""


class Fenced(EngineError):
    """A newer generation owns the job; this one must stop without further effect."""


class Unreachable(EngineError):
    """A process elsewhere cannot be reached, or does not answer; it may be back later."""
