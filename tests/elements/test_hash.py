"""The frozen hash: golden vectors, a scalar reference, and independence from the layout."""

from __future__ import annotations

import math
import random
import struct
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.hash import hash_array, hash_arrays, hash_columns, refuse_unhashable

W = (1 << 64) - 1
M1, M2, M3 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
M4, NULL = 0xD6E8FEB86659FD93, 0x7FB5D329728EA185


def mix(h: int) -> int:
    h ^= h >> 30
    h = h * M2 & W
    h ^= h >> 27
    h = h * M3 & W
    return h ^ h >> 31


def word(x: int) -> int:
    return mix((x + M1) & W)


def hash_bytes(b: bytes) -> int:
    h = len(b) * M1 & W
    for i in range(0, len(b), 8):
        x = int.from_bytes(b[i : i + 8], "little") * M2 & W
        h ^= x ^ x >> 32
        h = h * M3 & W
        h ^= h >> 29
    return mix(h)


def combine(hashes: list[int]) -> int:
    h = hashes[0]
    for x in hashes[1:]:
        h = mix(h * M4 & W ^ x)
    return h


def hash_list(hashes: list[int]) -> int:
    total = sum(word(x ^ p * M4 & W) for p, x in enumerate(hashes))
    return mix((total + len(hashes) * M2) & W)


def hash_float(x: float) -> int:
    if math.isnan(x):
        return word(0x7FF8000000000000)
    return word(struct.unpack("<Q", struct.pack("<d", x + 0.0))[0])


def reference(value: Any, kind: pa.DataType) -> int:
    """The definition, one value at a time."""
    if value is None:
        return NULL
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return combine([reference(value[f.name], f.type) for f in fields])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return hash_list([reference(v, kind.value_type) for v in value])
    if pa.types.is_dictionary(kind):
        return reference(value, kind.value_type)
    if pa.types.is_floating(kind):
        return hash_float(float(value))
    if pa.types.is_decimal128(kind):
        unscaled = int(value.scaleb(kind.scale)) & (1 << 128) - 1
        return mix(word(unscaled & W) * M4 & W ^ unscaled >> 64)
    if isinstance(value, str):
        return hash_bytes(value.encode())
    if isinstance(value, bytes):
        return hash_bytes(value)
    return word(int(value) & W)


GOLDEN: list[tuple[Any, pa.DataType, int]] = [
    (0, pa.int64(), 0xE220A8397B1DCDAF),
    (0.0, pa.float64(), 0xE220A8397B1DCDAF),
    (-0.0, pa.float64(), 0xE220A8397B1DCDAF),
    (False, pa.bool_(), 0xE220A8397B1DCDAF),
    (1, pa.int64(), 0x910A2DEC89025CC1),
    (1, pa.int8(), 0x910A2DEC89025CC1),
    (True, pa.bool_(), 0x910A2DEC89025CC1),
    (-1, pa.int64(), 0xE4D971771B652C20),
    (2**64 - 1, pa.uint64(), 0xE4D971771B652C20),
    (1000, pa.int64(), 0x3C1EBA8B4DCCC148),
    (1.5, pa.float64(), 0xD6DAB18E1392608A),
    (np.float16(1.5), pa.float16(), 0xD6DAB18E1392608A),
    (float("nan"), pa.float64(), 0xC72971D82E15BB46),
    (None, pa.int64(), NULL),
    (None, pa.null(), NULL),
    (1_700_000_000_000_000, pa.timestamp("us"), 0xB7B8B1FCBDA40E0F),
    (19_723, pa.date32(), 0x47A4C66CFE6DDE15),
    (Decimal("1.00"), pa.decimal128(10, 2), 0xE76E2072D135EF46),
    (Decimal("-1.00"), pa.decimal128(10, 2), 0xFB4EC4814F003BB8),
    ("", pa.utf8(), 0),
    ("a", pa.utf8(), 0xAAC9AE03CFE48DA9),
    ("Google", pa.utf8(), 0x3CE1243E6B854D71),
    ("12345678", pa.utf8(), 0xDFB84B70A8C70423),
    ("123456789", pa.utf8(), 0x0F7DA931D1E84D02),
    ("Zürich", pa.utf8(), 0xBC155077A20ECC10),
    (b"\x00", pa.binary(), 0xAC56683CF5D206CC),
    (b"12345678", pa.binary(8), 0xDFB84B70A8C70423),
    (b"123456789", pa.binary(9), 0x0F7DA931D1E84D02),
    ({"a": 1, "b": "x"}, pa.struct([("a", pa.int64()), ("b", pa.utf8())]), 0x9C2762952EDDA0E5),
    ({"a": 1, "b": None}, pa.struct([("a", pa.int64()), ("b", pa.utf8())]), 0x8A6E2A37B259F625),
    ([], pa.list_(pa.int64()), 0),
    ([1, 2], pa.list_(pa.int64()), 0x60E0A09972236FF0),
    ([2, 1], pa.list_(pa.int64()), 0x4F43C94FFCD5F12E),
    ([None], pa.large_list(pa.int64()), 0x04BEEDB14727577E),
]


