"""Runs: what is read is what was written, and damage is named."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.errors import StateError
from penstock.elements.keygroup import ALL_GROUPS, KeyGroupRange
from penstock.state import run
from penstock.state.backend import Section
from penstock.state.run import read_footer, read_rows, read_run, write_run


def _keyed(operator: str, name: str, hashes: list[int]) -> Section:
    batch = pa.record_batch(
        {"_hash": pa.array(hashes, pa.uint64()), "value.n": pa.array(range(len(hashes)))}
    )
    return Section(operator, name, "table", batch, {"key": [["k", "int64"]]})


def _list(operator: str, name: str) -> Section:
    batch = pa.record_batch({"item": pa.array([b"one", b"two"], pa.large_binary())})
    return Section(operator, name, "operator", batch)


SECTIONS = [
    _keyed("a", "t", [0, 1 << 52, (1 << 53) + 7, (1 << 64) - 1]),
    _keyed("a", "empty", []),
    _list("b", "splits"),
]


def test_a_run_gives_back_its_sections() -> None:
    read = read_run(write_run(SECTIONS), {"a", "b"}, ALL_GROUPS)
    assert [(s.operator_id, s.name, s.kind, s.declared) for s in read] == [
        (s.operator_id, s.name, s.kind, s.declared) for s in SECTIONS
    ]
    assert all(a.batch.equals(b.batch) for a, b in zip(read, SECTIONS, strict=True))


def test_a_section_of_several_batches_is_read_as_it_was_and_cut_to_key_groups() -> None:
    batches = [
        pa.record_batch({"_group": pa.array(groups, pa.uint16()), "value.n": pa.array(numbers)})
        for groups, numbers in [([7, 2, 9], [0, 1, 2]), ([3], [3]), ([9, 2], [4, 5])]
    ]
    log = Section("a", "log", "log", batches[0], {"key": []}, tuple(batches[1:]))
    body = write_run([*SECTIONS, log])
    assert read_footer(body)["sections"][-1]["groups"] == [2, 10]
    assert read_footer(body)["sections"][-1]["rows"] == log.rows == 6
    for wanted, expected in [
        (ALL_GROUPS, [0, 1, 2, 3, 4, 5]),
        (KeyGroupRange(2, 8), [0, 1, 3, 5]),
        (KeyGroupRange(4, 7), []),
        (KeyGroupRange(100, 200), []),
    ]:
        read = read_run(body, {"a"}, wanted)[-1]
        found = pa.Table.from_batches([read.batch, *read.more])
        assert found.column("value.n").to_pylist() == expected
        rows = pa.Table.from_batches(read_rows(body, "a", "log", wanted, "run/1"))
        assert rows.column("value.n").to_pylist() == expected
    with pytest.raises(StateError, match="run/1 does not hold state other of operator a"):
        list(read_rows(body, "a", "other", ALL_GROUPS, "run/1"))


@pytest.mark.parametrize("kind", [pa.utf8(), pa.bool_(), pa.list_(pa.int32()), pa.null()])
def test_runs_are_written_whole_whatever_the_types(kind: pa.DataType) -> None:
    # The room for a run is estimated: values that cannot be compressed, and very small batches.
    values = {
        pa.utf8(): [f"{n * 2654435761 % 2**32:x}" for n in range(5000)],
        pa.bool_(): [n * 2654435761 % 7 < 3 for n in range(5000)],
        pa.list_(pa.int32()): [[n * 48271 % 2147483647] * (n % 3) for n in range(5000)],
        pa.null(): [None] * 5000,
    }[kind]
    whole = pa.record_batch({"value.v": pa.array(values, kind)})
    for size in (5000, 1):
        pieces = [whole.slice(at, size) for at in range(0, 5000 if size > 1 else 300, size)]
        section = Section("a", "s", "operator", pieces[0], {}, tuple(pieces[1:]))
        body = write_run([section])
        (read,) = read_run(body, {"a"}, ALL_GROUPS)
        assert pa.Table.from_batches([read.batch, *read.more]).equals(pa.Table.from_batches(pieces))


def test_a_run_that_needs_more_room_than_was_thought_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = write_run(SECTIONS)
    monkeypatch.setattr(run, "_bytes_max", lambda section: 0)
    for room in (1, 100, 1000, len(expected) - 1, len(expected)):
        monkeypatch.setattr(run, "FOOTER_BYTES_MAX", room)
        assert write_run(SECTIONS) == expected


def test_a_run_without_sections_is_a_run() -> None:
    assert read_run(write_run([]), {"a"}, ALL_GROUPS) == []


def test_only_wanted_operators_are_read() -> None:
    read = read_run(write_run(SECTIONS), {"b", "unknown"}, ALL_GROUPS)
    assert [section.name for section in read] == ["splits"]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (KeyGroupRange(0, 1), [0]),
        (KeyGroupRange(0, 2), [0, 1]),
        (KeyGroupRange(1, 3), [1, 2]),
        (KeyGroupRange(3, 4095), []),
        (KeyGroupRange(4095, 4096), [3]),
    ],
)
def test_keyed_sections_are_cut_to_key_groups_and_lists_are_whole(
    groups: KeyGroupRange, expected: list[int]
) -> None:
    table, empty, items = read_run(write_run(SECTIONS), {"a", "b"}, groups)
    assert table.batch.column("value.n").to_pylist() == expected
    assert empty.batch.num_rows == 0
    assert empty.declared == SECTIONS[1].declared
    assert items.batch.equals(SECTIONS[2].batch)


def test_every_truncation_is_refused_by_name() -> None:
    body = write_run(SECTIONS)
    for size in range(len(body)):
        with pytest.raises(StateError, match="run/17"):
            read_run(body[:size], {"a", "b"}, ALL_GROUPS, "run/17")


def test_no_flipped_bit_changes_what_is_read() -> None:
    body = bytearray(write_run(SECTIONS))
    rng = np.random.default_rng(5)
    refused = 0
    for position in rng.permutation(len(body))[:600].tolist():
        flipped = bytearray(body)
        flipped[position] ^= 1 << int(rng.integers(8))
        try:
            read = read_run(bytes(flipped), {"a", "b"}, ALL_GROUPS, "run/17")
        except StateError as error:
            refused += 1
            assert "run/17" in str(error)  # noqa: PT017
            continue
        # Padding between sections is not covered by a checksum and carries nothing.
        assert all(a.batch.equals(b.batch) for a, b in zip(read, SECTIONS, strict=True))
    assert refused > 500


def test_damage_in_a_section_names_operator_and_state() -> None:
    body = bytearray(write_run(SECTIONS))
    body[read_footer(bytes(body))["sections"][2]["offset"] + 40] ^= 1
    with pytest.raises(StateError, match=r"run/9: state splits of operator b is damaged"):
        read_run(bytes(body), {"a", "b"}, ALL_GROUPS, "run/9")
    assert len(read_run(bytes(body), {"a"}, ALL_GROUPS, "run/9")) == 2


def test_another_version_is_refused_with_what_to_do() -> None:
    body = write_run([])
    footer = read_footer(body) | {"version": 2}
    text = json.dumps(footer).encode()
    other = body[:8] + text + struct.pack("<IQ8s", zlib.crc32(text), len(text), body[:8])
    with pytest.raises(StateError, match="version of Penstock that wrote it"):
        read_run(other, {"a"}, ALL_GROUPS)
