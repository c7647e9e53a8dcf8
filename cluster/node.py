"""The node agent: joins the controller, keeps its lease, and runs the agents of jobs.

One thread takes events from one queue. Its rule: **joining says that nothing runs.** Whatever ends
a membership — the connection broke, the lease lapsed, also while this process was stopped — all
job agents are killed, their end is waited for, and only then it joins anew, as a new incarnation.
It unpickles nothing and runs no user code; when it dies, so does all it runs (lifeline.py).
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from penstock import __version__
from penstock.elements.clock import Clock
from penstock.elements.errors import PenstockError
from penstock.runtime.messages import UseNetwork
from penstock.runtime.net.credentials import Credentials

from .job_agents import JobAgents, Said
from .link import Link, dial
from .node_bundles import BundleSettled, NodeBundles
from .node_directory import NodeDirectory
from .node_lease import LeaseCommand, NodeLease, SendHeartbeat
from .node_logs import tail
from .node_messages import (
    CHUNK_BYTES,
    PROTOCOL_VERSION,
    BundleChunk,
    CloseJob,
    Draining,
    FetchLog,
    FromNode,
    Heartbeat,
    HeartbeatReply,
    Join,
    Leave,
    LogText,
    NodeName,
    OpenJob,
    Refused,
    ToJobAgent,
    ToNode,
    Welcome,
    decode_to_node,
    encode,
)

log = logging.getLogger("penstock.node")

EXIT_LEFT = 0
EXIT_REFUSED = 2
DIAL_S = 2.0
WELCOME_NS = 5_000_000_000
"""For the controller to answer Join."""
RETRY_NS_MIN = 100_000_000
RETRY_NS_MAX = 2_000_000_000
LOOK_S = 1.0
"""The loop looks at the clock this often at least: what it waits by stops with the machine."""


@dataclass(frozen=True)
class NodeOptions:
    """What the command line says."""

    controller: str
    name: str
    slots: int
    labels: dict[str, str]
    memory_bytes: int
    data_host: str
    """"": the local address of the connection to the controller."""
    drain_timeout_s: float


@dataclass(frozen=True)
class _Dialled:
    link: Link


@dataclass(frozen=True)
class _DialFailed:
    reason: str


@dataclass(frozen=True)
class _Heard:
    link: Link
    body: bytes


@dataclass(frozen=True)
class _Ended:
    link: Link
    reason: str


@dataclass(frozen=True)
class _AskedToLeave:
    """SIGTERM or Ctrl-C."""


_Event = _Dialled | _DialFailed | _Heard | _Ended | _AskedToLeave | Said | BundleSettled


@dataclass
class _Membership:
    """What lasts as long as one connection."""

    link: Link
    joined_ns: int
    lease: NodeLease | None = None
    """None until Welcome."""


class Node:
    """`run` serves until it has left; `ask_to_leave` may be called from a signal handler."""

    def __init__(
        self,
        options: NodeOptions,
        credentials: Credentials,
        directory: NodeDirectory,
        clock: Clock,
    ) -> None:
        self._options = options
        self._credentials = credentials
        self._directory = directory
        self._clock = clock
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        post = self._events.put
        self._bundles = NodeBundles(directory.bundles, self._say, post)
        self._agents = JobAgents(directory, self._bundles, self._say, post)
        self._membership: _Membership | None = None
        self._term = 0
        self._dialling = False
        self._dial_ns = 0
        self._retry_ns = RETRY_NS_MIN
        self._said_why = ""
        self._draining = False
        self._leave_by_ns: int | None = None
        self._exit_code: int | None = None
        """Once set, everything is killed, and then `run` returns it."""
        self._orders: dict[type[ToNode], Callable[..., None]] = {
            OpenJob: self._agents.open,
            ToJobAgent: self._agents.tell,
            CloseJob: lambda message: self._agents.close(message.job, message.launch),
            BundleChunk: self._bundles.on_chunk,
            FetchLog: self._on_fetch_log,
            Leave: lambda _: self._leave(EXIT_LEFT),
        }

    def ask_to_leave(self) -> None:
        """Drain; asked again, leave at once."""
        self._events.put(_AskedToLeave())

    def run(self) -> int:
        """Serve until asked to leave, told to, or refused for good; returns an exit code."""
        while self._exit_code is None or not self._agents.empty:
            event = self._next_event()
            # Time first: if the lease has lapsed meanwhile, nothing said before is obeyed.
            self._on_time()
            if event is not None:
                self._take(event)
        if self._membership is not None:
            self._membership.link.close("the node leaves")
        self._agents.end()
        if self._membership is not None:
            self._membership.link.wait_sent()
        return self._exit_code

    # The loop -----------------------------------------------------------------------------------

    def _next_event(self) -> _Event | None:
        now_ns = self._clock.boottime_ns()
        due_ns = min(self._deadlines(), default=now_ns + int(LOOK_S * 1e9))
        try:
            return self._events.get(timeout=min(LOOK_S, max(0, due_ns - now_ns) / 1e9))
        except queue.Empty:
            return None

    def _deadlines(self) -> list[int]:
        deadlines: list[int] = []
        if self._membership is None:
            if not self._dialling and self._agents.empty:
                deadlines.append(self._dial_ns)
        elif self._membership.lease is None:
            deadlines.append(self._membership.joined_ns + WELCOME_NS)
        else:
            deadlines.append(self._membership.lease.deadline_ns)
        if self._leave_by_ns is not None:
            deadlines.append(self._leave_by_ns)
        return deadlines

    def _on_time(self) -> None:
        now_ns = self._clock.boottime_ns()
        member = self._membership
        if member is None:
            ready = not self._dialling and self._agents.empty and self._exit_code is None
            if ready and now_ns >= self._dial_ns:
                self._dial()
        elif member.lease is not None:
            self._obey_lease(member.lease.on_time(now_ns))
        elif now_ns >= member.joined_ns + WELCOME_NS:
            self._lose("the controller did not answer")
        if self._leave_by_ns is not None and now_ns >= self._leave_by_ns:
            log.warning("not drained in %g s; leaving now", self._options.drain_timeout_s)
            self._leave(EXIT_LEFT)
        if self._exit_code is None:
            self._agents.on_time(now_ns)

    def _obey_lease(self, commands: list[LeaseCommand]) -> None:
        for command in commands:
            if isinstance(command, SendHeartbeat):
                self._say(Heartbeat(command.sequence))
            else:
                self._lose("the lease has lapsed without word from the controller")

    def _take(self, event: _Event) -> None:
        if isinstance(event, Said):
            self._agents.on_said(event)
        elif isinstance(event, BundleSettled):
            self._agents.on_bundle(event)
        elif isinstance(event, _AskedToLeave):
            self._drain()
        elif isinstance(event, _Dialled):
            self._dialling = False
            self._join(event.link)
        elif isinstance(event, _DialFailed):
            self._dialling = False
            self._retry(event.reason)
        elif self._membership is None or event.link is not self._membership.link:
            # The last words of a membership that is over.
            return
        elif isinstance(event, _Ended):
            self._lose(event.reason)
        else:
            self._on_body(self._membership, event.body)

    # Joining ------------------------------------------------------------------------------------

    def _dial(self) -> None:
        self._dialling = True
        threading.Thread(target=self._dial_in_thread, name="dial", daemon=True).start()

    def _dial_in_thread(self) -> None:
        post = self._events.put
        try:
            link = dial(
                self._options.controller,
                self._credentials,
                lambda link, body: post(_Heard(link, body)),
                lambda link, reason: post(_Ended(link, reason)),
                DIAL_S,
            )
        except PenstockError as error:
            post(_DialFailed(str(error)))
        except Exception as error:
            # Whatever it was, the loop must know that this call is over.
            post(_DialFailed(repr(error)))
            raise
        else:
            post(_Dialled(link))

    def _join(self, link: Link) -> None:
        if self._exit_code is not None:
            link.close()
            return
        assert self._agents.empty
        name = NodeName(self._options.name, uuid.uuid4().hex)
        data_host = self._options.data_host or link.local_host
        tls = self._credentials.tls
        self._agents.use_network(UseNetwork(data_host, self._credentials.secret, tls))
        self._membership = _Membership(link, self._clock.boottime_ns())
        join = Join(
            name=name,
            slots=self._options.slots,
            labels=self._options.labels,
            memory_bytes=self._options.memory_bytes,
            data_host=data_host,
            pid=os.getpid(),
            protocol=PROTOCOL_VERSION,
            penstock=__version__,
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
        )
        self._say(join)
        if link.over:
            # Its end was told before we knew of it.
            self._lose("the controller hung up")

    def _retry(self, reason: str) -> None:
        """Dial again after a while, saying why once."""
        if reason != self._said_why:
            log.warning("no member: %s; trying on", reason)
        self._said_why = reason
        self._dial_ns = self._clock.boottime_ns() + self._retry_ns
        self._retry_ns = min(2 * self._retry_ns, RETRY_NS_MAX)

    def _on_welcome(self, member: _Membership, welcome: Welcome) -> None:
        if welcome.term < self._term:
            self._lose(
                f"a controller of term {welcome.term} answers, but {self._term} was seen: an older "
                "one is back, or its data directory is a new one; then start this agent again"
            )
            return
        self._term = welcome.term
        lease_ns, heartbeat_ns = welcome.lease_ms * 1_000_000, welcome.heartbeat_ms * 1_000_000
        member.lease = NodeLease(member.joined_ns, lease_ns, heartbeat_ns)
        self._retry_ns, self._said_why = RETRY_NS_MIN, ""
        log.info(
            "%s: member of %s with %d slots (term %d)",
            self._options.name, self._options.controller, self._options.slots, welcome.term,
        )  # fmt: skip

    def _on_refused(self, refused: Refused) -> None:
        if refused.again:
            self._lose(refused.reason)
        else:
            log.error("%s refuses this node: %s", self._options.controller, refused.reason)
            self._leave(EXIT_REFUSED)

    # Ending -------------------------------------------------------------------------------------

    def _lose(self, reason: str) -> None:
        """The membership is over: nothing of it may go on."""
        member, self._membership = self._membership, None
        assert member is not None
        member.link.cut(reason)
        self._bundles.forget_fetches()
        self._agents.kill_all()
        self._retry(f"the link to {self._options.controller} is over: {reason}")
        if self._draining and self._exit_code is None:
            self._leave(EXIT_LEFT)

    def _drain(self) -> None:
        member = self._membership
        if self._draining or member is None or member.lease is None:
            self._leave(EXIT_LEFT)
            return
        log.info("draining: this node leaves when its jobs have moved away")
        self._draining = True
        now_ns = self._clock.boottime_ns()
        self._leave_by_ns = now_ns + int(self._options.drain_timeout_s * 1e9)
        self._say(Draining("asked to leave"))

    def _leave(self, code: int) -> None:
        """Kill everything and go. The connection lives until then, to tell what is gone."""
        if self._exit_code is None:
            self._exit_code = code
        self._leave_by_ns = None
        self._agents.kill_all()

    # From the controller ------------------------------------------------------------------------

    def _say(self, message: FromNode) -> None:
        if self._membership is not None:
            self._membership.link.send(encode(message))

    def _on_body(self, member: _Membership, body: bytes) -> None:
        try:
            message = decode_to_node(body)
            if member.lease is None:
                self._on_answer(member, message)
            else:
                self._on_order(member.lease, message)
        except (msgspec.DecodeError, PenstockError) as error:
            self._lose(f"the controller says what cannot be understood: {error}")

    def _on_answer(self, member: _Membership, message: ToNode) -> None:
        if isinstance(message, Welcome):
            self._on_welcome(member, message)
        elif isinstance(message, Refused):
            self._on_refused(message)
        else:
            self._lose(f"the controller answers Join with {type(message).__name__}")

    def _on_order(self, lease: NodeLease, message: ToNode) -> None:
        if isinstance(message, HeartbeatReply):
            self._obey_lease(lease.on_reply(message.sequence, self._clock.boottime_ns()))
        elif self._exit_code is not None:
            # Everything is being killed already; nothing new begins.
            return
        elif order := self._orders.get(type(message)):
            order(message)
        else:
            self._lose(f"the controller says {type(message).__name__} to a member")

    def _on_fetch_log(self, message: FetchLog) -> None:
        size = max(0, min(message.bytes_max, CHUNK_BYTES))
        self._say(LogText(message.request, tail(self._directory.job_logs(message.job), size)))
