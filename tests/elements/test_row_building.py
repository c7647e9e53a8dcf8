"""row_builder: rows made the fast way are the rows that calling the class makes."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import pytest

from penstock.elements.row_building import row_builder


@dataclass
class Plain:
    a: int
    b: str


@dataclass(frozen=True)
class Fixed:
    a: int
    b: str


@dataclass(slots=True)
class Slotted:
    a: int
    b: str


@dataclass(frozen=True, slots=True)
class FixedSlotted:
    a: int
    b: str


class Tuple(NamedTuple):
    a: int
    b: str


class Narrow(Tuple):
    def __new__(cls, a: int, b: str) -> Narrow:
        return super().__new__(cls, a, b.upper())


@dataclass
class Checked:
    a: int
    b: str

    def __post_init__(self) -> None:
        self.b = self.b.upper()


@dataclass
class OwnInit:
    a: int
    b: str

    def __init__(self, a: int, b: str) -> None:
        self.a, self.b = a, b.upper()


@dataclass
class WithInitVar:
    a: int
    b: str
    c: InitVar[int] = 0


@dataclass
class Child(Plain):
    pass


class Undecorated(Plain):
    def __init__(self, a: int, b: str) -> None:
        super().__init__(a, b.upper())


@dataclass
class Validated:
    a: int
    b: str

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value.upper() if name == "b" else value)


@dataclass
class Counted:
    a: int
    b: str
    made: list[int] = field(default_factory=list, init=False)


KINDS = [
    *(Plain, Fixed, Slotted, FixedSlotted, Tuple, Narrow, Checked, OwnInit, WithInitVar, Child),
    *(Undecorated, Validated, Counted, namedtuple("Made", "a b")),
]


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_rows_are_those_that_calling_the_class_makes(cls: Any) -> None:
    build = row_builder(cls, ["a", "b"])
    columns = [[1, 2, 3], ["x", "y", "z"]]
    wanted = [cls(a, b) for a, b in zip(*columns, strict=True)]
    assert build([[], []]) == []
    # The first columns are made in the usual way, so look at later ones too.
    for _ in range(3):
        found = build(columns)
        assert found == wanted
        assert {type(row) for row in found} == {cls}
        assert [vars(row) if hasattr(row, "__dict__") else row for row in found] == [
            vars(row) if hasattr(row, "__dict__") else row for row in wanted
        ]


def test_rows_are_separate_objects_that_can_be_changed() -> None:
    build = row_builder(Plain, ["a", "b"])
    build([[0], [""]])
    first, second = build([[1, 1], ["x", "x"]])
    first.a, first.extra = 5, "note"  # type: ignore[attr-defined]
    assert second == Plain(1, "x")
    assert not hasattr(second, "extra")
