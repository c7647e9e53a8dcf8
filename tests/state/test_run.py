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
from penstock.state.backend import Section
from penstock.state.run import read_footer, read_run, write_run


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
