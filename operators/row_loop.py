"""row_loop: the loop that calls `process` for each row, written out for an operator's states.

It is the hottest loop of Python operators, so it makes no call of ours: a ValueState that is a cell
is looked up, filled and stored by lines of its own. What raises is found by the caller: `row` says
which row it was, and its cells are not stored yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from penstock.state.backend import IMMUTABLE_TYPES

from .context import Context
from .current_row import CurrentRow
from .declared_value import ValueCell

CELLS_MAX = 3
"""States that are cells: each costs a lookup per row, also of rows that do not need it."""

RowLoop = Callable[
    [Sequence[int], Sequence[Any], Sequence[int], Sequence[Any], list[Any], list[int]], None
]
"""(indices in the batch, keys, pages, rows, items made, the index of the row each is of)."""

_CALL = """
def make(process, context, row, immutable, {parameters}):
    def run(indices, keys, pages, rows, items, owners):
        extend, own = items.extend, owners.append
        for row.index, key, page, given in zip(indices, keys, pages, rows, strict=True):
            row.key = key
            {load}
            made = process(key, given, context)
            if made is not None:
                extend(made)
                count = len(items) - len(owners)
                if count == 1:
                    own(row.index)
                elif count:
                    owners.extend([row.index] * count)
            {store}
    return run
"""
_LOAD = """
            cell{n}.value = cell{n}.before = found = find{n}(key, default{n})
            if type(found) is not usual{n} and type(found) not in immutable:
                dirty{n}[page] = 1
"""
_STORE = """
            if cell{n}.value is not cell{n}.before:
                if key in values{n}:
                    values{n}[key] = cell{n}.before = cell{n}.value
                    dirty{n}[page] = 1
                else:
                    cell{n}.store(key, int(row.hashes[row.index]))
"""
_OF_CELL = ("cell", "find", "default", "usual", "values", "dirty")


def row_loop(process: Callable[..., Any], context: Context, row: CurrentRow) -> RowLoop:
    """The loop for an operator whose states are bound to `row`; `pages` are of its cells' store."""
    cells = [cell for cell in row.cells if isinstance(cell, ValueCell)]
    assert len(cells) == len(row.cells)
    source = _CALL.format(
        parameters=", ".join(f"{name}{n}" for n in range(len(cells)) for name in _OF_CELL),
        load="".join(_LOAD.format(n=n) for n in range(len(cells))).strip(),
        store="".join(_STORE.format(n=n) for n in range(len(cells))).strip(),
    )
    given: list[Any] = []
    for cell in cells:
        values, dirty, _ = cell.direct
        given += [cell, values.get, cell.default, cell.usual, values, dirty]
    made: dict[str, Any] = {}
    # It counts as a file of ours, so that tracebacks show users their own frames only.
    name = os.path.join(os.path.dirname(os.path.abspath(__file__)), "<row loop>")
    exec(compile(source, name, "exec"), made)
    loop: RowLoop = made["make"](process, context, row, IMMUTABLE_TYPES, *given)
    return loop
