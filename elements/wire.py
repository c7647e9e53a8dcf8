"""Wire types: the plain Arrow types that a channel carries, and how other types become them.

Dictionaries are decoded, views and run-end encodings expanded, at any depth: a channel writes the
schema once and no dictionary messages, and a slice of a view would still carry its whole buffers.
Nothing else changes: values, nulls, names, large types and metadata stay. What a stream's columns
should be for its users is conform.py's business; a schema that conforms there is a wire schema.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def wire_type(type_: pa.DataType) -> pa.DataType:
    """The plain type with the same values.

    >>> wire_type(pa.list_(pa.dictionary(pa.int8(), pa.string_view())))
    ListType(list<item: string>)
    """
    kinds = pa.types
    if kinds.is_dictionary(type_) or kinds.is_run_end_encoded(type_):
        return wire_type(type_.value_type)
    if kinds.is_string_view(type_):
        return pa.utf8()
    if kinds.is_binary_view(type_):
        return pa.binary()
    if kinds.is_list(type_) or kinds.is_list_view(type_):
        return pa.list_(wire_field(type_.value_field))
    if kinds.is_large_list(type_) or kinds.is_large_list_view(type_):
        return pa.large_list(wire_field(type_.value_field))
    if kinds.is_fixed_size_list(type_):
        return pa.list_(wire_field(type_.value_field), type_.list_size)
    if kinds.is_map(type_):
        return pa.map_(wire_field(type_.key_field), wire_field(type_.item_field), type_.keys_sorted)
    if kinds.is_struct(type_):
        return pa.struct([wire_field(field) for field in type_])
    if kinds.is_union(type_):
        fields = [wire_field(type_.field(i)) for i in range(type_.num_fields)]
        return pa.union(fields, mode=type_.mode, type_codes=type_.type_codes)
    if isinstance(type_, pa.BaseExtensionType):
        storage = wire_type(type_.storage_type)
        return type_ if storage == type_.storage_type else storage
    return type_


def wire_field(field: pa.Field) -> pa.Field:
    """The field with a plain type."""
    return field.with_type(wire_type(field.type))


def wire_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that batches of `schema` have at the other end of a channel."""
    return pa.schema([wire_field(field) for field in schema], metadata=schema.metadata)


def wire_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`batch` in `schema`, which is the plain schema of its own."""
    if not schema:
        return batch
    return pa.RecordBatch.from_arrays(
        [wire_array(column) for column in batch.columns], schema=schema
    )


def wire_array(array: pa.Array) -> pa.Array:
    """The same values in a plain type."""
    type_ = array.type
    target = wire_type(type_)
    if target == type_:
        return array
    kinds = pa.types
    if kinds.is_dictionary(type_):
        return wire_array(array.dictionary_decode())
    if kinds.is_run_end_encoded(type_):
        return wire_array(pc.run_end_decode(array))
    if isinstance(type_, pa.BaseExtensionType):
        return wire_array(array.storage)
    if kinds.is_struct(type_):
        children = [wire_array(array.field(i)) for i in range(type_.num_fields)]
        return pa.StructArray.from_arrays(children, fields=list(target), mask=array.is_null())
    if kinds.is_map(type_):
        return _wire_map(array, target)
    if kinds.is_fixed_size_list(type_):
        length = type_.list_size
        values = array.values.slice(array.offset * length, len(array) * length)
        return pa.FixedSizeListArray.from_arrays(
            wire_array(values), type=target, mask=array.is_null()
        )
    if kinds.is_union(type_):
        return _wire_union(array, target)
    if kinds.is_list(target) or kinds.is_large_list(target):
        return _wire_list(array, target)
    return array.cast(target)


def _wire_list(array: pa.Array, target: pa.DataType) -> pa.Array:
    # Offsets are made anew from the lengths: those of a view may be in any order, and Arrow's
    # own cast from a view with nulls fails.
    large = pa.types.is_large_list(target)
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    ends = pc.cumulative_sum(lengths)
    zero: Any = pa.array([0], pa.int64())
    offsets = pa.concat_arrays([zero, ends]).cast(pa.int64() if large else pa.int32())
    kind = pa.LargeListArray if large else pa.ListArray
    values = wire_array(array.flatten())
    return kind.from_arrays(offsets, values, type=target, mask=array.is_null())


def _wire_map(array: pa.Array, target: pa.DataType) -> pa.Array:
    entries = pa.list_(
        pa.struct([array.type.key_field.with_name("key"), array.type.item_field.with_name("value")])
    )
    # A map is laid out as a list of pairs; as such it is rebuilt, and then named a map again.
    pairs = pa.ListArray.from_arrays(
        pa.concat_arrays([array.offsets]),
        pa.StructArray.from_arrays([array.keys, array.items], fields=list(entries.value_type)),
        type=entries,
        mask=array.is_null(),
    )
    pairs = _wire_list(pairs, wire_type(entries))
    values = pairs.values
    return pa.MapArray.from_arrays(
        pairs.offsets, values.field(0), values.field(1), type=target, mask=array.is_null()
    )


def _wire_union(array: pa.Array, target: pa.DataType) -> pa.Array:
    children = [wire_array(array.field(i)) for i in range(target.num_fields)]
    names = [target.field(i).name for i in range(target.num_fields)]
    # `type_codes` and `offsets` of a slice are those of the whole's first rows; the buffers know.
    buffers, begin = array.buffers(), array.offset
    codes = pa.Array.from_buffers(pa.int8(), len(array), [None, buffers[1]], offset=begin)
    codes = pa.array(codes.to_numpy())  # from_sparse, in turn, ignores the offset of its codes
    if target.mode == "dense":
        places = pa.Array.from_buffers(pa.int32(), len(array), [None, buffers[2]], offset=begin)
        places = pa.array(places.to_numpy())
        return pa.UnionArray.from_dense(codes, places, children, names, target.type_codes)
    return pa.UnionArray.from_sparse(codes, children, names, target.type_codes)
