"""Which windowed aggregates fold their rows before the exchange, so that hot keys cross it small.

Only where nobody can tell (hazard 71): partial results must merge into the right one, nobody reads
the late rows, which are gone once folded, and no source may fall idle, for time would go on over
rows that a first phase still holds. The window operator keeps its id and its state either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.operators.processor import LATE
from penstock.operators.two_phase import (
    GlobalAggregateProcessor,
    LocalAggregateProcessor,
    partial_schema,
)
from penstock.operators.windows.descriptors import PaneWindow

from .ends import SourceLogic
from .graph import Node, topological
from .pruning import Needs
from .window_nodes import WindowLogic


def folds_first(node: Node, needs: Needs) -> bool:
    """Whether `node` may be run in two phases, if its rows cross an exchange at all."""
    logic = node.logic
    return (
        isinstance(logic, WindowLogic)
        and isinstance(logic.window, PaneWindow)
        and logic.aggregation(node.ports[0].schema).associative
        and LATE not in needs.outputs.get(id(node), {})
        and all(_never_idle(each) for each in topological([node]))
    )


def _never_idle(node: Node) -> bool:
    source = node.logic
    if not isinstance(source, SourceLogic) or source.event_time is None:
        return True
    return source.event_time.idle_after_ns(source.connector.bounded) is None


def first_phase(logic: WindowLogic, rows: pa.Schema) -> LocalAggregateProcessor:
    """Folds rows of `rows`, the schema of one feed; leaves it to the second phase what is late."""
    aggregation = logic.aggregation(rows)
    return LocalAggregateProcessor(
        logic.window, logic.keys, aggregation, rows, logic.lateness_ns, judges=False
    )


def second_phase(logic: WindowLogic, rows: pa.Schema) -> GlobalAggregateProcessor:
    """Gives the windows' results from partials; `rows` is the schema of what was folded."""
    return GlobalAggregateProcessor(
        logic.window,
        logic.keys,
        logic.aggregation(rows),
        rows,
        logic.lateness_ns,
        logic.who,
        logic.location,
    )


def partials_of(logic: WindowLogic, rows: pa.Schema) -> pa.Schema:
    """What crosses the exchange."""
    return partial_schema(_keys(logic.keys, rows), logic.aggregation(rows))


def _keys(names: Sequence[str], rows: pa.Schema) -> list[pa.Field]:
    return [rows.field(name) for name in names]