@pytest.mark.parametrize(("value", "kind", "expected"), GOLDEN)
def test_hash_has_its_golden_value(value: Any, kind: pa.DataType, expected: int) -> None:
    assert hex(hash_array(pa.array([value], kind))[0]) == hex(expected)


def test_hash_of_composites_has_its_golden_value() -> None:
    batch = pa.record_batch({"id": [1000], "site": ["Google"], "n": pa.nulls(1, pa.int64())})
    assert hash_columns(batch, ["id", "site"])[0] == 0xBC06F130EE6A97B4
    assert hash_columns(batch, ["site", "id"])[0] == 0x32A73643D6F21F1A
    numbers = [pa.array([n]) for n in (1, 2, 3)]
    assert hash_arrays(numbers, 1)[0] == 0x62F1BE03C8096FEC
    assert hash_arrays([*numbers[:2], pa.nulls(1, pa.int64())], 1)[0] == 0x495D415F57F53B6A
    assert hash_columns(batch, []).tolist() == [0]


def _random_value(rng: random.Random, kind: pa.DataType) -> Any:
    if rng.random() < 0.1:
        return None
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return {f.name: _random_value(rng, f.type) for f in fields}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_random_value(rng, kind.value_type) for _ in range(rng.choice([0, 1, 2, 7]))]
    if pa.types.is_dictionary(kind):
        return rng.choice(["a", "bb", "", "a longer one"])
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_float32(kind):
        return float(np.float32(rng.choice([0.0, -0.0, float("nan"), rng.uniform(-1e9, 1e9)])))
    if pa.types.is_float16(kind):
        return np.float16(rng.uniform(-100, 100))
    if pa.types.is_floating(kind):
        return rng.choice([0.0, -0.0, float("inf"), float("nan"), rng.uniform(-1e9, 1e9)])
    if pa.types.is_decimal128(kind):
        return Decimal(rng.randrange(-(10**29), 10**29)).scaleb(-kind.scale)
    if pa.types.is_fixed_size_binary(kind):
        return rng.randbytes(kind.byte_width)
    if pa.types.is_integer(kind) or pa.types.is_temporal(kind):
        bits = kind.bit_width
        if pa.types.is_unsigned_integer(kind):
            return rng.randrange(0, 1 << bits)
        if pa.types.is_date64(kind):
            return rng.randrange(-(10**4), 10**4) * 86_400_000
        if pa.types.is_time(kind):
            return rng.randrange(0, 86_400)
        return rng.randrange(-(1 << bits - 1), 1 << bits - 1)
    raw = rng.randbytes(rng.choice([0, 1, 5, 7, 8, 9, 15, 16, 17, 40]))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return raw
    return raw.hex()[: len(raw)]


