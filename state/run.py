"""The run: all sealed state of one subtask at one cut, as one immutable object.

Promises: what is read is what was written, or StateError names the object; sections that are not
wanted, or hold no wanted key group, are skipped unread. Grammar: docs/formats/run.md.
Not: where it is kept; that is the Store.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Sequence
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
_TRAILER = struct.Struct("<IQ8s")  # crc32 of the footer, its length, magic


def write_run(sections: Sequence[Section]) -> bytes:
    """One object with all `sections`. Runs no Python per row."""
    parts: list[bytes] = [MAGIC]
    size = len(MAGIC)
    entries: list[dict[str, Any]] = []
    for section in sections:
        padding = -size % ALIGNMENT_BYTES
        body = _encode(section.batch)
        parts += [bytes(padding), body]
        entries.append(_entry(section, size + padding, body))
        size += padding + len(body)
    footer = json.dumps(
        {
            "version": RUN_VERSION,
            "hash": HASH_VERSION,
            "key_groups": KEY_GROUPS,
            "sections": entries,
        },
        separators=(",", ":"),
    ).encode()
    return b"".join([*parts, footer, _TRAILER.pack(zlib.crc32(footer), len(footer), MAGIC)])


def read_run(
    data: bytes, wanted: Collection[str], key_groups: KeyGroupRange, name: str = "a run"
) -> list[Section]:
    """The sections of the operators `wanted`, keyed ones cut to `key_groups`.

    A keyed section without a row in `key_groups` is kept, empty: it says what was declared.
    """
    sections = []
    for entry in read_footer(data, name)["sections"]:
        if entry["operator"] in wanted:
            batch = _decode(data, entry, key_groups, name)
            sections.append(
                Section(entry["operator"], entry["name"], entry["kind"], batch, entry["declared"])
            )
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


def _entry(section: Section, offset: int, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "operator": section.operator_id,
        "name": section.name,
        "kind": section.kind,
        "declared": section.declared,
        "offset": offset,
        "length": len(body),
        "crc32": zlib.crc32(body),
        "rows": section.batch.num_rows,
    }
    groups = groups_in(section.batch)
    if groups is not None:
        entry["groups"] = [groups.start, groups.stop]
    return entry


def _encode(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    options = ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _decode(
    data: bytes, entry: dict[str, Any], key_groups: KeyGroupRange, name: str
) -> pa.RecordBatch:
    start, length = entry["offset"], entry["length"]
    body = memoryview(data)[start : start + length]
    where = f"{name}: state {entry['name']} of operator {entry['operator']}"
    if len(body) != length or zlib.crc32(body) != entry["crc32"]:
        raise StateError(f"{where} is damaged: its checksum is wrong")
    options = ipc.IpcReadOptions(use_threads=False)
    try:
        with ipc.open_stream(pa.py_buffer(body), options=options) as reader:
            if "groups" in entry and not key_groups.overlaps(KeyGroupRange(*entry["groups"])):
                return pa.RecordBatch.from_arrays(
                    [pa.array([], field.type) for field in reader.schema], schema=reader.schema
                )
            batch = reader.read_next_batch()
    except (pa.ArrowInvalid, OSError, StopIteration) as error:
        raise StateError(f"{where} cannot be read: {error}") from error
    return clip_to_groups(batch, key_groups) if "groups" in entry else batch
