"""StdoutSink: rows as JSON lines on the sink process's standard output. At-least-once."""

from __future__ import annotations

import io
import sys
from typing import Any

import arro3.io
import pyarrow as pa

from penstock.operators.sink import Sink


class StdoutSink(Sink):
    """Print every row; for looking, not for keeping. Changes show as `"_change": 1` or -1."""

    updating = True

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        """Print one JSON object per row; null fields are left out."""
        if batch.num_rows == 0:
            return
        text = io.BytesIO()
        arro3.io.write_ndjson(batch, text)
        sys.stdout.write(text.getvalue().decode())
        sys.stdout.flush()
