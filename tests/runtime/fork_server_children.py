"""Children of the fork server in its tests. Imported in the child, never in the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def _say(descriptor: int, what: object) -> None:
    with socket.socket(fileno=descriptor) as sock:
        sock.sendall(json.dumps(what).encode())


def compute(descriptor: int) -> None:
    imported = all(name in sys.modules for name in ("pyarrow", "polars", "datafusion"))
    import datafusion
    import polars as pl
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table({"n": [1, 2, 3]})
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    joined = frame.join(frame, on="n").group_by(pl.lit(1)).agg(pl.col("n").sum())
    context = datafusion.SessionContext()
    context.from_arrow(table, name="t")
    summed = context.sql("select sum(n) as n from t").to_pylist()
    _say(
        descriptor,
        {
            "arrow": pc.sum(table["n"]).as_py(),
            "polars": joined["n"][0],
            "datafusion": summed[0]["n"],
            "imported": imported,
        },
    )
    os._exit(0)


def exit_with_7(descriptor: int) -> None:
    os._exit(7)


def kill_self(descriptor: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def loaded(descriptor: int) -> None:
    _say(descriptor, sorted(sys.modules))
    os._exit(0)
