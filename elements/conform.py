"""conform: what users and libraries hand back becomes exactly the declared schema, or an error.

Views become utf8 and binary, dictionaries their values, large types their plain forms; columns are
put in order, and numbers, timestamps and decimals may change their width if no value changes.
Missing and unknown columns, other kinds, and nulls in non-null columns are errors (hazard 59).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat


class ConformError(Exception):
    """The batch is not of the declared schema. The text says what is wrong, without a place."""


class UnfitValue(ConformError):
    """The batch has the right columns, but some row holds a value that its column cannot."""


def conform(batch: pa.RecordBatch, schema: pa.Schema, who: str = "") -> pa.RecordBatch:
    """`batch` with exactly `schema`; raises ConformError whose text begins with `who`.

    >>> import pyarrow as pa
    >>> words = pa.RecordBatch.from_pydict({"w": pa.array(["a", "a"]).dictionary_encode()})
    >>> conform(words, pa.schema([("w", pa.utf8())])).column("w").type
    DataType(string)
    """
    if batch.schema.equals(schema):
        return _without_nulls(batch, schema, who)
    _check_names(batch.schema.names, schema, who)
    arrays = [_fitted(batch.column(f.name), f, who) for f in schema]
    if not arrays:
        # Keep the number of rows, which a batch without columns has all the same (hazard 44).
        return batch.select([])
    return _without_nulls(pa.RecordBatch.from_arrays(arrays, schema=schema), schema, who)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that a column of `kind` has on channels: no dictionary, runs, view or large types.

    Rows are gathered by `take`, which knows no run-end encoded columns.
    """
    if pat.is_dictionary(kind) or pat.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pat.is_large_string(kind) or pat.is_string_view(kind):
        return pa.utf8()
    if pat.is_large_binary(kind) or pat.is_binary_view(kind):
        return pa.binary()
    if _is_list_view(kind) or pat.is_list(kind) or pat.is_large_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    if pat.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if pat.is_struct(kind):
        return pa.struct([_plain_field(kind.field(i)) for i in range(kind.num_fields)])
    if pat.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pat.is_union(kind):
        fields = [_plain_field(kind.field(i)) for i in range(kind.num_fields)]
        return pa.union(fields, mode=kind.mode, type_codes=list(kind.type_codes))
    return kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` with plain types only, without metadata."""
    return pa.schema([_plain_field(field) for field in schema])


def plain_array(array: pa.Array) -> pa.Array:
    """`array` in its plain type.

    Not by one cast: pyarrow makes invalid arrays of list views and of run-ends inside of lists.

    >>> plain_array(pa.array([[1], None, [2, 3]], pa.list_view(pa.int64()))).to_pylist()
    [[1], None, [2, 3]]
    """
    kind = array.type
    plain = plain_type(kind)
    if kind.equals(plain):
        return array
    if pat.is_run_end_encoded(kind):
        return plain_array(pc.run_end_decode(array))
    if _is_list_view(kind) or pat.is_list(kind) or pat.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        ends = np.concatenate(([0], np.cumsum(lengths.to_numpy(zero_copy_only=False))))
        offsets = pa.array(ends, pa.int32())
        return pa.ListArray.from_arrays(
            offsets, plain_array(array.flatten()), type=plain, mask=array.is_null()
        )
    if pat.is_struct(kind):
        # field() cuts the child to the slice, and leaves nulls of the struct to the mask.
        children = [plain_array(array.field(i)) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, fields=list(plain), mask=array.is_null())
    if pat.is_fixed_size_list(kind):
        width = kind.list_size
        values = array.values.slice(array.offset * width, len(array) * width)
        return pa.FixedSizeListArray.from_arrays(
            plain_array(values), type=plain, mask=array.is_null()
        )
    if pat.is_map(kind):
        ends = array.offsets.to_numpy()
        keys, items = (a.slice(ends[0], ends[-1] - ends[0]) for a in (array.keys, array.items))
        offsets = pa.array(ends - ends[0], pa.int32())
        return pa.MapArray.from_arrays(
            offsets, plain_array(keys), plain_array(items), type=plain, mask=array.is_null()
        )
    if pat.is_union(kind):
        return _plain_union(array)
    return array.cast(plain)


def _plain_union(array: pa.Array) -> pa.Array:
    kind = array.type
    names = [kind.field(i).name for i in range(kind.num_fields)]
    parts = [plain_array(array.field(i)) for i in range(kind.num_fields)]
    codes = _part_of_union(array, 1, pa.int8())
    if kind.mode == "dense":
        places = _part_of_union(array, 2, pa.int32())
        return pa.UnionArray.from_dense(codes, places, parts, names, list(kind.type_codes))
    return pa.UnionArray.from_sparse(codes, parts, names, list(kind.type_codes))


def _part_of_union(array: pa.Array, index: int, kind: pa.DataType) -> pa.Array:
    # Its own type_codes and offsets do not know that a slice begins later; and a copy does not
    # begin later itself, or the children would have to.
    buffer = array.buffers()[index]
    part = pa.Array.from_buffers(kind, len(array), [None, buffer], offset=array.offset)
    return pa.array(part.to_numpy())


def _is_list_view(kind: pa.DataType) -> bool:
    return bool(pat.is_list_view(kind) or pat.is_large_list_view(kind))


def _plain_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, plain_type(field.type), field.nullable)


def _check_names(names: list[str], schema: pa.Schema, who: str) -> None:
    missing = [name for name in schema.names if name not in names]
    extra = [name for name in names if name not in schema.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not (missing or extra or twice):
        return
    wrong = []
    if missing:
        wrong.append(f"without the declared {_list(missing)}")
    if extra:
        wrong.append(f"with {_list(extra)}, which is not declared")
    if twice:
        wrong.append(f"with {_list(twice)} twice")
    raise ConformError(
        f"{_prefix(who)}a batch came {' and '.join(wrong)}\n"
        f"  declared: {', '.join(schema.names)}\n  given:    {', '.join(names)}"
    )


def _fitted(array: pa.Array, field: pa.Field, who: str) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pat.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pat.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if array.type.equals(field.type):
        return array
    if not _may_become(array.type, field.type):
        raise ConformError(
            f"{_prefix(who)}column {field.name} is {array.type}, declared is {field.type}"
        )
    try:
        plain = plain_array(array)
        return plain if plain.type.equals(field.type) else plain.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UnfitValue(
            f"{_prefix(who)}column {field.name} is {array.type} and holds values that the "
            f"declared {field.type} cannot: {error}"
        ) from None


def _may_become(given: pa.DataType, declared: pa.DataType) -> bool:
    """Whether a lossless cast is something else than a change of meaning."""
    given, declared = plain_type(given), plain_type(declared)
    if given.equals(declared) or pat.is_null(given):
        return True
    if pat.is_integer(given):
        return bool(
            pat.is_integer(declared) or pat.is_floating(declared) or pat.is_decimal(declared)
        )
    if pat.is_floating(given):
        # Data frames have no integers with nulls: whole floats may become integers again.
        return bool(pat.is_floating(declared) or pat.is_integer(declared))
    families = (pat.is_decimal, pat.is_timestamp, pat.is_duration, pat.is_time, pat.is_date)
    if any(family(given) and family(declared) for family in families):
        return True
    if pat.is_binary(given) and pat.is_fixed_size_binary(declared):
        return True
    nested = (pat.is_list, pat.is_struct, pat.is_map)
    return any(family(given) and family(declared) for family in nested)


def _without_nulls(batch: pa.RecordBatch, schema: pa.Schema, who: str) -> pa.RecordBatch:
    for index, field in enumerate(schema):
        if not field.nullable and batch.column(index).null_count:
            row = batch.column(index).is_null().index(True).as_py()
            raise UnfitValue(
                f"{_prefix(who)}column {field.name} is null in row {row} of the batch, "
                "but it is declared without nulls"
            )
    return batch


def _prefix(who: str) -> str:
    return f"{who}: " if who else ""


def _list(names: list[str]) -> str:
    return "column " + names[0] if len(names) == 1 else "columns " + ", ".join(names)
