"""What becomes of rows that user code cannot take: Fail, Drop or DeadLetter; and the report.

`Failures` is what processors call. A row is always reported alone: the processors find it. Errors
of our own tree (StateError and so on) never follow the policy; they end the attempt.
"""

from __future__ import annotations

import json
import linecache
import os
import traceback
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.conform import ConformError
from penstock.elements.errors import PenstockError, PlanError, UserCodeError
from penstock.elements.rows import RowError, row_text

from .processor import DEAD, ProcessorContext

DEAD_SCHEMA = pa.schema([("raw", pa.utf8()), ("error", pa.utf8()), ("position", pa.utf8())])
"""Dead letters: the row as JSON, what was wrong with it, and where it came from if known."""
RAW_CHARS_MAX = 64 * 1024
POISON_ROWS_MAX = 100
"""Rows of a failed batch that go into the poison folder when the bad one is not known."""
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NAMES = "elements state expressions operators dataflow connectors runtime cli testing"
_LAYERS = tuple(os.path.realpath(os.path.join(_OURS, name)) + os.sep for name in _NAMES.split())
"""The layers are links: code objects may carry the path on either side."""


@dataclass(frozen=True)
class Fail:
    """A bad row ends the attempt; the same row twice ends the job (the default)."""


@dataclass(frozen=True)
class Drop:
    """Bad rows are left out and counted as dropped."""


@dataclass(frozen=True)
class DeadLetter:
    """Bad rows go to JSON lines files below `path`, with the error, and are counted."""

    path: str

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise PlanError('DeadLetter: give it a folder:  .on_error(ps.DeadLetter("bad/"))')


ErrorPolicy = Fail | Drop | DeadLetter


def dead_output(policy: ErrorPolicy) -> dict[str, pa.Schema]:
    """The DEAD output, if the policy sets rows aside."""
    return {DEAD: DEAD_SCHEMA} if isinstance(policy, DeadLetter) else {}


class Failures:
    """Applies a policy to failed rows of one operator in one subtask."""

    def __init__(self, ctx: ProcessorContext, policy: ErrorPolicy) -> None:
        self._ctx = ctx
        self._policy = policy

    @property
    def ends_attempt(self) -> bool:
        """Whether the first bad row is the last row of this attempt."""
        return isinstance(self._policy, Fail)

    def row(
        self,
        method: str,
        error: Exception,
        given: pa.RecordBatch | None,
        *,
        row: Any = None,
        key: Any = None,
        keyed: bool = False,
    ) -> None:
        """`given` (one row as it arrived) failed in `method`: raise, count, or set it aside.

        Without `given` (timers) there is nothing to set aside: Drop and DeadLetter both count.
        """
        if isinstance(error, PenstockError):
            raise error
        if isinstance(self._policy, Fail):
            shown = None if row is None else row_text(row)
            raise self._report(method, error, given, shown, key, keyed) from error
        if given is None or isinstance(self._policy, Drop):
            self._ctx.count("dropped", 1 if given is None else given.num_rows)
            return
        self._ctx.count("dead_lettered", given.num_rows)
        cause = cause_of(error)
        letters = [json.dumps(r, default=str)[:RAW_CHARS_MAX] for r in _plain_rows(given)]
        self._ctx.collect(
            pa.RecordBatch.from_arrays(
                [
                    pa.array(letters, pa.utf8()),
                    pa.array([cause] * len(letters), pa.utf8()),
                    pa.array([self._ctx.origin] * len(letters), pa.utf8()),
                ],
                schema=DEAD_SCHEMA,
            ),
            DEAD,
        )

    def whole(self, method: str, error: Exception, given: pa.RecordBatch | None = None) -> None:
        """Something other than a row failed (open, a batch as a whole): always raises."""
        if isinstance(error, PenstockError):
            raise error
        shown = None
        if given is not None:
            shown = row_text(_plain_rows(given.slice(0, 3)))
            if given.num_rows > 3:
                shown += f" and {given.num_rows - 3} more of the batch"
        raise self._report(method, error, given, shown, None, False) from error

    def _report(
        self,
        method: str,
        error: Exception,
        given: pa.RecordBatch | None,
        shown: str | None,
        key: Any,
        keyed: bool,
    ) -> UserCodeError:
        report = UserCodeError(
            self._ctx.operator_name,
            self._ctx.subtask,
            method,
            cause_of(error),
            epoch=self._ctx.checkpoint_id,
            key=row_text(key) if keyed else None,
            row=shown,
            source=self._ctx.origin,
            traceback=user_frames(error),
            hint='To set such rows aside: .on_error(ps.DeadLetter("bad/"))'
            if given is not None
            else None,
        )
        if given is not None:
            report.poison = _stream_of(given.slice(0, POISON_ROWS_MAX))
        return report


def cause_of(error: BaseException) -> str:
    """The last line of a traceback; our own complaints about rows speak for themselves."""
    if isinstance(error, RowError | ConformError):
        return str(error)
    return "".join(traceback.format_exception_only(error)).strip()


def user_frames(error: BaseException) -> str:
    """The frames of the traceback that are not ours, one line each with its source beneath."""
    lines = []
    for frame, number in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if _is_ours(name):
            continue
        lines.append(f'File "{_near(name)}", line {number}, in {frame.f_code.co_name}')
        text = linecache.getline(name, number, frame.f_globals).strip()
        if text:
            lines.append(f"  {text}")
    return "\n".join(lines)


def _is_ours(name: str) -> bool:
    return name.startswith(_OURS) or os.path.realpath(name).startswith(_LAYERS)


def _near(name: str) -> str:
    """The path as the user would type it."""
    here = os.getcwd() + os.sep
    return name.removeprefix(here)


def _plain_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows for people and JSON; columns that Python cannot hold are shown as text."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except (ValueError, pa.ArrowException):
            columns[name] = [str(value) for value in column]
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _stream_of(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())
