"""A chain: the operators of one vertex in one subtask, called head to tail in one thread.

Rows, watermarks and the end walk the tree of links depth first; what leaves the vertex goes to its
outputs. A chain is snapshotted head to tail in one turn, nothing being delivered in between
(hazard 25).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from penstock.dataflow.plan import OperatorSpec, Vertex
from penstock.elements.clock import Clock
from penstock.elements.keygroup import KeyGroupRange
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.processor import MAIN
from penstock.operators.source import SourceProcessor
from penstock.state.backend import SealedLog, Snapshot, StateBackend

from .output import Output, Outputs


@dataclass(frozen=True)
class ChainSurroundings:
    """What all operators of a subtask have in common."""

    subtask: int
    parallelism: int
    key_groups: KeyGroupRange
    clock: Clock
    run_id: str
    scratch_dir: str
    wake: Callable[[], None]
    emit_idle: Callable[[], None]


@dataclass
class OperatorContext:
    """One operator's view of the engine: the ProcessorContext of operators/processor.py."""

    spec: OperatorSpec
    index: int
    chain: Chain
    state: StateBackend
    surroundings: ChainSurroundings
    watermark: int = WATERMARK_MIN
    checkpoint_id: int = 0
    counters: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    woken: bool = False

    def __post_init__(self) -> None:
        self.operator_id = self.spec.id
        self.operator_name = self.spec.name
        self.subtask = self.surroundings.subtask
        self.parallelism = self.surroundings.parallelism
        self.key_groups = self.surroundings.key_groups
        self.clock = self.surroundings.clock
        self.run_id = self.surroundings.run_id
        self.scratch_dir = self.surroundings.scratch_dir

    @property
    def origin(self) -> str | None:
        """Known while the source at the head of this chain collects."""
        return self.chain.origin

    def collect(self, batch: pa.RecordBatch, output: str = MAIN) -> None:
        """Rows go on at once, depth first."""
        if batch.num_rows:
            self.counters["rows_out"] += batch.num_rows
            self.chain.deliver(self.index, output, batch)

    def emit_watermark(self, watermark: int) -> None:
        """A source's promise goes to everything behind it."""
        if watermark > self.watermark:
            self.watermark = watermark
            self.chain.forward_watermark(self.index, watermark)

    def forward_watermark(self, watermark: int) -> None:
        """One that was held goes on behind the rows that were in flight."""
        self.chain.forward_watermark(self.index, watermark)

    def emit_idle(self) -> None:
        """A source is quiet: say so on all outputs of the subtask."""
        self.surroundings.emit_idle()

    def wake(self) -> None:
        """Have on_processing_time called in the loop's next turn."""
        self.woken = True
        self.surroundings.wake()

    def count(self, metric: str, amount: int) -> None:
        """Counters are sent with the statistics."""
        self.counters[metric] += amount


