"""The main function of a subtask's process, from its fork to its `os._exit`.

Ties itself to the fork server, says hello, opens what it is handed, unpickles the program, and
gives the entry function (the subtask's loop, or a test's) a SubtaskSetup. When the agent hangs up
it leaves at once, whatever it is doing: nothing it could still say would be heard.
"""

from __future__ import annotations

import faulthandler
import importlib
import io
import mmap
import os
import socket
import sys

import cloudpickle
import msgspec
import pyarrow as pa
import setproctitle
from numpy.random import seed as reseed_numpy

from penstock.dataflow.plan import Edge, Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.clock import SystemClock
from penstock.elements.errors import EngineError

from .control import ControlLink
from .doorbell import Doorbell
from .failures import failure_of
from .fork_server import named_function
from .framing import frame
from .handover import (
    ATTACHED,
    LIVENESS_DESCRIPTOR,
    PLAN_DESCRIPTOR,
    PROGRESS_DESCRIPTOR,
    Handover,
    receive_handover,
    say_hello,
)
from .lifeline import die_with_parent, ignore_interrupts, raise_open_files_limit
from .messages import Failed, encode
from .progress_word import ProgressPage, page_bytes
from .segment import Segment
from .setup import Inbound, Outbound, SubtaskSetup
from .slab_receiver import SlabReceiver
from .slab_sender import SlabSender

SWITCH_INTERVAL_S = 0.0005
"""How long the loop may wait for the GIL while a source's reader thread computes (44c)."""
ENDED = 0
FAILED = 1
HUNG_UP = 3
"""Exit codes; the controller has heard the reason already, or is gone."""


class Attached:
    """What the agent named or passed, opened; needs no user code."""

    def __init__(self, told: Handover, descriptors: list[int]) -> None:
        self.told = told
        self.doorbell = Doorbell.open(told.doorbell)
        ends = told.inbound + told.outbound
        self.bells = {name: Doorbell.open(name) for name in {end.peer_doorbell for end in ends}}
        self.segments = {
            place: Segment.attach(descriptors[place]) for place in {end.segment for end in ends}
        }
        size = page_bytes(told.subtasks)
        self.progress = ProgressPage(descriptors[PROGRESS_DESCRIPTOR], size).word(told.ordinal)
        self.progress.set("starting")
        self.plan = mmap.mmap(descriptors[PLAN_DESCRIPTOR], 0, prot=mmap.PROT_READ)
        # Held, never used: the agent's parent sees by its closing that we are gone.
        self.liveness = descriptors[LIVENESS_DESCRIPTOR]


def main(control: int, fork_server_pid: int) -> None:
    """Never returns. `control` is this process's end of the control socket."""
    code = FAILED
    try:
        code = _live(socket.socket(fileno=control), fork_server_pid)
    except BaseException:
        # Only what went wrong before or in reporting: the agent sees the exit code.
        sys.excepthook(*sys.exc_info())
    finally:
        # No finalisers: views into shared memory may live anywhere (hazard 41).
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass
        os._exit(code)


def _live(sock: socket.socket, fork_server_pid: int) -> int:
    die_with_parent(fork_server_pid)
    ignore_interrupts()
    raise_open_files_limit()
    say_hello(sock)
    received = receive_handover(sock)
    if received is None:
        return HUNG_UP
    told, descriptors = received
    setproctitle.setproctitle(f"penstock: {told.job} {told.deployment.title}")
    faulthandler.enable()
    try:
        attached = Attached(told, descriptors)
        sock.sendall(frame(ATTACHED))
    except BaseException as error:
        sock.sendall(frame(encode(Failed(failure_of(error)))))
        return FAILED
    link = ControlLink(sock, attached.doorbell.ring, lambda: os._exit(HUNG_UP))
    try:
        _settle(told)
        setup = _set_up(attached, link)
        named_function(told.entry)(setup)
    except SystemExit as error:
        left = EngineError(f"{told.deployment.title}: user code called sys.exit({error.code!r})")
        link.send(Failed(failure_of(left)))
        return FAILED
    except BaseException as error:
        link.send(Failed(failure_of(error)))
        return FAILED
    return ENDED


def _settle(told: Handover) -> None:
    """Make this process a place like the user's, for one thread of work."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Many subtasks write to one log: whole lines, and none lost when this one is killed.
        sys.stdout.reconfigure(line_buffering=True)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    # The legacy generator was forked with the server's state: all subtasks would draw alike.
    reseed_numpy()
    sys.argv = [told.deployment.title]
    if told.python_path:
        # Ours stay behind the user's, so that Penstock itself is always found.
        behind = [entry for entry in sys.path if entry not in told.python_path]
        sys.path[:] = told.python_path + behind
        importlib.invalidate_caches()
    if told.cwd:
        try:
            os.chdir(told.cwd)
        except OSError as error:
            raise EngineError(
                f"the working directory of the program, {told.cwd}, cannot be entered "
                f"({error.strerror}): start the job from a directory that exists"
            ) from error


def _set_up(attached: Attached, link: ControlLink) -> SubtaskSetup:
    told = attached.told
    plan: Plan = cloudpickle.loads(memoryview(attached.plan))
    edges = {edge.id: edge for edge in plan.edges}
    key = told.deployment.key
    return SubtaskSetup(
        job=told.job,
        generation=told.generation,
        attempt=told.attempt,
        run_id=told.run_id,
        store_root=told.store_root,
        settings=msgspec.json.decode(told.settings, type=JobSettings),
        deployment=told.deployment,
        plan=plan,
        vertex=plan.vertex(key.vertex),
        receivers=_receivers(attached, edges),
        senders=_senders(attached, edges),
        doorbell=attached.doorbell,
        link=link,
        scratch_dir=told.scratch_dir,
        progress=attached.progress,
        clock=SystemClock(),
        pid=os.getpid(),
    )


def _receivers(attached: Attached, edges: dict[str, Edge]) -> list[Inbound]:
    inbound = [
        Inbound(
            edges[end.spec.edge],
            end.spec.source.index,
            SlabReceiver(
                attached.segments[end.segment],
                end.region,
                edges[end.spec.edge].schema,
                receiver_bell=attached.doorbell,
                sender_bell=attached.bells[end.peer_doorbell],
            ),
        )
        for end in attached.told.inbound
    ]
    return sorted(inbound, key=lambda each: (each.edge.port, each.edge.id, each.source_index))


def _senders(attached: Attached, edges: dict[str, Edge]) -> list[Outbound]:
    outbound = [
        Outbound(
            edges[end.spec.edge],
            end.spec.target.index,
            SlabSender(
                attached.segments[end.segment],
                end.region,
                edges[end.spec.edge].schema,
                receiver_bell=attached.bells[end.peer_doorbell],
                sender_bell=attached.doorbell,
            ),
        )
        for end in attached.told.outbound
    ]
    return sorted(outbound, key=lambda each: (each.edge.id, each.target_index))
