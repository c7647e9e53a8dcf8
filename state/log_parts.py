"""The rows of logs as they lie in runs: `_group`, `key.<name>`…, `value.<name>`…, `_time`.

Rows lie in the order in which they were appended, in batches of at least BATCH_ROWS where there
are as many. Every step is a kernel of Arrow or NumPy over columns: it runs in the snapshot thread,
beside the operator, and lets it have the GIL.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
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
from .run import encode_run, read_rows
from .store import Store

TIME = "_time"
FOLDER = "run"
PART_BYTES_MIN = 64 * 1024
"""Fewer bytes of new rows go into the subtask's own run, and again into the next one."""
BATCH_ROWS = 8192
"""Smaller batches are put together before they are written."""


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


def gathered(pieces: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in fewer batches: each costs a kilobyte where it is written."""
    small: list[pa.RecordBatch] = []
    rows = 0
    for piece in pieces:
        if piece.num_rows == 0:
            continue
        small.append(piece)
        rows += piece.num_rows
        if rows >= BATCH_ROWS:
            yield small[0] if len(small) == 1 else pa.concat_batches(small)
            small, rows = [], 0
    if small:
        yield small[0] if len(small) == 1 else pa.concat_batches(small)


def log_section(
    operator_id: str,
    name: str,
    declared: dict[str, Any],
    pieces: Iterable[pa.RecordBatch],
    schema: pa.Schema,
) -> Section:
    """All rows of `pieces`."""
    first, *more = list(gathered(pieces)) or [no_rows(schema)]
    return Section(operator_id, name, "log", first, declared, tuple(more))


def no_rows(schema: pa.Schema) -> pa.RecordBatch:
    """The declaration alone."""
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def not_cut(batch: pa.RecordBatch, cut_ns: int) -> pa.RecordBatch:
    """The rows with a time of at least `cut_ns`."""
    if cut_ns == WATERMARK_MIN or batch.num_rows == 0:
        return batch
    kept = pc.greater_equal(batch.column(TIME), pa.scalar(cut_ns, pa.int64()))
    return batch if pc.all(kept).as_py() else batch.filter(kept)


def put_part(store: Store, section: Section, groups: KeyGroupRange) -> LogPart:
    """Make an object of a section with rows; `groups` are those of the subtask."""
    batches = (section.batch, *section.more)
    times = [batch.column(TIME).to_numpy() for batch in batches]
    body = memoryview(encode_run([section]))
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
        rows=section.rows,
        low_ns=min(int(time.min()) for time in times),
        high_ns=max(int(time.max()) for time in times),
    )


def read_part(store: Store, part: LogPart) -> Iterator[pa.RecordBatch]:
    """The part's rows, a batch at a time; StateError names an object that is damaged."""
    body = store.get(part.run)
    if len(body) != part.size or zlib.crc32(body) != part.crc:
        raise StateError(
            f"{part.run} is damaged: {len(body)} bytes, crc {zlib.crc32(body):08x}; "
            f"the manifest says {part.size} bytes, crc {part.crc:08x}"
        )
    for batch in read_rows(body, part.operator_id, part.name, part.groups, part.run):
        yield not_cut(batch, part.cut_ns)


def store_log(
    store: Store, log: SealedLog, groups: KeyGroupRange
) -> tuple[Section, list[LogPart], int]:
    """Write what a checkpoint needs of one log: (section for the subtask's own run, the parts that
    the checkpoint names, bytes put into the store). Tells the log."""
    section = log.section()
    ids, schema = (log.operator_id, log.name, section.declared), section.batch.schema
    parts = list(log.parts)
    made = []
    written = sum(batch.nbytes for batch in (section.batch, *section.more)) >= PART_BYTES_MIN
    if written:
        made.append(put_part(store, section, groups))
        parts.append(made[-1])
        section = log_section(*ids, [], schema)
    if log.merge:
        pieces = chain.from_iterable(read_part(store, parts[at]) for at in log.merge)
        whole = log_section(*ids, pieces, schema)
        merged = [put_part(store, whole, groups)] if whole.rows else []
        made += merged
        parts[log.merge.start : log.merge.stop] = merged
    log.stored(parts, written)
    return section, parts, sum(part.size for part in made)


def group_array(hashes: npt.NDArray[np.uint64], shift: int) -> pa.Array:
    """The key groups of hashes."""
    return pa.array((hashes >> np.uint64(shift)).astype(np.uint16))
