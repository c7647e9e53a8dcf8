"""The subtask's loop: commands, inputs, timers, sources, outputs; one thread, one mailbox.

The law of the doorbell (hazard 1): the loop scans everything until nothing is eligible, drains the
bell, scans once more, and only then sleeps. Whatever can make a scan succeed rings. Nothing waits
inside an operator: when an output is full the loop itself waits, serving commands meanwhile.
"""

from __future__ import annotations

import gc
import logging

import pyarrow as pa

from penstock.elements.errors import ChannelAborted
from penstock.elements.keygroup import owned_groups
from penstock.elements.signals import BarrierFlag, Kind, barrier_flags, barrier_word
from penstock.operators.source import SourceProcessor, Split
from penstock.state.memory import memory_backend
from penstock.state.store import LocalStore

from .alignment import Alignment, Block, Declined, TakeSnapshot, Unblock
from .alignment import Command as AlignmentCommand
from .chain import Chain, ChainSurroundings
from .channel import Message
from .failpoint import failpoint
from .failures import failure_of
from .gate import Gate
from .messages import (
    AbortCheckpoint,
    AssignSplits,
    Commit,
    CommitDone,
    Decline,
    Drain,
    Failed,
    InputEnded,
    Started,
    TriggerCheckpoint,
)
from .meter import Meter
from .output import Outputs
from .pace import Pace
from .progress import Advance, Idle, Progress
from .progress import Command as ProgressCommand
from .restore import refuse_undeclared, restore_subtask
from .run_queue import RunQueue
from .setup import SubtaskSetup
from .snapshotter import SealedSubtask, Snapshotter
from .wiring import splits_of, wire

log = logging.getLogger("penstock.subtask")

SLEEP_S_MAX = 0.1
"""The longest sleep; the agent rings as often, so a lost post costs no more (hazard 2)."""
TRIM_NS = 10 * 10**9
"""Channels that were idle for so long give their memory back (hazard 38)."""
SOURCE_ROWS_MAX = 32 * 1024
"""Rows asked of a source at once: fewer cost calls, and more do not fit the processor's cache."""
SOURCE_RETRY_S = 0.002
"""A source that had nothing is asked again after this, unless it rings earlier."""


