"""RowCodec: batches ↔ rows of a user's class, only the class's columns being converted.

Decoding zips converted columns into constructor calls; encoding gathers attributes by column. A
null in a field that is not Optional is an error in both directions, naming the column. Without a
class, rows are attribute rows: named tuples of all columns but `_time`.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import pyarrow as pa

from .errors import PlanError
from .row_building import Build, row_builder
from .row_columns import NotReadable, Reader, Writer, column_reader, column_writer
from .row_schema import RowClass, RowField, row_class, row_schema
from .signals import TIME_COLUMN

__all__ = ["RowCodec", "RowError", "attribute_rows", "row_schema", "row_text"]


class RowError(Exception):
    """A row does not fit; the text names the column. `index` is its place in the batch or list."""

    def __init__(self, message: str, index: int | None = None) -> None:
        self.index = index
        super().__init__(message)


class RowCodec:
    """Rows of `cls` (None: attribute rows) ↔ batches of `schema`.

    For decoding, `schema` is that of the stream and may have more columns than the class. For
    encoding it is the output's schema, by default `row_schema(cls)`. `who` names the user in
    errors: "LateInbound", "map(clean)".
    """

    def __init__(
        self, cls: type[Any] | None, schema: pa.Schema | None = None, who: str = "rows"
    ) -> None:
        if schema is None:
            assert cls is not None, "either a class or a schema"
            schema = row_schema(cls)
        if TIME_COLUMN in schema.names:
            schema = schema.remove(schema.get_field_index(TIME_COLUMN))
        self.schema: pa.Schema = schema
        self.who = who
        self._described: RowClass | None = None if cls is None else row_class(cls)
        self.cls: type[Any] = attribute_rows(schema.names) if cls is None else cls
        self._fields: dict[str, RowField] = (
            {} if self._described is None else {f.name: f for f in self._described.fields}
        )
        self._read: list[tuple[str, Reader, bool]] | None = None
        self._build: Build | None = None
        self._write: list[tuple[str, Writer, bool]] | None = None

    @property
    def by_attribute(self) -> bool:
        """Rows are attribute rows: no class was given."""
        return self._described is None

    # Decoding ------------------------------------------------------------------------------------

    def columns_read(self) -> list[str]:
        """The columns of the stream that rows of this class need. Checks their types.

        Raises PlanError for columns that are missing or of another kind.
        """
        return [name for name, _, _ in self._readers()]

    def decode(self, batch: pa.RecordBatch) -> list[Any]:
        """All rows of the batch, as owned Python objects."""
        columns = []
        for name, read, nullable in self._readers():
            array = batch.column(name)
            if array.null_count and not nullable:
                index = array.is_null().index(True).as_py()
                raise RowError(
                    f"column {name} is null, but {self.cls.__name__}.{name} is not Optional", index
                )
            columns.append(read(array))
        if not columns:
            return self._empty_rows(batch)
        if self._build is None:
            self._build = self._builder()
        return self._build(columns)

    def _builder(self) -> Build:
        names = [name for name, _, _ in self._readers()]
        cls = self.cls
        if self._described is None:
            return row_builder(cls, cls._fields)
        if self._described.kind == "pydantic" or self._skips_fields():
            return lambda columns: [cls(**dict(zip(names, values))) for values in zip(*columns)]
        return row_builder(cls, names)

    def _empty_rows(self, batch: pa.RecordBatch) -> list[Any]:
        return [self.cls() for _ in range(batch.num_rows)]

    def _skips_fields(self) -> bool:
        return len(self._readers()) < len(self._fields)

    def _readers(self) -> list[tuple[str, Reader, bool]]:
        if self._read is None:
            if self._described is None:
                self._read = [(f.name, column_reader(f.type), True) for f in self.schema]
            else:
                self._read = [reader for f in self._described.fields if (reader := self._reader(f))]
        return self._read

    def _reader(self, field: RowField) -> tuple[str, Reader, bool] | None:
        if field.name not in self.schema.names:
            if field.has_default:
                return None
            raise PlanError(
                f'{self.who}: no column "{field.name}", which {self.cls.__name__} asks for\n'
                f"  columns: {', '.join(self.schema.names)}"
            )
        column = self.schema.field(field.name)
        try:
            return field.name, column_reader(column.type, field.hint), field.nullable
        except NotReadable as mismatch:
            raise PlanError(
                f"{self.who}: column {field.name} does not fit {self.cls.__name__}.{field.name}: "
                f"{mismatch}\n  Change the annotation, or cast the column before."
            ) from None

    # Encoding ------------------------------------------------------------------------------------

    def encode(self, rows: Sequence[Any]) -> pa.RecordBatch:
        """A batch of `schema`; raises RowError that names the column and, if known, the row."""
        self._check_kinds(rows)
        values = self._columns_of(rows)
        arrays = []
        for (name, write, nullable), column in zip(self._writers(), values, strict=True):
            try:
                array = write(column)
            except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError) as e:
                raise self._refused(name, write, column, e) from None
            if array.null_count and not nullable:
                index = array.is_null().index(True).as_py()
                raise RowError(f"column {name} is null, but its field is not Optional", index)
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def fits(self, row: Any) -> bool:
        """Whether `row` is of a kind that encode takes."""
        if self._described is not None:
            return isinstance(row, self.cls)
        return isinstance(row, Mapping) or all(hasattr(row, n) for n in self.schema.names)

    def _check_kinds(self, rows: Sequence[Any]) -> None:
        if self._described is None or set(map(type, rows)) <= {self.cls}:
            return
        for index, row in enumerate(rows):
            if not isinstance(row, self.cls):
                raise RowError(f"a row is {_short(row)}; declared is {self.cls.__name__}", index)

    def _columns_of(self, rows: Sequence[Any]) -> list[list[Any]]:
        names = self.schema.names
        if self._positional(rows):
            return [list(column) for column in zip(*rows)] if rows else [[] for _ in names]
        if self._described is None and any(isinstance(row, Mapping) for row in rows):
            return self._mapped(rows)
        try:
            return [list(map(attrgetter(name), rows)) for name in names]
        except AttributeError:
            index = next(i for i, r in enumerate(rows) if not all(hasattr(r, n) for n in names))
            missing = next(n for n in names if not hasattr(rows[index], n))
            raise RowError(f"{_short(rows[index])} has no column {missing}", index) from None

    def _positional(self, rows: Sequence[Any]) -> bool:
        """Named tuples of the declared columns, in their order."""
        if self._described is not None:
            return self._described.kind == "namedtuple" and list(self._fields) == self.schema.names
        fields = self.cls._fields
        return all(getattr(kind, "_fields", None) == fields for kind in set(map(type, rows)))

    def _mapped(self, rows: Sequence[Any]) -> list[list[Any]]:
        """Rows as dictionaries: a missing name is a null, an unknown one an error."""
        known = set(self.schema.names)
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise RowError(f"{_short(row)} is not a mapping like the rows before it", index)
            if not known.issuperset(row):
                extra = ", ".join(sorted(set(row) - known))
                raise RowError(f"there is no column {extra} in the declared schema", index)
        return [[row.get(name) for row in rows] for name in self.schema.names]

    def _refused(self, name: str, write: Writer, column: list[Any], error: Exception) -> RowError:
        """Name the first value that fails alone."""
        for index, value in enumerate(column):
            try:
                write([value])
            except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
                kind = self.schema.field(name).type
                return RowError(f"column {name} ({kind}) cannot hold {_short(value)}", index)
        return RowError(f"column {name}: {error}")

    def _writers(self) -> list[tuple[str, Writer, bool]]:
        if self._write is None:
            self._write = [
                (f.name, column_writer(self._fields.get(f.name), f.type), f.nullable)
                for f in self.schema
            ]
        return self._write

    def __getstate__(self) -> dict[str, Any]:
        """Readers and writers are closures; the other side makes its own."""
        state = {**self.__dict__, "_read": None, "_write": None, "_build": None}
        if self._described is None:
            del state["cls"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._described is None:
            self.cls = attribute_rows(self.schema.names)


def attribute_rows(names: Sequence[str]) -> type[Any]:
    """A named tuple of these columns; names that are no identifiers are reached by position."""
    return namedtuple("Row", names, rename=True)


def row_text(row: Any, limit_chars: int = 400) -> str:
    """`repr` of a row for a report, cut to a bearable length; never raises."""
    try:
        text = repr(row)
    except Exception as error:
        text = f"<{type(row).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= limit_chars else text[: limit_chars - 1] + "…"


def _short(value: Any) -> str:
    return row_text(value, 80)
