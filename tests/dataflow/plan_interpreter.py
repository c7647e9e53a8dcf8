"""Runs a bounded plan in this thread: the real processors and routers, no processes, no cuts.

Sources are read to their end before time goes on, so nothing is late and windows fire at the end.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import cloudpickle
import pyarrow as pa

from penstock.dataflow.plan import Plan, Vertex
from penstock.elements.clock import ManualClock
from penstock.elements.keygroup import owned_groups
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.sink_processor import SinkProcessor
from penstock.runtime.partition import router_of
from penstock.state.backend import RestoredState
from penstock.state.memory import memory_backend


class _Context:
    def __init__(self, run: Interpreter, vertex: Vertex, operator: int, subtask: int) -> None:
        spec = vertex.operators[operator]
        self.operator_id, self.operator_name = spec.id, spec.name
        self.subtask, self.parallelism = subtask, vertex.parallelism
        self.key_groups = owned_groups(subtask, vertex.parallelism)
        restored = RestoredState((), self.key_groups, subtask, vertex.parallelism)
        self.state = memory_backend(spec.id, restored)
        self.clock = ManualClock(1_700_000_000_000_000_000)
        self.watermark = WATERMARK_MIN
        self.checkpoint_id, self.run_id, self.scratch_dir = 0, "run", ""
        self.origin: str | None = None
        self._run, self._vertex, self._operator = run, vertex, operator
        self._routers = {
            edge.id: router_of(edge, run.plan.vertex(edge.target_vertex).parallelism, subtask, 8192)
            for edge in run.plan.outputs(vertex.id)
        }

    def collect(self, batch: pa.RecordBatch, output: str = "main") -> None:
        if not batch.num_rows:
            return
        spec = self._vertex.operators[self._operator]
        assert batch.schema.equals(spec.outputs[output]), f"{spec.name}.{output}: {batch.schema}"
        for link in self._vertex.links:
            if (link.source, link.output) == (self._operator, output):
                self._run.give(self._vertex, link.target, self.subtask, batch, 0)
        for edge in self._run.plan.outputs(self._vertex.id):
            if (edge.source_operator, edge.output) == (self._operator, output):
                assert batch.schema.equals(edge.schema)
                target = self._run.plan.vertex(edge.target_vertex)
                for subtask, rows in self._routers[edge.id](batch):
                    self._run.give(target, 0, subtask, rows, edge.port)

    def emit_watermark(self, watermark: int) -> None: ...

    def emit_idle(self) -> None: ...

    def wake(self) -> None: ...

    def count(self, metric: str, amount: int) -> None:
        self._run.counters[f"{self.operator_name}.{metric}"] += amount


class Interpreter:
    """`rows(name)` are what the sinks of that name were given."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counters: dict[str, int] = defaultdict(int)
        self._sunk: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._processors: dict[tuple[str, int, int], Any] = {}
        for vertex in plan.vertices:
            for subtask in range(vertex.parallelism):
                for at, spec in enumerate(vertex.operators):
                    made = cloudpickle.loads(cloudpickle.dumps(spec.processor))
                    self._processors[vertex.id, subtask, at] = made
                    if not isinstance(made, SinkProcessor):
                        made.open(_Context(self, vertex, at, subtask))

    def run(self) -> Interpreter:
        """To the end of the data."""
        for vertex in self.plan.vertices:
            if vertex.operators[0].is_source:
                self._read(vertex)
        for vertex in self.plan.vertices:
            for subtask in range(vertex.parallelism):
                for at, spec in enumerate(vertex.operators):
                    processor = self._processors[vertex.id, subtask, at]
                    if not spec.is_sink and not spec.is_source:
                        processor._ctx.watermark = WATERMARK_MAX
                        processor.on_watermark(WATERMARK_MAX)
                        processor.on_end()
        return self

    def _read(self, vertex: Vertex) -> None:
        splits = vertex.operators[0].processor.connector.splits()  # type: ignore[attr-defined]
        for subtask in range(vertex.parallelism):
            source = self._processors[vertex.id, subtask, 0]
            source.assign(splits[subtask :: vertex.parallelism])
            source.no_more_splits()
            while not source.ended:
                source.poll(1000)

    def give(
        self, vertex: Vertex, operator: int, subtask: int, batch: pa.RecordBatch, port: int
    ) -> None:
        """Rows for one operator."""
        spec = vertex.operators[operator]
        if spec.is_sink:
            rows = batch.to_pylist()
            self._sunk[spec.name] += [{n: r[n] for n in r if n != "_time"} for r in rows]
            return
        self._processors[vertex.id, subtask, operator].process(batch, port)

    def rows(self, sink: str) -> list[dict[str, Any]]:
        """Sorted, since there is no order."""
        return sorted(self._sunk[sink], key=repr)
