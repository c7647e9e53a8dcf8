"""BlackholeSink: counts rows and forgets them; the count shows in the job's statistics."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from penstock.operators.sink import Sink


class BlackholeSink(Sink):
    """Take everything, keep nothing: for benchmarks."""

    updating = True

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        """The engine counts rows before they come here."""
