"""What subtask processes run in the tests of the agent, in place of the engine's loop."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.signals import Kind
from penstock.runtime.messages import Decline, Drain, InputEnded, Started, TriggerCheckpoint
from penstock.runtime.setup import SubtaskSetup


def entry_of_run_id(setup: SubtaskSetup) -> None:
    """One agent serves all tests: the run's id says which entry this one wants."""
    globals()[setup.run_id](setup)


def tell(setup: SubtaskSetup, what: Any) -> None:
    """Say anything at all, in the one text field that events have."""
    setup.link.send(Decline(0, json.dumps(what)))


def echo(setup: SubtaskSetup) -> None:
    """Answer each trigger with its id, end with Drain."""
    setup.link.send(Started(setup.pid))
    while True:
        setup.doorbell.drain()
        setup.progress.set("idle")
        while (command := setup.link.receive()) is not None:
            if isinstance(command, TriggerCheckpoint):
                setup.link.send(Decline(command.checkpoint_id, str(setup.deployment.key)))
            elif isinstance(command, Drain):
                return
        setup.doorbell.wait(10.0)


def count_rings(setup: SubtaskSetup) -> None:
    """Tell after twenty rings; nothing but the agent's clock rings here."""
    for _ in range(20):
        while not setup.doorbell.wait(10.0):
            pass
    tell(setup, "rung")
    echo(setup)


def facts(setup: SubtaskSetup) -> None:
    """Tell what the process finds itself in, then echo."""
    with open("/proc/self/cmdline", "rb") as file:
        title = file.read().rstrip(b"\0").decode()
    tell(
        setup,
        {
            "title": title,
            "cwd": os.getcwd(),
            "path": sys.path,
            "threads": pa.cpu_count() + pa.io_thread_count(),
            "openblas": os.environ.get("OPENBLAS_NUM_THREADS"),
            "main": getattr(sys.modules["__main__"], "__file__", None),
            "draws": [random.random(), float(np.random.random())],
            "scratch": setup.scratch_dir,
            "scratch_exists": os.path.isdir(setup.scratch_dir),
            "job": setup.job,
            "inbound": [[e.edge.id, e.edge.port, e.source_index] for e in setup.receivers],
            "outbound": [[e.edge.id, e.target_index] for e in setup.senders],
            "switch_interval": sys.getswitchinterval(),
            "preloaded": "polars" in sys.modules,
        },
    )
    echo(setup)


def fail(setup: SubtaskSetup) -> None:
    raise ValueError(f"{setup.deployment.key} cannot go on")


def leave(setup: SubtaskSetup) -> None:
    sys.exit("enough")


def crash(setup: SubtaskSetup) -> None:
    """Die of what a broken C extension dies of."""
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


def crowd(setup: SubtaskSetup) -> None:
    """Say a great deal and die at once: all of it must arrive."""
    for number in range(2000):
        setup.link.send(Decline(number, "x" * 500))
    os.kill(os.getpid(), signal.SIGKILL)


def deaf(setup: SubtaskSetup) -> None:
    """Hold the interpreter for ever, as a C extension in a loop does: no thread of it turns."""
    setup.link.send(Started(setup.pid))
    sys.setswitchinterval(1000.0)
    while True:
        time.monotonic()


def call_program(setup: SubtaskSetup) -> None:
    """Let the program's first operator, whatever it is, say something."""
    processor: Any = setup.vertex.operators[0].processor
    tell(setup, processor.say())
    echo(setup)


ROWS = 300_000
BATCH_ROWS = 1000


def pipeline(setup: SubtaskSetup) -> None:
    """source: send numbers; middle: pass them on; sink: sum them, tell, and end."""
    setup.link.send(Started(setup.pid))
    total, ended = 0, 0
    if not setup.receivers:
        for start in range(0, ROWS, BATCH_ROWS):
            numbers = np.arange(start, start + BATCH_ROWS, dtype=np.int64)
            _offer(setup, pa.record_batch({"n": numbers}))
        _signal_end(setup)
    while ended < len(setup.receivers):
        taken = False
        for inbound in setup.receivers:
            message = inbound.receiver.poll()
            if message is None:
                continue
            taken = True
            if message.kind is Kind.END:
                ended += 1
            elif message.batch is not None and setup.senders:
                _offer(setup, message.batch)
            elif message.batch is not None:
                total += int(np.asarray(message.batch.column(0)).sum())
        if not taken:
            setup.doorbell.wait(1.0)
    if setup.receivers and setup.senders:
        _signal_end(setup)
    elif setup.receivers:
        tell(setup, total)
    setup.link.send(InputEnded())
    echo(setup)


def _offer(setup: SubtaskSetup, batch: pa.RecordBatch) -> None:
    for outbound in setup.senders:
        outbound.sender.offer(batch)
        while not outbound.sender.flush():
            setup.doorbell.wait(1.0)


def _signal_end(setup: SubtaskSetup) -> None:
    for outbound in setup.senders:
        outbound.sender.offer_signal(Kind.END)
        while not outbound.sender.flush():
            setup.doorbell.wait(1.0)


def stalled_pipeline(setup: SubtaskSetup) -> None:
    """source: send until it is held up, and on; sink: never read."""
    setup.link.send(Started(setup.pid))
    if setup.receivers:
        echo(setup)
    while True:
        _offer(setup, pa.record_batch({"n": np.zeros(BATCH_ROWS, np.int64)}))
