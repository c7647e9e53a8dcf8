"""ValueStates as cells: what user code does to a value is what the state has, row by row."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.errors import StateError, UserCodeError
from penstock.elements.rows import RowCodec
from penstock.operators.context import Context
from penstock.operators.declared import Fired, MapState, Timer, ValueState
from penstock.operators.declared_value import ValueCell
from penstock.operators.error_policy import Drop
from penstock.operators.event_time_column import with_time_field, with_times
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.testing.harness import Harness

SECOND = 1_000_000_000


@dataclass
class Order:
    key: int
    what: str


@dataclass
class Seen:
    key: int
    text: str


ORDERS = with_time_field(RowCodec(Order).schema)


def orders(rows: Sequence[tuple[int, str]], second: int = 1) -> pa.RecordBatch:
    batch = RowCodec(Order).encode([Order(*row) for row in rows])
    return with_times(batch, np.full(len(rows), second * SECOND, np.int64))


def harness(op: KeyedOperator[Any, Any], policy: Any = None) -> Harness:
    processor = KeyedProcessor(op, "key", ORDERS, *([policy] if policy else []))
    return Harness(processor, [ORDERS], out_schemas=processor.outputs)


def texts(driven: Harness) -> list[str]:
    return [row["text"] for row in driven.rows("main")]


class Several(KeyedOperator[Order, Seen]):
    """Does to its states what the row says; five states, of which some are cells."""

    number = ValueState(int, default=0)
    text = ValueState(str)
    items = ValueState(list)
    half = ValueState(float, default=0.0)
    last = ValueState(int, default=-1)
    counts = MapState(str, int)

    def process(self, key: int, row: Order, ctx: Context) -> Iterator[Seen]:
        self.counts[row.what] = self.counts.get(row.what, 0) + 1
        if row.what == "add":
            self.number.value += 1
            self.half.value += 0.5
            self.last.value = self.number.value
        elif row.what == "clear":
            self.number.clear()
            self.last.clear()
        elif row.what == "clear and set":
            self.number.clear()
            self.number.value = 7
        elif row.what == "set and clear":
            self.text.value = "gone"
            self.text.clear()
        elif row.what == "text":
            self.text.value = (self.text.value or "") + "x"
        elif row.what == "list":
            self.items.value = [*(self.items.value or []), self.number.value]
        elif row.what == "list in place" and self.items.value is not None:
            self.items.value.append(-1)
        elif row.what == "raise":
            self.number.value += 100
            yield Seen(key, "never seen")
            raise ValueError("on purpose")
        yield Seen(key, self._shown())

    def _shown(self) -> str:
        return repr(
            [self.number.value, self.text.value, self.items.value, self.half.value, self.last.value]
        )


def reference(rows: Sequence[tuple[int, str]]) -> list[str]:
    """The same with a plain dictionary."""
    state: dict[int, list[Any]] = {}
    shown = []
    for key, what in rows:
        now = state.setdefault(key, [0, None, None, 0.0, -1])
        if what == "add":
            now[0] += 1
            now[3] += 0.5
            now[4] = now[0]
        elif what == "clear":
            now[0], now[4] = 0, -1
        elif what == "clear and set":
            now[0] = 7
        elif what == "set and clear":
            now[1] = None
        elif what == "text":
            now[1] = (now[1] or "") + "x"
        elif what == "list":
            now[2] = [*(now[2] or []), now[0]]
        elif what == "list in place" and now[2] is not None:
            now[2].append(-1)
        elif what == "raise":
            now[0] += 100
            continue
        shown.append(repr(now))
    return shown


WHAT = st.sampled_from(
    ["add", "clear", "clear and set", "set and clear", "text", "list", "list in place", "raise"]
)


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(st.lists(st.tuples(st.integers(0, 3), WHAT), max_size=12), max_size=5))
def test_states_are_what_a_dictionary_would_hold_also_over_cuts_and_errors(
    batches: list[list[tuple[int, str]]],
) -> None:
    driven = harness(Several(), Drop())
    for rows in batches:
        driven.send(orders(rows))
        # What was not marked as changed would be missing here.
        driven.restart()
    assert texts(driven) == reference([row for rows in batches for row in rows])


def test_three_states_are_cells_and_the_others_are_not() -> None:
    processor = harness(Several()).processor
    assert isinstance(processor, KeyedProcessor)
    held = vars(processor.operator).items()
    cells = [name for name, state in held if isinstance(state, ValueCell)]
    assert cells == ["number", "text", "half"]


def test_a_mutable_value_in_a_state_of_numbers_is_marked_when_it_is_changed_in_place() -> None:
    class Loose(KeyedOperator[Order, Seen]):
        held: ValueState[Any] = ValueState(int)

        def process(self, key: int, row: Order, ctx: Context) -> Iterator[Seen]:
            if self.held.value is None:
                self.held.value = []
            self.held.value.append(row.what)
            yield Seen(key, repr(self.held.value))

    driven = harness(Loose())
    driven.send(orders([(1, "a")]))
    driven.cut()
    driven.send(orders([(1, "b")])).restart().send(orders([(1, "c")]))
    assert texts(driven)[-1] == "['a', 'b', 'c']"


def test_timers_read_and_write_the_values_of_their_key() -> None:
    class Ringing(KeyedOperator[Order, Seen]):
        number = ValueState(int, default=0)
        bell = Timer()

        def process(self, key: int, row: Order, ctx: Context) -> None:
            self.number.value += 1
            self.bell.set(5 * SECOND)

        def on_timer(self, key: int, timer: Fired, ctx: Context) -> Iterator[Seen]:
            yield Seen(key, f"{key}: {self.number.value}")
            self.number.value += 10

    driven = harness(Ringing())
    driven.send(orders([(1, ""), (2, ""), (1, "")])).advance(6 * SECOND)
    driven.restart().send(orders([(1, ""), (2, "")], 7)).advance(8 * SECOND)
    assert sorted(texts(driven)) == ["1: 13", "1: 2", "2: 1", "2: 12"]


def test_the_garbage_collector_is_on_again_after_a_batch_also_if_a_row_raised() -> None:
    driven = harness(Several())
    driven.send(orders([(1, "add")]))
    assert gc.isenabled()
    with pytest.raises(UserCodeError):
        driven.send(orders([(1, "raise")]))
    assert gc.isenabled()


@pytest.mark.parametrize("write", [True, False], ids=["assigned", "read"])
def test_between_rows_a_value_is_refused(write: bool) -> None:
    class Stray(KeyedOperator[Order, Seen]):
        number = ValueState(int, default=0)

        def process(self, key: int, row: Order, ctx: Context) -> None:
            self.number.value += 1

        def before_snapshot(self, ctx: Context) -> None:
            if write:
                self.number.value = 5
            else:
                assert self.number.value

    driven = harness(Stray())
    driven.send(orders([(1, "")]))
    with pytest.raises(StateError, match="state is kept per key"):
        driven.cut()