KINDS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.bool_()),
    *(pa.float16(), pa.float32(), pa.float64()),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.duration("ms")),
    *(pa.timestamp("ns", "UTC"), pa.timestamp("s"), pa.decimal128(30, 4)),
    *(pa.utf8(), pa.large_utf8(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(16), pa.binary(3), pa.binary(0)),
    pa.dictionary(pa.int8(), pa.utf8()),
    pa.struct([("a", pa.int32()), ("b", pa.list_(pa.utf8()))]),
    pa.list_(pa.float64()),
    pa.large_list(pa.struct([("a", pa.binary())])),
]


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Temporal arrays are built from their stored integers, past what datetime can hold."""
    if pa.types.is_temporal(kind):
        return pa.array(values, pa.int64() if kind.bit_width == 64 else pa.int32()).view(kind)
    return pa.array(values, kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hash_equals_the_scalar_definition(kind: pa.DataType) -> None:
    rng = random.Random(str(kind))
    values = [_random_value(rng, kind) for _ in range(700)]
    assert hash_array(_array(values, kind)).tolist() == [reference(v, kind) for v in values]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hash_does_not_depend_on_slices_or_blocks(kind: pa.DataType) -> None:
    rng = random.Random(7)
    array = _array([_random_value(rng, kind) for _ in range(9001)], kind)
    whole = hash_array(array)
    for start, length in [(0, 0), (1, 9), (4095, 3), (13, 8500)]:
        assert (hash_array(array.slice(start, length)) == whole[start : start + length]).all()
    if not (pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)):
        order = np.random.default_rng(3).permutation(len(array))
        assert (hash_array(array.take(pa.array(order))) == whole[order]).all()


def test_hash_sees_the_value_not_the_layout() -> None:
    texts = ["", "a", None, "eight by", "a text beyond two words"]
    plain = hash_array(pa.array(texts)).tolist()
    for kind in [pa.large_utf8(), pa.string_view(), pa.dictionary(pa.int32(), pa.utf8())]:
        assert hash_array(pa.array(texts).cast(kind)).tolist() == plain
    with_null_entry = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None]))
    assert hash_array(with_null_entry).tolist() == [plain[1], NULL, NULL]


def test_hash_of_a_null_ignores_what_lies_under_it() -> None:
    bitmap = pa.array([True, False, True]).buffers()[1]
    data = pa.py_buffer(np.array([1, 99, 3], np.int64))
    array = pa.Array.from_buffers(pa.int64(), 3, [bitmap, data])
    assert hash_array(array).tolist() == hash_array(pa.array([1, None, 3])).tolist()


def test_one_integer_shares_the_hash_of_null() -> None:
    assert hash_array(pa.array([-5307885138817717383])).tolist() == [NULL]


@pytest.mark.parametrize(
    "kind",
    [
        pa.decimal256(50, 2),
        pa.month_day_nano_interval(),
        pa.map_(pa.utf8(), pa.int64()),
        pa.list_(pa.int64(), 2),
        pa.struct([("a", pa.map_(pa.utf8(), pa.int64()))]),
        pa.list_(pa.decimal256(50, 2)),
    ],
    ids=str,
)
def test_a_type_that_cannot_be_a_key_is_refused_by_name(kind: pa.DataType) -> None:
    with pytest.raises(TypeError, match="cannot be a key"):
        refuse_unhashable(kind)
    with pytest.raises(TypeError, match="cannot be a key"):
        hash_array(pa.nulls(1, kind))


def test_a_shared_buffer_is_not_written() -> None:
    memory = np.array([-0.0, float("nan"), 1.0])
    before = memory.tobytes()
    hash_array(pa.Array.from_buffers(pa.float64(), 3, [None, pa.py_buffer(memory)]))
    assert memory.tobytes() == before


def test_hash_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import pyarrow as pa; from penstock.elements.hash import hash_array;"
        "print(hash_array(pa.array(['x', 'Zürich', None])).tolist())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "99", "PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert out.strip() == str(hash_array(pa.array(["x", "Zürich", None])).tolist())


def test_timestamps_hash_as_their_stored_integer() -> None:
    moment = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    array = pa.array([moment], pa.timestamp("us", "UTC"))
    assert hash_array(array)[0] == 0xB7B8B1FCBDA40E0F