class Subtask:
    """One actor. Build it, then `run`; it returns when the attempt is over or raises."""

    def __init__(self, setup: SubtaskSetup) -> None:
        self._setup = setup
        self._clock = setup.clock
        self._link = setup.link
        self._bell = setup.doorbell
        vertex, settings, key = setup.vertex, setup.settings, setup.deployment.key
        self._name = str(key)
        self._groups = owned_groups(key.index, vertex.parallelism)
        self._store = LocalStore(
            setup.store_root, durability=settings.durability, made_elsewhere=True
        )
        self._gate = Gate(
            [inbound.receiver for inbound in setup.receivers],
            [inbound.edge.port for inbound in setup.receivers],
        )
        self._alignment = Alignment(len(self._gate))
        restored = restore_subtask(
            vertex,
            key.index,
            self._groups,
            setup.deployment.restored,
            self._store,
            memory_backend,
            setup.deployment.restored_parts,
        )
        self._restored_watermarks = restored.watermarks
        self._progress = Progress(len(self._gate), restored.watermarks[0])
        outputs, by_operator, every = wire(setup, settings)
        self._outputs: Outputs = every
        surroundings = ChainSurroundings(
            subtask=key.index,
            parallelism=vertex.parallelism,
            key_groups=self._groups,
            clock=setup.clock,
            run_id=setup.run_id,
            scratch_dir=setup.scratch_dir,
            wake=setup.doorbell.ring,
            emit_idle=self._go_idle,
        )
        self._chain = Chain(vertex, outputs, by_operator, surroundings, restored.backends)
        head = vertex.operators[0].processor
        self._source = head if isinstance(head, SourceProcessor) else None
        # Where nothing leaves the process, whoever reads does little else.
        self._source_rows = SOURCE_ROWS_MAX if setup.senders else 2 * SOURCE_ROWS_MAX
        self._snapshotter = Snapshotter(
            self._store, setup.link, self._groups, setup.clock, self._name
        )
        self._pace = Pace(int(settings.inflight_ms * 1e6))
        self._run_queue = RunQueue()
        self._meter = Meter(setup.clock, setup.link, settings.statistics_interval_s)
        self._work: tuple[int, pa.RecordBatch] | None = None
        self._ended = False
        self._ending = False
        self._idle_due = False
        self._paused = False
        self._deferred: TriggerCheckpoint | None = None
        self._aligning_since_ns = 0
        self._source_retry_ns = 0
        self._trimmed_ns = self._clock.monotonic_ns()

    # Life ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the chain on restored state, repeat commits, take the first splits."""
        deployment = self._setup.deployment
        restored_id = deployment.commit_up_to
        self._chain.open(self._restored_watermarks, restored_id)
        refuse_undeclared(self._setup.vertex, [state for _, state in self._chain.states])
        if restored_id:
            self._commit(restored_id)
        self._gate.limit_rows(self._pace.new_limit() or 1)
        if self._source is not None:
            self._chain.announce(self._clock.monotonic_ns())
            for splits in deployment.splits.values():
                self._source.assign(splits_of(splits))
            if deployment.no_more_splits:
                self._source.no_more_splits()
        # What was built until now lives as long as the process: keep it out of collections.
        gc.collect()
        gc.freeze()
        self._link.send(Started(self._setup.pid))
        if deployment.finished:
            self._finish(flush=False)

    def run(self) -> None:
        """Turn until the process is killed; raises what operators raise."""
        while True:
            if self.turn():
                continue
            self._outputs.release_idle()
            published = self._outputs.flush()
            self._bell.drain()
            if self.turn():
                continue
            self._sleep(published)

    def _sleep(self, published: bool) -> None:
        now_ns = self._clock.monotonic_ns()
        until_ns = min(self._outputs.next_deadline_ns(), now_ns + int(SLEEP_S_MAX * 1e9))
        if self._source is not None and published and not (self._ended or self._paused):
            until_ns = min(until_ns, self._source_retry_ns)
        wakeup_ns = None if self._ended else self._chain.next_wakeup_ns()
        if wakeup_ns is not None:
            until_ns = min(until_ns, now_ns + max(0, wakeup_ns - self._clock.wall_ns()))
        if now_ns - self._trimmed_ns >= TRIM_NS:
            self._trimmed_ns = now_ns
            self._outputs.trim_idle()
        self._setup.progress.set("idle" if published else "send")
        self._bell.wait(max(0, until_ns - now_ns) / 1e9)
        self._meter.slept(self._clock.monotonic_ns() - now_ns, blocked=not published)

    def turn(self) -> bool:
        """One scan; True if anything was done, so that the next scan comes at once."""
        worked = self._serve_commands()
        self._meter.report(self._progress.watermark, self._chain)
        self._outputs.release_due(self._clock.monotonic_ns())
        if not self._outputs.flush():
            return worked
        if self._ending:
            # Rows are in flight: what comes of them goes on, and only then the end.
            worked = self._tick() or worked
            self._finish(flush=True)
            return worked or self._ended
        if self._chain.saturated:
            return self._tick() or worked
        if self._work is not None:
            self._process_slice()
            return True
        taken = self._gate.take()
        if taken is not None:
            self._receive(*taken)
            return True
        return self._tick() or self._poll_source() or worked

    def _tick(self) -> bool:
        if self._ended:
            return False
        wakeup_ns = self._chain.next_wakeup_ns()
        now_ns = self._clock.wall_ns()
        if wakeup_ns is None or wakeup_ns > now_ns:
            return False
        self._setup.progress.set("timer")
        self._chain.on_processing_time(now_ns)
        if self._idle_due and not self._chain.busy:
            self._go_idle()
        return True

    def _go_idle(self) -> None:
        """Tell the readers not to wait for this subtask, unless rows are still in flight here."""
        self._idle_due = self._chain.busy
        if not self._idle_due:
            self._outputs.signal(Kind.IDLE)

    # Rows and signals --------------------------------------------------------------------------

    def _receive(self, channel: int, message: Message) -> None:
        kind = message.kind
        if kind is Kind.BATCH:
            assert message.batch is not None
            self._idle_due = False
            self._follow(self._progress.on_active(channel))
            self._work = (self._gate.port(channel), message.batch)
            self._process_slice()
        elif kind is Kind.WATERMARK:
            self._follow(self._progress.on_watermark(channel, message.value))
        elif kind is Kind.IDLE:
            self._follow(self._progress.on_idle(channel))
        elif kind is Kind.BARRIER:
            checkpoint_id, flags = barrier_flags(message.value)
            if not self._aligning_since_ns:
                self._aligning_since_ns = self._clock.monotonic_ns()
            self._align(self._alignment.on_barrier(channel, checkpoint_id, flags))
        elif kind is Kind.END:
            self._align(self._alignment.on_end(channel))
            self._follow(self._progress.on_end(channel))

    def _process_slice(self) -> None:
        assert self._work is not None
        port, batch = self._work
        rows = self._outputs.slice_rows(self._pace.slice_rows)
        if batch.num_rows <= rows + rows // 2:
            self._work = None
        else:
            self._work = (port, batch.slice(rows))
            batch = batch.slice(0, rows)
        self._setup.progress.set("process")
        started_ns = self._own_time_ns()
        self._chain.process(batch, port)
        self._measured(batch.num_rows, started_ns)
        limit = self._pace.new_limit()
        if limit is not None:
            self._gate.limit_rows(limit)

    def _own_time_ns(self) -> int:
        """Goes on while this thread works or sleeps, not while it waits for a processor."""
        return self._clock.monotonic_ns() - self._run_queue.waited_ns()

    def _measured(self, rows: int, started_ns: int) -> None:
        self._pace.measured(rows, self._own_time_ns() - started_ns)
        self._outputs.measured(rows)

    def _poll_source(self) -> bool:
        if self._source is None or self._ended or self._paused:
            return False
        if self._clock.monotonic_ns() < self._source_retry_ns:
            return False
        self._setup.progress.set("poll")
        rows = self._outputs.slice_rows(min(self._source_rows, self._pace.slice_rows))
        started_ns = self._own_time_ns()
        before = self._chain.contexts[0].counters["rows_out"]
        worked = self._source.poll(rows)
        if worked:
            self._idle_due = False
            read = self._chain.contexts[0].counters["rows_out"] - before
            self._measured(read, started_ns)
        else:
            self._source_retry_ns = self._clock.monotonic_ns() + int(SOURCE_RETRY_S * 1e9)
        if self._source.ended:
            self._finish(flush=True)
        return worked

    def _follow(self, commands: list[ProgressCommand]) -> None:
        for command in commands:
            if isinstance(command, Advance) and command.again:
                self._outputs.repeat_watermark()
            elif isinstance(command, Advance):
                self._idle_due = False
                self._chain.advance(command.watermark)
            elif isinstance(command, Idle):
                self._go_idle()
            else:
                self._finish(flush=True)

    def _finish(self, flush: bool) -> None:
        """All inputs have ended: flush, pass END on, live on to answer checkpoints (hazard 9)."""
        if self._ended:
            return
        if flush and not self._chain.end():
            self._ending = True
            return
        self._ended, self._ending = True, False
        self._outputs.signal(Kind.END)
        # The last word on the counters: a short job ends before the interval does.
        self._meter.send(self._progress.watermark, self._chain)
        self._link.send(InputEnded())
        if self._deferred is not None:
            deferred, self._deferred = self._deferred, None
            self._trigger(deferred)

    # Checkpoints -------------------------------------------------------------------------------

    def _align(self, commands: list[AlignmentCommand]) -> None:
        for command in commands:
            if isinstance(command, Block):
                self._gate.block(command.channel)
            elif isinstance(command, Unblock):
                self._gate.unblock(command.channel)
            elif isinstance(command, TakeSnapshot):
                self._snapshot(command.checkpoint_id, command.flags)
            elif isinstance(command, Declined):
                self._link.send(Decline(command.checkpoint_id, command.reason))

    def _snapshot(self, checkpoint_id: int, flags: BarrierFlag) -> None:
        self._setup.progress.set("snapshot")
        now_ns = self._clock.monotonic_ns()
        aligned_ms = (now_ns - self._aligning_since_ns) / 1e6 if self._aligning_since_ns else 0.0
        self._aligning_since_ns = 0
        failpoint("before-snapshot", self._name)
        sealed = self._chain.seal(checkpoint_id, BarrierFlag.FINAL in flags)
        failpoint("after-snapshot", self._name)
        failpoint("before-barrier-forward", self._name)
        if not self._ended:
            self._outputs.signal(Kind.BARRIER, barrier_word(checkpoint_id, flags))
            self._outputs.flush()
        failpoint("after-barrier-forward", self._name)
        if BarrierFlag.STOP in flags:
            self._paused = True
            # Nothing follows this cut: the summary counts what lies before it, to the row.
            self._meter.send(self._progress.watermark, self._chain)
        seen = {}
        if self._source is not None:
            seen[self._setup.vertex.operators[0].id] = self._source.seen_splits
        self._snapshotter.submit(
            SealedSubtask(
                checkpoint_id=checkpoint_id,
                operators=sealed,
                watermarks=self._watermarks(),
                watermark=self._progress.watermark,
                finished=self._ended,
                final=BarrierFlag.FINAL in flags,
                seen_splits=seen,
                owes_commit=bool(self._chain.pending_commits()),
                aligned_ms=aligned_ms,
                sealed_ms=(self._clock.monotonic_ns() - now_ns) / 1e6,
            )
        )

    def _watermarks(self) -> list[tuple[str, int]]:
        marks = self._chain.watermarks()
        if (self._ended or self._ending) and self._source is None:
            # What a changed program feeds it later must not all be late: not MAX.
            return [(operator_id, self._progress.watermark) for operator_id, _ in marks]
        return marks

    def _trigger(self, command: TriggerCheckpoint) -> None:
        if self._source is None and not (self._ended or self._ending):
            # What was sent before END still lies in the channels: the cut is behind it.
            self._deferred = command
            return
        flags = BarrierFlag(command.flags)
        self._align(self._alignment.on_trigger(command.checkpoint_id, flags))

    def _commit(self, checkpoint_id: int) -> None:
        self._setup.progress.set("commit")
        failpoint("before-commit", self._name)
        self._chain.completed(checkpoint_id)
        self._chain.commit(checkpoint_id)
        failpoint("after-commit", self._name)
        # Said also when nothing was owed: an acknowledgement sealed before the last commit may
        # have claimed a debt that is paid by now.
        if not any(n <= checkpoint_id for n in self._chain.pending_commits()):
            self._link.send(CommitDone(checkpoint_id))

    def _serve_commands(self) -> bool:
        served = False
        while (command := self._link.receive()) is not None:
            served = True
            if isinstance(command, TriggerCheckpoint):
                self._trigger(command)
            elif isinstance(command, AbortCheckpoint):
                self._chain.given_up(command.checkpoint_id)
                self._align(self._alignment.on_abort(command.checkpoint_id))
                self._aligning_since_ns = 0
            elif isinstance(command, Commit):
                self._commit(command.checkpoint_id)
            elif isinstance(command, AssignSplits):
                self._assign(command)
            elif isinstance(command, Drain) and self._source is not None:
                self._source.drain()
        return served

    def _assign(self, command: AssignSplits) -> None:
        assert self._source is not None
        splits: list[Split] = splits_of(command.splits)
        if splits:
            self._source.assign(splits)
        if command.no_more:
            self._source.no_more_splits()
        self._source_retry_ns = 0


def run_subtask(setup: SubtaskSetup) -> None:
    """What the subtask's process runs. Returns only when a neighbour is gone.

    An exception is reported as Failed before it is swallowed: the coordinator ends the attempt.
    """
    try:
        subtask = Subtask(setup)
        subtask.open()
        subtask.run()
    except ChannelAborted:
        # The neighbour's death is what the supervisor reports; this one only goes quietly.
        log.info("%s: a neighbour is gone", setup.deployment.key)
    except Exception as error:
        setup.link.send(Failed(failure_of(error)))
