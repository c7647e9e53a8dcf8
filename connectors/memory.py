"""MemorySink: results as one table, for tests, notebooks, head() and collect().

Exactly once by way of files: every cut publishes its rows into a temporary folder, which the
driver reads. What the driver gets is a copy (hazard 41).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import pyarrow as pa

from .file_sink import FileSink


class MemorySink(FileSink):
    """Collect rows; `table()` gives what has been committed so far.

    Of an updating stream it keeps every change, with `_change` as the last column.
    """

    updating = True

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory or tempfile.mkdtemp(prefix="penstock-rows-")
        super().__init__(self.directory, format="arrow", roll_interval="0 s")

    def table(self, schema: pa.Schema | None = None) -> pa.Table:
        """Committed rows in the order of their checkpoints; `schema` for when there are none."""
        names = sorted(n for n in os.listdir(self.directory) if n.endswith(".arrow"))
        tables = []
        for name in names:
            with pa.OSFile(os.path.join(self.directory, name), "rb") as file:
                tables.append(pa.ipc.open_file(pa.BufferReader(file.read())).read_all())
        if tables:
            return pa.concat_tables(tables)
        return (schema or pa.schema([])).empty_table()

    def rows(self) -> int:
        """How many rows are committed, without reading them."""
        return int(self.table().num_rows)

    def discard(self) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()
