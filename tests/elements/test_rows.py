"""Row classes become schemas, batches become rows and back; what does not fit is named."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Optional

import cloudpickle
import pyarrow as pa
import pydantic
import pytest

from penstock.elements.errors import PlanError
from penstock.elements.row_columns import EPOCH
from penstock.elements.rows import RowCodec, RowError, row_schema

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Leg:
    start: str
    at: datetime | None


@dataclass
class Everything:
    flag: bool
    whole: int
    number: float
    text: str
    raw: bytes
    at: datetime
    day: date
    clock: time
    span: timedelta
    money: Decimal
    id: uuid.UUID
    colour: Colour
    kind: Literal["a", "b"]
    tags: list[str]
    pair: tuple[int, ...]
    words: dict[str, int]
    leg: Leg
    legs: list[Leg]
    maybe: Optional[int]  # noqa: UP045 - the old spelling is accepted too
    small: Annotated[int, pa.int16()]
    sharp: Annotated[datetime, pa.timestamp("ns")] | None


def everything(**changed: Any) -> Everything:
    values: dict[str, Any] = {
        "flag": True,
        "whole": -(2**63),
        "number": 0.1,
        "text": "ü",
        "raw": b"\x00",
        "at": NOON,
        "day": date(1969, 12, 31),
        "clock": time(1, 2, 3, 4),
        "span": timedelta(days=-1, microseconds=1),
        "money": Decimal("12.5"),
        "id": uuid.UUID(int=7),
        "colour": Colour.BLUE,
        "kind": "b",
        "tags": ["x", ""],
        "pair": (1, 2),
        "words": {"a": 1},
        "leg": Leg("EWR", None),
        "legs": [Leg("JFK", NOON)],
        "maybe": None,
        "small": -3,
        "sharp": None,
    }
    return Everything(**{**values, **changed})


def test_every_supported_type_survives_the_journey_there_and_back() -> None:
    rows = [everything(), everything(maybe=5, sharp=NAIVE, tags=[])]
    codec = RowCodec(Everything)
    batch = codec.encode(rows)
    batch.validate(full=True)
    assert codec.decode(batch) == rows


def test_the_types_are_as_documented_and_only_optional_is_nullable() -> None:
    schema = row_schema(Everything)
    assert schema.field("at").type == pa.timestamp("us", "UTC")
    assert schema.field("small").type == pa.int16()
    assert schema.field("sharp").type == pa.timestamp("ns")
    assert schema.field("money").type == pa.decimal128(38, 9)
    assert schema.field("colour").type == pa.utf8()
    assert {f.name for f in schema if f.nullable} == {"maybe", "sharp"}
    assert schema.field("leg").type.field("at").nullable
    assert not schema.field("leg").type.field("start").nullable


def test_a_null_in_a_field_that_is_not_optional_names_the_column_and_the_row() -> None:
    with pytest.raises(RowError, match="column text is null") as caught:
        RowCodec(Everything).encode([everything(), everything(text=None)])
    assert caught.value.index == 1
    batch = pa.record_batch({"start": ["a", None], "at": pa.array([NOON, NOON])})
    with pytest.raises(RowError, match=r"column start is null, but Leg.start") as caught:
        RowCodec(Leg, batch.schema).decode(batch)
    assert caught.value.index == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("whole", 1.5),
        ("whole", 2**63),
        ("whole", "1"),
        ("small", 40_000),
        ("text", 5),
        ("number", "?"),
        ("money", Decimal("0.0000000001")),
        ("at", 5.5),
        ("day", NOON),
        ("flag", 1),
        ("legs", [5]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_column_never_changed(
    column: str, value: Any
) -> None:
    with pytest.raises(RowError, match=f"column {column} ") as caught:
        RowCodec(Everything).encode([everything(), everything(**{column: value})])
    assert caught.value.index == 1


def test_naive_datetimes_are_utc_and_aware_ones_are_converted() -> None:
    codec = RowCodec(Leg)
    east = timezone(timedelta(hours=3))
    batch = codec.encode([Leg("a", NAIVE), Leg("b", NOON.astimezone(east))])
    assert [leg.at for leg in codec.decode(batch)] == [NOON, NOON]


def test_the_arrow_type_decides_whether_datetimes_are_aware() -> None:
    stored = pa.array([1_714_564_800_000_000_001, -1], pa.timestamp("ns"))
    batch = pa.record_batch({"start": ["a", "b"], "at": stored})
    naive = RowCodec(Leg, batch.schema).decode(batch)
    assert naive[0].at == NAIVE
    before = EPOCH.replace(tzinfo=None) - timedelta(microseconds=1)
    assert naive[1].at == before, "floored, also before 1970"
    zoned = pa.record_batch(
        {"start": ["a"], "at": stored[:1].cast(pa.timestamp("ns", "Europe/Berlin"))}
    )
    assert RowCodec(Leg, zoned.schema).decode(zoned)[0].at == NOON


@dataclass
class Raw:
    at: int
    number: float
    extra: str = "none"


def test_an_int_hint_gives_the_stored_integer_of_a_temporal_column() -> None:
    batch = pa.record_batch(
        {"number": [1, 2], "at": pa.array([5, 6], pa.timestamp("ns", "UTC")), "unused": ["x", "y"]}
    )
    codec = RowCodec(Raw, batch.schema)
    assert codec.columns_read() == ["at", "number"]
    assert codec.decode(batch) == [Raw(5, 1.0), Raw(6, 2.0)]


def test_missing_columns_and_other_kinds_are_found_when_planning() -> None:
    with pytest.raises(PlanError, match=r'late: no column "at", which Leg asks for'):
        RowCodec(Leg, pa.schema([("start", pa.utf8())]), "late").columns_read()
    wrong = pa.schema([("start", pa.int64()), ("at", pa.timestamp("us"))])
    with pytest.raises(PlanError, match=r"column start does not fit Leg.start: int64 is not str"):
        RowCodec(Leg, wrong).columns_read()
    nested = pa.schema([("leg", pa.struct([("other", pa.utf8())]))])

    @dataclass
    class Holder:
        leg: Leg

    with pytest.raises(PlanError, match="leg does not fit"):
        RowCodec(Holder, nested).columns_read()


def test_dictionary_and_view_columns_are_read_like_plain_ones() -> None:
    batch = pa.record_batch(
        {
            "start": pa.array(["a", "a", "b"]).dictionary_encode(),
            "at": pa.array([NOON, None, NOON], pa.timestamp("us", "UTC")),
        }
    )
    assert [leg.start for leg in RowCodec(Leg, batch.schema).decode(batch)] == ["a", "a", "b"]
    views = pa.record_batch({"start": pa.array(["a"], pa.string_view()), "at": pa.array([NOON])})
    assert RowCodec(Leg, views.schema).decode(views)[0].start == "a"


class Point(NamedTuple):
    x: int
    y: float = 0.0


def test_named_tuples_are_rows_and_defaults_fill_missing_columns() -> None:
    codec = RowCodec(Point)
    assert codec.decode(codec.encode([Point(1, 2.0)])) == [Point(1, 2.0)]
    narrow = pa.record_batch({"x": [4]})
    assert RowCodec(Point, narrow.schema).decode(narrow) == [Point(4)]
    swapped = RowCodec(Point, pa.schema([("y", pa.float64()), ("x", pa.int64())]))
    assert swapped.encode([Point(1, 2.0)]).to_pylist() == [{"y": 2.0, "x": 1}]


class Checked(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=0)


def test_pydantic_models_validate_what_is_decoded() -> None:
    codec = RowCodec(Checked)
    good = Checked(name="a", age=1)
    assert codec.decode(codec.encode([good])) == [good]
    bad = pa.record_batch({"name": ["a"], "age": [-1]})
    with pytest.raises(pydantic.ValidationError):
        codec.decode(bad)


def test_without_a_class_rows_are_attribute_rows_of_all_columns_but_time() -> None:
    batch = pa.record_batch(
        {"a": [1], "b c": ["x"], "_time": pa.array([1], pa.timestamp("ns", "UTC"))}
    )
    codec = RowCodec(None, batch.schema)
    row = codec.decode(batch)[0]
    assert row.a == 1
    assert tuple(row) == (1, "x")
    assert codec.encode([row]).to_pylist() == [{"a": 1, "b c": "x"}]
    assert codec.encode([{"a": 2}]).to_pylist() == [{"a": 2, "b c": None}]
    with pytest.raises(RowError, match="no column d in"):
        codec.encode([{"a": 2, "d": 3}])


def test_rows_of_another_class_are_refused() -> None:
    with pytest.raises(RowError, match=r"a row is Point\(x=1, y=0.0\); declared is Leg"):
        RowCodec(Leg).encode([Leg("a", None), Point(1)])


def test_hints_resolve_with_the_locals_of_the_defining_function() -> None:
    @dataclass
    class Inner:
        n: int

    @dataclass
    class Outer:
        inner: Inner
        many: list[Inner] = field(default_factory=list)

    codec = RowCodec(Outer)
    again = cloudpickle.loads(cloudpickle.dumps(codec))
    row = Outer(Inner(1), [Inner(2)])
    decoded = again.decode(codec.encode([row]))[0]
    assert (decoded.inner.n, decoded.many[0].n) == (1, 2)


def test_a_class_that_cannot_describe_rows_says_why() -> None:
    @dataclass
    class Open:
        what: Any

    @dataclass
    class Timed:
        _time: datetime

    @dataclass
    class Either:
        value: int | str

    @dataclass
    class Lost:
        value: Nowhere  # noqa: F821 - that is the test

    with pytest.raises(PlanError, match=r"Open.what: .* has no Arrow type"):
        row_schema(Open)
    with pytest.raises(PlanError, match="reserved for the event time"):
        row_schema(Timed)
    with pytest.raises(PlanError, match=r"Either.value"):
        row_schema(Either)
    with pytest.raises(PlanError, match="Nowhere"):
        row_schema(Lost)
    with pytest.raises(PlanError, match="is not a row class"):
        row_schema(int)


def test_a_field_without_a_type_of_its_own_can_still_be_read() -> None:
    @dataclass
    class Open:
        what: Any

    batch = pa.record_batch({"what": pa.array([[1], None])})
    assert [row.what for row in RowCodec(Open, batch.schema).decode(batch)] == [[1], None]


def test_an_empty_batch_has_no_rows_and_keeps_the_schema() -> None:
    codec = RowCodec(Everything)
    empty = codec.encode([])
    assert empty.num_rows == 0
    assert empty.schema == codec.schema
    assert codec.decode(empty) == []