class Chain:
    """The operators of one vertex, opened."""

    def __init__(
        self,
        vertex: Vertex,
        outputs: Mapping[tuple[int, str], Sequence[Output]],
        channels: Mapping[int, Outputs],
        surroundings: ChainSurroundings,
        backends: Sequence[StateBackend],
    ) -> None:
        """`outputs` by (operator index, output name); `channels` by operator index."""
        self.vertex = vertex
        self._processors = [spec.processor for spec in vertex.operators]
        head = self._processors[0]
        self._source = head if isinstance(head, SourceProcessor) else None
        self._in_flight = [p for p in self._processors if p.holds_watermarks]
        self._ended = -1
        self._sealed_logs: dict[int, list[SealedLog]] = {}
        self._channels = channels
        self._outputs = outputs
        self._clock = surroundings.clock
        self.contexts = [
            OperatorContext(spec, index, self, backend, surroundings)
            for index, (spec, backend) in enumerate(zip(vertex.operators, backends, strict=True))
        ]
        self._links: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._children: dict[int, list[int]] = defaultdict(list)
        for link in vertex.links:
            self._links[link.source, link.output].append(link.target)
            if link.target not in self._children[link.source]:
                self._children[link.source].append(link.target)

    @property
    def states(self) -> list[tuple[str, StateBackend]]:
        """Operator id and backend, head to tail."""
        return [(c.operator_id, c.state) for c in self.contexts]

    @property
    def origin(self) -> str | None:
        """Where the rows at hand begin, if this chain reads them; they may come from further on."""
        reading = None if self._source is None else self._source.reading
        return None if reading is None else f"{reading} or soon after"

    def open(self, watermarks: Sequence[int], checkpoint_id: int) -> None:
        """Open every operator at the watermark it had, tail first: a head may emit at once."""
        for context, processor, watermark in zip(
            reversed(self.contexts), reversed(self._processors), reversed(watermarks), strict=True
        ):
            context.watermark = watermark
            context.checkpoint_id = checkpoint_id
            processor.open(context)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Rows for the head."""
        self.contexts[0].counters["rows_in"] += batch.num_rows
        self._processors[0].process(batch, port)

    def deliver(self, source: int, output: str, batch: pa.RecordBatch) -> None:
        """Rows that operator `source` collected."""
        for target in self._links.get((source, output), ()):
            self.contexts[target].counters["rows_in"] += batch.num_rows
            self._processors[target].process(batch, 0)
        for edge in self._outputs.get((source, output), ()):
            edge.send(batch, self._clock.monotonic_ns())

    def advance(self, watermark: int) -> None:
        """The head's inputs have all passed `watermark`."""
        self._advance(0, watermark)

    def _advance(self, index: int, watermark: int) -> None:
        context = self.contexts[index]
        if watermark <= context.watermark and watermark != WATERMARK_MAX:
            return
        context.watermark = watermark
        self._processors[index].on_watermark(watermark)
        if not self._processors[index].holds_watermarks:
            self.forward_watermark(index, watermark)

    def forward_watermark(self, index: int, watermark: int) -> None:
        """Everything behind operator `index` learns the watermark after its rows."""
        for child in self._children.get(index, ()):
            self._advance(child, watermark)
        channels = self._channels.get(index)
        if channels is not None:
            channels.watermark(watermark, self._clock.monotonic_ns())

    def end(self) -> bool:
        """No further input: the last watermark, then each operator's flush, head to tail.

        False while an operator has rows in flight: call again when it has been woken.
        """
        while self._ended < len(self._processors):
            if self._ended >= 0 and self._processors[self._ended].busy():
                return False
            self._ended += 1
            if self._ended < len(self._processors):
                self.contexts[self._ended].watermark = WATERMARK_MAX
                self._processors[self._ended].on_watermark(WATERMARK_MAX)
                self._processors[self._ended].on_end()
        return True

    @property
    def busy(self) -> bool:
        """Whether an operator has rows in flight."""
        return any(processor.busy() for processor in self._in_flight)

    @property
    def saturated(self) -> bool:
        """Whether an operator wants no rows for now."""
        return any(processor.saturated() for processor in self._in_flight)

    def next_wakeup_ns(self) -> int | None:
        """The earliest wall time that any operator asked for; 0 if one was woken."""
        earliest: int | None = None
        for context, processor in zip(self.contexts, self._processors, strict=True):
            at = 0 if context.woken else processor.next_wakeup_ns()
            if at is not None and (earliest is None or at < earliest):
                earliest = at
        return earliest

    def on_processing_time(self, now_ns: int) -> None:
        """Call the operators that are due or were woken."""
        for context, processor in zip(self.contexts, self._processors, strict=True):
            at = processor.next_wakeup_ns()
            if context.woken or (at is not None and at <= now_ns):
                context.woken = False
                processor.on_processing_time(now_ns)

    def seal(self, checkpoint_id: int, final: bool = False) -> list[tuple[str, Snapshot]]:
        """Bring everything into state head to tail, then freeze it. `final`: all have ended."""
        for processor in self._processors:
            if not (final and processor.keeps_by_key_only):
                processor.before_snapshot(checkpoint_id)
        sealed = [(operator_id, state.seal()) for operator_id, state in self.states]
        logs = [log for _, snapshot in sealed for log in snapshot.logs()]
        if logs:
            self._sealed_logs[checkpoint_id] = logs
        return sealed

    def given_up(self, checkpoint_id: int) -> None:
        """What was sealed for it is in no checkpoint."""
        for log in self._sealed_logs.pop(checkpoint_id, ()):
            log.discard()

    def announce(self, now_ns: int) -> None:
        """Repeat a restored source's promise: behind it nobody has heard it in this attempt."""
        for index, channels in self._channels.items():
            if not self._processors[index].holds_watermarks:
                channels.watermark(self.contexts[index].watermark, now_ns)

    def watermarks(self) -> list[tuple[str, int]]:
        """Operator id and watermark, head to tail."""
        return [(c.operator_id, c.watermark) for c in self.contexts]

    def completed(self, checkpoint_id: int) -> None:
        """It counts: what user code sees as the epoch moves on, and logs need not write again."""
        for context in self.contexts:
            context.checkpoint_id = checkpoint_id
        for log in self._sealed_logs.pop(checkpoint_id, ()):
            log.confirm()
        # Older ones that were never heard of say no more than this one does.
        for older in [n for n in self._sealed_logs if n < checkpoint_id]:
            del self._sealed_logs[older]

    def commit(self, checkpoint_id: int) -> None:
        """Publish every cut up to `checkpoint_id`."""
        for processor in self._processors:
            processor.on_commit(checkpoint_id)

    def pending_commits(self) -> list[int]:
        """Checkpoint ids that some operator still owes a commit for."""
        return [n for processor in self._processors for n in processor.pending_commits()]

    def close(self) -> None:
        """Close every operator, head to tail."""
        for processor in self._processors:
            processor.close()

    def counters(self) -> dict[str, dict[str, int]]:
        """Counters by operator id."""
        return {c.operator_id: dict(c.counters) for c in self.contexts}
