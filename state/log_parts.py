"""The rows of logs as they lie in runs: `_group`, `key.<name>`…, `value.<name>`…, `_time`.

Rows are sorted by key group, those of one group in the order in which they were appended. All
steps are Arrow and NumPy kernels over whole columns: they run in the snapshot thread, beside the
operator, and let it have the GIL.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from penstock.elements.errors import StateError
from penstock.elements.keygroup import KeyGroupRange
from penstock.elements.signals import WATERMARK_MIN

from .backend import SealedLog, Section
from .clip import GROUP_COLUMN
from .log_history import LogPart
from .run import read_run, write_run
from .store import Store

TIME = "_time"
FOLDER = "run"
PART_BYTES_MIN = 64 * 1024
"""Fewer bytes of new rows go into the subtask's own run, and again into the next one."""


def wide_type(kind: pa.DataType) -> pa.DataType:
    """The type in runs: large offsets, so that one section may exceed 2 GiB."""
    if pt.is_string(kind) or pt.is_string_view(kind):
        return pa.large_string()
    if pt.is_binary(kind) or pt.is_binary_view(kind):
        return pa.large_binary()
    return kind


def log_schema(key: pa.Schema, value: pa.Schema) -> pa.Schema:
    """The columns of a log's section."""
    fields = [pa.field(GROUP_COLUMN, pa.uint16())]
    fields += [pa.field(f"key.{f.name}", wide_type(f.type)) for f in key]
    fields += [pa.field(f"value.{f.name}", wide_type(f.type)) for f in value]
    return pa.schema([*fields, pa.field(TIME, pa.int64())])


def sorted_rows(pieces: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """The rows of `pieces` in the order of a run. Owned memory."""
    if not pieces:
        return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
    groups = pa.concat_arrays([piece.column(0) for piece in pieces]).to_numpy()
    # A stable order of 16-bit words is a radix sort: a few nanoseconds a row.
    order = np.argsort(groups, kind="stable")
    index = pa.array(order)
    # Column by column, so that only one of them lies in memory twice.
    arrays = [
        pa.concat_arrays([piece.column(at) for piece in pieces]).take(index)
        for at in range(len(schema))
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def not_cut(batch: pa.RecordBatch, cut_ns: int) -> pa.RecordBatch:
    """The rows with a time of at least `cut_ns`."""
    if cut_ns == WATERMARK_MIN or batch.num_rows == 0:
        return batch
    kept = pc.greater_equal(batch.column(TIME), pa.scalar(cut_ns, pa.int64()))
    return batch if pc.all(kept).as_py() else batch.filter(kept)


def put_part(store: Store, section: Section, groups: KeyGroupRange) -> LogPart:
    """Make an object of a section with rows; `groups` are those of the subtask."""
    times = section.batch.column(TIME).to_numpy()
    body = write_run([section])
    name = f"{FOLDER}/{uuid.uuid4().hex}"
    store.put(name, body)
    return LogPart(
        run=name,
        size=len(body),
        crc=zlib.crc32(body),
        operator_id=section.operator_id,
        name=section.name,
        first_group=groups.start,
        stop_group=groups.stop,
        whole_groups=groups.stop - groups.start,
        rows=section.batch.num_rows,
        low_ns=int(times.min()),
        high_ns=int(times.max()),
    )


def read_part(store: Store, part: LogPart) -> tuple[dict[str, Any], pa.RecordBatch]:
    """(what was declared, the part's rows); StateError names an object that is damaged."""
    body = store.get(part.run)
    if len(body) != part.size or zlib.crc32(body) != part.crc:
        raise StateError(
            f"{part.run} is damaged: {len(body)} bytes, crc {zlib.crc32(body):08x}; "
            f"the manifest says {part.size} bytes, crc {part.crc:08x}"
        )
    for section in read_run(body, {part.operator_id}, part.groups, part.run):
        if section.name == part.name and section.kind == "log":
            return section.declared, not_cut(section.batch, part.cut_ns)
    raise StateError(f"{part.run} does not hold log {part.name} of operator {part.operator_id}")


def store_log(
    store: Store, log: SealedLog, groups: KeyGroupRange
) -> tuple[Section, list[LogPart], int]:
    """Write what a checkpoint needs of one log: (section for the subtask's own run, the parts that
    the checkpoint names, bytes put into the store). Tells the log."""
    section = log.section()
    parts = list(log.parts)
    made = []
    if log.merge:
        inputs = [read_part(store, parts[at])[1] for at in log.merge]
        rows = sorted_rows(inputs, section.batch.schema)
        del inputs
        merged = []
        if rows.num_rows:
            whole = Section(log.operator_id, log.name, "log", rows, section.declared)
            merged.append(put_part(store, whole, groups))
            made += merged
        del rows
        parts[log.merge.start : log.merge.stop] = merged
    written = section.batch.nbytes >= PART_BYTES_MIN
    if written:
        made.append(put_part(store, section, groups))
        parts.append(made[-1])
        empty = section.batch.slice(0, 0)
        section = Section(log.operator_id, log.name, "log", empty, section.declared)
    log.stored(parts, written)
    return section, parts, sum(part.size for part in made)


def group_array(hashes: npt.NDArray[np.uint64], shift: int) -> pa.Array:
    """The key groups of hashes."""
    return pa.array((hashes >> np.uint64(shift)).astype(np.uint16))
