"""The run: all sealed state of one subtask at one cut, as one immutable object.

Promises: what is read is what was written, or StateError names the object; sections that are not
wanted, or hold no wanted key group, are skipped unread. Grammar: docs/formats/run.md.
Not: where it is kept; that is the Store.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc

from penstock.elements.errors import StateError
from penstock.elements.hash import HASH_VERSION
from penstock.elements.keygroup import KEY_GROUPS, KeyGroupRange

from .backend import Section
from .clip import clip_to_groups, groups_in

MAGIC = b"PENSRUN1"
RUN_VERSION = 1
"""Raised when a reader of the old version could misread; readers refuse what they do not know."""
ALIGNMENT_BYTES = 64
"""Bodies start at multiples of this, as Arrow likes its buffers."""
FOOTER_BYTES_MAX = 64 * 1024
"""Room for what is not rows; more is found room for, too."""
_TRAILER = struct.Struct("<IQ8s")  # crc32 of the footer, its length, magic


def write_run(sections: Sequence[Section]) -> bytes:
    """One object with all `sections`. Runs no Python per row."""
    return bytes(memoryview(encode_run(sections)))


def encode_run(sections: Sequence[Section]) -> pa.Buffer:
    """The same, without a copy."""
    # Room for all, so that what is written is never moved. Pages count once they are touched.
    room = pa.allocate_buffer(sum(map(_bytes_max, sections)) + FOOTER_BYTES_MAX)
    sink = pa.FixedSizeBufferWriter(room)
    try:
        _write(sections, sink, room)
    except (pa.ArrowInvalid, OSError):
        # The estimate was too low, as it may be for types that nobody has thought of.
        growing = pa.BufferOutputStream()
        _write(sections, growing, None)
        return growing.getvalue()
    return room.slice(0, sink.tell())


def _write(sections: Sequence[Section], sink: pa.NativeFile, room: pa.Buffer | None) -> None:
    sink.write(MAGIC)
    entries: list[dict[str, Any]] = []
    for section in sections:
        sink.write(bytes(-sink.tell() % ALIGNMENT_BYTES))
        start = sink.tell()
        body: bytes | memoryview
        if room is None:
            body = _encode(section)
            sink.write(body)
        else:
            _encode_into(section, sink)
            body = memoryview(room)[start : sink.tell()]
        entries.append(_entry(section, start, body))
    footer = json.dumps(
        {
            "version": RUN_VERSION,
            "hash": HASH_VERSION,
            "key_groups": KEY_GROUPS,
            "sections": entries,
        },
        separators=(",", ":"),
    ).encode()
    sink.write(footer + _TRAILER.pack(zlib.crc32(footer), len(footer), MAGIC))


def read_run(
    data: bytes, wanted: Collection[str], key_groups: KeyGroupRange, name: str = "a run"
) -> list[Section]:
    """The sections of the operators `wanted`, keyed ones cut to `key_groups`.

    A keyed section without a row in `key_groups` is kept, empty: it says what was declared.
    """
    sections = []
    for entry in read_footer(data, name)["sections"]:
        if entry["operator"] in wanted:
            batch, more = _decode(data, entry, key_groups, name)
            ids = entry["operator"], entry["name"], entry["kind"]
            sections.append(Section(*ids, batch, entry["declared"], more))
    return sections


def read_footer(data: bytes, name: str = "a run") -> dict[str, Any]:
    """What a run says about itself; for tools. Verified by its checksum."""
    if len(data) < len(MAGIC) + _TRAILER.size or data[: len(MAGIC)] != MAGIC:
        raise StateError(f"{name} is not a run of Penstock, or its beginning is damaged")
    crc, length, magic = _TRAILER.unpack_from(data, len(data) - _TRAILER.size)
    stop = len(data) - _TRAILER.size
    if magic != MAGIC or length > stop - len(MAGIC):
        raise StateError(f"{name} is damaged: it ends early, after {len(data)} bytes")
    footer = bytes(data[stop - length : stop])
    if zlib.crc32(footer) != crc:
        raise StateError(f"{name} is damaged: the checksum of its footer is wrong")
    content: dict[str, Any] = json.loads(footer)
    known = {"version": RUN_VERSION, "hash": HASH_VERSION, "key_groups": KEY_GROUPS}
    found = {key: content.get(key) for key in known}
    if found != known:
        raise StateError(
            f"{name} was written in another format: {found}, this program knows {known}\n"
            "  Resume with the version of Penstock that wrote it."
        )
    return content


def read_rows(
    data: bytes, operator_id: str, state: str, key_groups: KeyGroupRange, name: str
) -> Iterator[pa.RecordBatch]:
    """The rows of one section of a run, a batch at a time."""
    for entry in read_footer(data, name)["sections"]:
        if entry["operator"] == operator_id and entry["name"] == state:
            yield from _batches(data, entry, key_groups, name)
            return
    raise StateError(f"{name} does not hold state {state} of operator {operator_id}")


def _bytes_max(section: Section) -> int:
    total = 1024 + 4 * len(json.dumps(section.declared))
    for batch in (section.batch, *section.more):
        buffers = sum(len(column.buffers()) for column in batch.columns)
        total += batch.nbytes + batch.nbytes // 128 + 256 * (buffers + len(batch.schema) + 4)
    return total


def _entry(section: Section, offset: int, body: bytes | memoryview) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "operator": section.operator_id,
        "name": section.name,
        "kind": section.kind,
        "declared": section.declared,
        "offset": offset,
        "length": len(body),
        "crc32": zlib.crc32(body),
        "rows": section.rows,
    }
    found = [groups_in(batch) for batch in (section.batch, *section.more)]
    ranges = [groups for groups in found if groups is not None and groups.start < groups.stop]
    if ranges:
        entry["groups"] = [min(g.start for g in ranges), max(g.stop for g in ranges)]
    elif found[0] is not None:
        entry["groups"] = [0, 0]
    return entry


def _encode(section: Section) -> bytes:
    sink = pa.BufferOutputStream()
    _encode_into(section, sink)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _encode_into(section: Section, sink: pa.NativeFile) -> None:
    options = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with ipc.new_stream(sink, section.batch.schema, options=options) as writer:
        for batch in (section.batch, *section.more):
            writer.write_batch(batch)


def _decode(
    data: bytes, entry: dict[str, Any], key_groups: KeyGroupRange, name: str
) -> tuple[pa.RecordBatch, tuple[pa.RecordBatch, ...]]:
    first, *more = _batches(data, entry, key_groups, name)
    return first, tuple(more)


def _batches(
    data: bytes, entry: dict[str, Any], key_groups: KeyGroupRange, name: str
) -> Iterator[pa.RecordBatch]:
    """At least one, be it empty."""
    start, length = entry["offset"], entry["length"]
    body = memoryview(data)[start : start + length]
    where = f"{name}: state {entry['name']} of operator {entry['operator']}"
    if len(body) != length or zlib.crc32(body) != entry["crc32"]:
        raise StateError(f"{where} is damaged: its checksum is wrong")
    options = ipc.IpcReadOptions(use_threads=False)
    groups = KeyGroupRange(*entry["groups"]) if "groups" in entry else None
    try:
        with ipc.open_stream(pa.py_buffer(body), options=options) as reader:
            if groups is not None and not key_groups.overlaps(groups):
                yield pa.RecordBatch.from_arrays(
                    [pa.array([], field.type) for field in reader.schema], schema=reader.schema
                )
                return
            whole = groups is None or key_groups.holds(groups)
            yield from (batch if whole else clip_to_groups(batch, key_groups) for batch in reader)
    except (pa.ArrowInvalid, OSError, StopIteration) as error:
        raise StateError(f"{where} cannot be read: {error}") from error
