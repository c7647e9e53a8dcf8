"""Which aggregates fold their rows before the exchange, so that hot keys cross it small.

Only where nobody can tell (hazard 71): partial results must merge into the right one. Of windows
nobody may read the late rows, which are gone once folded, and no source may fall idle, for time
would go on over rows that a first phase still holds; aggregates without a window hold nothing.
Of the first rows per key those are left out that cannot be. The second operator keeps its id and
its state either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.operators.processor import LATE, Processor
from penstock.operators.thin_out import ThinOutProcessor
from penstock.operators.two_phase import (
    GlobalAggregateProcessor,
    LocalAggregateProcessor,
    partial_schema,
)
from penstock.operators.updating_aggregate import folded_schema
from penstock.operators.updating_fold import UpdatingFoldProcessor
from penstock.operators.windows.descriptors import PaneWindow

from .analytics import KeyedRowsLogic
from .ends import SourceLogic
from .graph import Node, topological
from .pruning import Needs
from .updating_nodes import UpdatingLogic
from .window_nodes import WindowLogic

FoldedLogic = WindowLogic | UpdatingLogic | KeyedRowsLogic


def folds_first(node: Node, needs: Needs) -> bool:
    """Whether `node` may be run in two phases, if its rows cross an exchange at all."""
    logic = node.logic
    if isinstance(logic, UpdatingLogic):
        return logic.calls(node.ports[0].schema).foldable
    if isinstance(logic, KeyedRowsLogic):
        return logic.thinned_by(node.ports[0].schema) is not None
    return (
        isinstance(logic, WindowLogic)
        and not logic.updating
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


def first_phase(
    logic: FoldedLogic, rows: pa.Schema
) -> LocalAggregateProcessor | UpdatingFoldProcessor | ThinOutProcessor:
    """Folds rows of `rows`, the schema of one feed; leaves it to the second phase what is late."""
    if isinstance(logic, KeyedRowsLogic):
        by = logic.thinned_by(rows)
        assert by is not None
        return ThinOutProcessor(logic.keys, *by, rows)
    aggregation = logic.aggregation(rows)
    if isinstance(logic, UpdatingLogic):
        return UpdatingFoldProcessor(logic.keys, aggregation, rows, logic.who, logic.location)
    return LocalAggregateProcessor(
        logic.window, logic.keys, aggregation, rows, logic.lateness_ns, judges=False
    )


def second_phase(logic: FoldedLogic, rows: pa.Schema) -> Processor:
    """Gives the results from partials; `rows` is the schema of what was folded."""
    if isinstance(logic, KeyedRowsLogic):
        made: Processor = logic.make(rows)
        return made
    if isinstance(logic, UpdatingLogic):
        return logic.made(rows, partial_input=True)
    return GlobalAggregateProcessor(
        logic.window,
        logic.keys,
        logic.aggregation(rows),
        rows,
        logic.lateness_ns,
        logic.who,
        logic.location,
    )


def partials_of(logic: FoldedLogic, rows: pa.Schema) -> pa.Schema:
    """What crosses the exchange."""
    if isinstance(logic, KeyedRowsLogic):
        return rows
    if isinstance(logic, UpdatingLogic):
        return folded_schema(rows, logic.keys, logic.calls(rows))
    return partial_schema(_keys(logic.keys, rows), logic.aggregation(rows))


def _keys(names: Sequence[str], rows: pa.Schema) -> list[pa.Field]:
    return [rows.field(name) for name in names]
