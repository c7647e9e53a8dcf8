"""Lines to batches: JSON lines and CSV, with the bad records named and the good ones kept.

The fast path decodes a block of lines at once. When it fails, or the row count is not the line
count, records are tried in halves, so that a bad one costs a logarithm, not the block.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence

import arro3.io
import msgspec
import pyarrow as pa
import pyarrow.csv as pacsv

RECORDS_AT_ONCE = 8192
"""JSON decoding is fastest in blocks of up to this many records."""

Decode = Callable[[Sequence[bytes]], pa.RecordBatch]
Reject = Callable[[bytes, str, int], None]
"""(raw record, what is wrong with it, its index among the lines)."""


def json_decoder(schema: pa.Schema) -> Decode:
    """Decodes JSON objects, one per line, into `schema`; unknown fields are ignored.

    A field that is missing is null. Integers in quotes are accepted; a fraction in an integer
    column is not.
    """
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    integers = {field.name for field in schema if pa.types.is_integer(field.type)}
    names = b"|".join(re.escape(name.encode()) for name in sorted(integers))
    fraction = re.compile(rb'"(?:' + names + rb')"\s*:\s*-?\d+(?:\.\d*[1-9]|[eE]-)')

    def decode(lines: Sequence[bytes]) -> pa.RecordBatch:
        block = b"\n".join(lines)
        # The reader would cut 1.5 to 1 in an integer column without a word.
        if integers and fraction.search(block):
            if len(lines) > 1:
                raise ValueError("a fraction in an integer column")
            _refuse_fractions(lines[0], integers)
        stream = arro3.io.read_json(io.BytesIO(block), nullable, batch_size=RECORDS_AT_ONCE * 2)
        table = pa.RecordBatchReader.from_stream(stream).read_all()
        return _one_batch(table, nullable, schema)

    return decode


def _refuse_fractions(line: bytes, integers: set[str]) -> None:
    record = msgspec.json.decode(line)
    for name in sorted(integers & set(record)):
        value = record[name]
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"{name}: {value} is not an integer")


def csv_decoder(schema: pa.Schema, header: Sequence[str], delimiter: str) -> Decode:
    """Decodes CSV lines whose columns are `header`; an empty field is null."""
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = pacsv.ConvertOptions(
        column_types={field.name: field.type for field in schema},
        include_columns=schema.names,
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=["", "NA", "null", "NULL"],
    )

    def decode(lines: Sequence[bytes]) -> pa.RecordBatch:
        block = b"\n".join(lines) + b"\n"
        read = pacsv.ReadOptions(
            use_threads=False, column_names=list(header), block_size=len(block) + 1
        )
        table = pacsv.read_csv(
            io.BytesIO(block), read_options=read, parse_options=parse, convert_options=convert
        )
        return _one_batch(table, nullable, schema)

    return decode


def _one_batch(table: pa.Table, nullable: pa.Schema, schema: pa.Schema) -> pa.RecordBatch:
    columns = [column.combine_chunks() for column in table.cast(nullable).columns]
    for field, column in zip(schema, columns, strict=True):
        if column.null_count and not field.nullable:
            raise ValueError(f"field {field.name!r} is missing or null, and must not be")
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def decode_lines(
    lines: Sequence[bytes], decode: Decode, schema: pa.Schema, reject: Reject
) -> pa.RecordBatch:
    """Decode what can be decoded; every other line goes to `reject` once, in order."""
    batches = [
        batch
        for start in range(0, len(lines), RECORDS_AT_ONCE)
        for batch in _decode_block(lines[start : start + RECORDS_AT_ONCE], start, decode, reject)
    ]
    if not batches:
        return pa.RecordBatch.from_pylist([], schema=schema)
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _decode_block(
    lines: Sequence[bytes], first: int, decode: Decode, reject: Reject
) -> list[pa.RecordBatch]:
    if not lines:
        return []
    try:
        batch = decode(lines)
        # Two objects on one line or a blank one would shift every later position.
        if batch.num_rows == len(lines):
            return [batch]
        problem = f"{batch.num_rows} records on one line"
    except Exception as error:
        # The decoders raise Arrow, arro3 and value errors alike; each means a bad record here.
        problem = str(error).strip() or type(error).__name__
    if len(lines) == 1:
        if lines[0].strip():
            reject(lines[0], problem, first)
        return []
    half = len(lines) // 2
    return [
        *_decode_block(lines[:half], first, decode, reject),
        *_decode_block(lines[half:], first + half, decode, reject),
    ]
