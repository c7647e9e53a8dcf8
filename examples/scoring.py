"""A Python model over batches: Penstock hands it Arrow record batches, a few thousand rows each.

The model is loaded once per process, in open(); the class declares what comes out. Here it is a
line fitted to the history by NumPy; a Torch or scikit-learn model goes in the same place.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

import penstock as ps


class Score(ps.Operator):
    returns = pa.schema([("id", pa.int64()), ("score", pa.float64())])

    def __init__(self, history: list[tuple[float, float]]) -> None:
        self.history = history  # configuration: what open() needs in the other process

    def open(self, ctx: ps.Context) -> None:
        x, y = np.array(self.history).T
        self._slope, self._base = np.polyfit(x, y, 1)

    def process(self, batch: pa.RecordBatch, ctx: ps.Context) -> Iterator[pa.RecordBatch]:
        x = batch["x"].to_numpy()
        score = pa.array(self._slope * x + self._base)
        yield pa.RecordBatch.from_arrays([batch["id"], score], schema=self.returns)


def scored(orders: ps.Stream) -> ps.Stream:
    model = Score([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)])
    return orders.filter("x > 0").process(model).filter("score > 2.0")


if __name__ == "__main__":
    table = pa.table({"id": range(10), "x": np.linspace(-1.0, 2.0, 10)})
    print(scored(ps.Pipeline("scoring").source(table)).collect().to_pandas())
