"""A pipeline defined in the cells of a notebook runs, its operators included."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = [
    """
from collections.abc import Iterator
from dataclasses import dataclass
import penstock as ps

@dataclass
class Row:
    key: int
    n: int
""",
    """
offset = 100

class Total(ps.KeyedOperator[Row, Row]):
    seen = ps.ValueState(int, default=0)

    def process(self, key: int, row: Row, ctx: ps.Context) -> Iterator[Row]:
        self.seen.value += row.n
        yield Row(key, self.seen.value + offset)

p = ps.Pipeline("cells")
rows = p.source([Row(1, 1), Row(1, 2), Row(2, 5)])
table = rows.key_by("key").process(Total()).collect()
print(sorted(zip(table["key"].to_pylist(), table["n"].to_pylist())))
""",
]


@pytest.mark.filterwarnings("ignore")
def test_operators_defined_in_cells_run_in_their_processes() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    output = "".join(o.get("text", "") for o in notebook.cells[-1].outputs)
    assert output.strip() == "[(1, 101), (1, 103), (2, 105)]"
