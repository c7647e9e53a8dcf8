"""Nodes of user code: map, flat_map, map_batches, row filters, Operator and KeyedOperator.

The processors know their columns and outputs; they are made once when the user's line runs, which
is when wrong annotations surface, and again for the pruned input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from penstock.elements.signals import TIME_COLUMN
from penstock.operators.batch_processor import BatchProcessor, batch_function
from penstock.operators.error_policy import DEAD_SCHEMA, Fail
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.operators.processor import DEAD, MAIN, Processor
from penstock.operators.python_operator import Operator
from penstock.operators.row_functions import row_function

from .ends import snake_case
from .graph import BuildContext, Columns, IdentityRule, Logic

FunctionKind = Literal["map", "flat_map", "map_batches", "filter"]


class PythonLogic(Logic):
    """User code behind a processor that knows `outputs` and `columns_read`."""

    @abstractmethod
    def make(self, inputs: Sequence[pa.Schema], policy: Any) -> Any:
        """The processor for these inputs; raises PlanError."""

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """As declared, and rows that an error policy set aside."""
        return {**self.make(inputs, Fail()).outputs, DEAD: DEAD_SCHEMA}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """What the row class names; everything if the output has the input's schema."""
        made = self.make(inputs, Fail())
        every = frozenset(inputs[0].names) - {TIME_COLUMN}
        reads = getattr(made, "columns_read", None)
        first = every if reads is None else frozenset(reads) - {TIME_COLUMN}
        main = made.outputs.get(MAIN)
        if main is not None and main.equals(inputs[0]):
            first = every if self.rebuilds_rows else first | required.get(MAIN, frozenset())
        return [first, *(frozenset(other.names) - {TIME_COLUMN} for other in inputs[1:])]

    rebuilds_rows: bool = True
    """Whether rows come out made anew; else they are the input's, whole."""

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """With the error policy that was chosen."""
        made: Processor = self.make(inputs, build.on_error or Fail())
        return made


@dataclass(frozen=True, eq=False)
class FunctionLogic(PythonLogic):
    """A function per row or per batch."""

    verb: FunctionKind
    function: Callable[..., Any]
    returns: Any = None

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The method of the stream."""
        return self.verb

    @property
    def title(self) -> str:
        """The function's name, where it has one worth reading."""
        name = getattr(self.function, "__name__", self.verb)
        return self.verb if name == "<lambda>" else str(name)

    def make(self, inputs: Sequence[pa.Schema], policy: Any) -> Any:
        """The engine's driver of functions."""
        if self.verb == "map_batches":
            return batch_function(self.function, inputs[0], self.returns, policy)
        return row_function(self.verb, self.function, inputs[0], self.returns, policy)

    @property
    def rebuilds_rows(self) -> bool:  # type: ignore[override]
        """A filter hands its rows on."""
        return self.verb != "filter"

    def describe(self) -> str:
        """Kind and function."""
        return f"{self.verb} {self.title}"


@dataclass(frozen=True, eq=False)
class OperatorLogic(PythonLogic):
    """A batch-level Operator."""

    operator: Operator
    kind = "process"

    @property
    def title(self) -> str:
        """The class."""
        return snake_case(type(self.operator).__name__)

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        """Whether it may declare operator_state: then its class is its identity."""
        return keeps_operator_state(type(self.operator))

    @property
    def identity_rule(self) -> IdentityRule:  # type: ignore[override]
        """By class if it keeps state, else by place."""
        return "class" if self.stateful else "position"

    def identity(self) -> tuple[str, ...]:
        """The class's name, wherever it is imported from: a script's module has two names."""
        return (type(self.operator).__qualname__, "")

    def make(self, inputs: Sequence[pa.Schema], policy: Any) -> Any:
        """The engine's driver of batch operators."""
        broadcast = inputs[1] if len(inputs) > 1 else None
        return BatchProcessor(self.operator, inputs[0], policy, broadcast)


@dataclass(frozen=True, eq=False)
class KeyedLogic(PythonLogic):
    """A KeyedOperator on `keys`; a second input is its broadcast stream."""

    operator: KeyedOperator[Any, Any]
    keys: tuple[str, ...]
    kind = "keyed"
    stateful = True
    identity_rule = "class"

    @property
    def title(self) -> str:
        """The class."""
        return snake_case(type(self.operator).__name__)

    def identity(self) -> tuple[str, ...]:
        """Class and key."""
        return (type(self.operator).__qualname__, ", ".join(self.keys))

    def make(self, inputs: Sequence[pa.Schema], policy: Any) -> Any:
        """The engine's driver of keyed operators."""
        broadcast = inputs[1] if len(inputs) > 1 else None
        return KeyedProcessor(self.operator, self.keys, inputs[0], policy, broadcast)

    def describe(self) -> str:
        """Class and key."""
        return f"{type(self.operator).__name__} by {', '.join(self.keys)}"


def keeps_operator_state(cls: type[Any]) -> bool:
    """Whether any method of the class names `operator_state`.

    An operator's state is declared in open(), which never runs when planning; its code says.
    """
    for base in cls.__mro__:
        for value in vars(base).values():
            code = getattr(value, "__code__", None)
            if code is not None and "operator_state" in code.co_names:
                return True
    return False
