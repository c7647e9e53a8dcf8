"""A client of the controller: one request after the other over one Link.

Each method returns what the controller says, or raises the error it names. A link that ends raises
Unreachable and is dialled again by the next call, so that a caller may simply ask again: nothing
is repeated by itself, since a submission that was heard must not be made twice.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TypeVar

import msgspec

from penstock import __version__
from penstock.dataflow.launcher import StopMode
from penstock.dataflow.settings import JobSettings
from penstock.elements import errors
from penstock.elements.errors import (
    EngineError,
    PenstockError,
    ProtocolError,
    SettingsError,
    Unreachable,
)
from penstock.runtime.net.credentials import Credentials
from penstock.runtime.net.streams import ConnectionLost

from .bundle import Bundle, python_minor
from .client_messages import (
    BundleHeld,
    ClientHello,
    Failure,
    FromClient,
    JobInfo,
    JobList,
    ListJobs,
    ListNodes,
    LogPart,
    LogParts,
    NodeInfo,
    NodeList,
    PutBundle,
    ReadLog,
    Scale,
    ServerHello,
    Stop,
    Submit,
    ToClient,
    decode_to_client,
    encode,
)
from .link import Link, dial
from .node_messages import CHUNK_BYTES, PROTOCOL_VERSION

CONNECT_S = 5.0
REPLY_S = 30.0
"""One answer; those that need nodes are answered sooner with what could be had."""
LOG_BYTES_DEFAULT = 256 * 1024

Reply = TypeVar("Reply", BundleHeld, JobList, NodeList, LogParts)


class Client:
    """One connection, made by the first call. Calls from several threads wait for each other."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.address = address
        self._credentials = credentials
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._heard: queue.Queue[ToClient | str] = queue.Queue()
        self._request = 0
        self.python = ""
        """The minor version of the cluster, such as "3.11"; known after the first call."""

    def submit(
        self,
        job: str,
        bundle: Bundle,
        settings: JobSettings,
        *,
        placement: str = "pack",
        environment: Mapping[str, str] | None = None,
    ) -> JobInfo:
        """Send the bundle, if the controller has not got it, and have it run."""
        with self._lock:
            self._connect()
            mine = python_minor()
            if self.python != mine:
                raise SettingsError(
                    f"the cluster at {self.address} runs Python {self.python}, this is Python "
                    f"{mine}: a bundle holds byte code of one version; submit with that of the "
                    "cluster"
                )
            self._put(bundle)
            listed = self._ask(
                lambda number: Submit(
                    number,
                    job,
                    bundle.sha256,
                    msgspec.json.encode(settings),
                    placement,
                    dict(environment or {}),
                ),
                JobList,
            )
        return _one(listed, job)

    def jobs(self, job: str = "", *, ended: bool = False) -> list[JobInfo]:
        """Jobs, newest last; those that are over too if `ended`."""
        with self._lock:
            return self._ask(lambda number: ListJobs(number, job, ended), JobList).jobs

    def nodes(self) -> list[NodeInfo]:
        """Members, and nodes lost of late."""
        with self._lock:
            return self._ask(ListNodes, NodeList).nodes

    def stop(self, job: str, mode: StopMode = "checkpoint") -> JobInfo:
        """Have the job end; it is still ending when this returns."""
        with self._lock:
            return _one(self._ask(lambda number: Stop(number, job, mode), JobList), job)

    def scale(self, job: str, parallelism: Mapping[str, int]) -> JobInfo:
        """Have the job go on at other widths, by operator; "" is its default parallelism."""
        with self._lock:
            widths = dict(parallelism)
            return _one(self._ask(lambda number: Scale(number, job, widths), JobList), job)

    def logs(self, job: str, bytes_max: int = LOG_BYTES_DEFAULT) -> list[LogPart]:
        """The last of what the job's coordinator and its processes on each node have written."""
        with self._lock:
            return self._ask(lambda number: ReadLog(number, job, bytes_max), LogParts).parts

    def close(self) -> None:
        """Hang up; the next call would dial again."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Inside -----------------------------------------------------------------------------------

    def _put(self, bundle: Bundle) -> None:
        held = 0
        while True:
            start = held
            data = bundle.data[start : start + CHUNK_BYTES]
            held = self._ask(
                lambda number: PutBundle(
                    number, bundle.sha256, bundle.size, start, data  # noqa: B023
                ),
                BundleHeld,
            ).bytes  # fmt: skip
            if held >= bundle.size:
                return
            if held <= start and start:
                raise ProtocolError(f"the controller holds {held} bytes of a bundle for good")

    def _ask(self, make: Callable[[int], FromClient], kind: type[Reply]) -> Reply:
        self._connect()
        assert self._link is not None
        self._request += 1
        number = self._request
        self._link.send(encode(make(number)))
        while True:
            answer = self._next(REPLY_S)
            # Others belong to a request that an interrupt cut short.
            if getattr(answer, "request", 0) == number:
                break
        if isinstance(answer, Failure):
            raise _error(answer)
        if not isinstance(answer, kind):
            raise ProtocolError(f"the controller answered with {type(answer).__name__}")
        return answer

    def _connect(self) -> None:
        if self._link is not None:
            return
        heard: queue.Queue[ToClient | str] = queue.Queue()

        def on_body(link: Link, body: bytes) -> None:
            try:
                heard.put(decode_to_client(body))
            except msgspec.DecodeError as error:
                heard.put(f"it says what no controller says: {error}")
                link.close()

        def on_end(link: Link, reason: str) -> None:
            heard.put(reason)

        self._heard = heard
        try:
            self._link = dial(self.address, self._credentials, on_body, on_end, CONNECT_S)
        except ConnectionLost as error:
            raise Unreachable(f"the controller: {error}") from error
        self._link.send(encode(ClientHello(PROTOCOL_VERSION, __version__, python_minor())))
        hello = self._next(REPLY_S)
        if isinstance(hello, Failure):
            self.close()
            raise _error(hello)
        if not isinstance(hello, ServerHello):
            self.close()
            raise ProtocolError(f"{self.address} does not speak as a controller does")
        if hello.protocol != PROTOCOL_VERSION:
            self.close()
            raise SettingsError(
                f"the controller at {self.address} is Penstock {hello.penstock}, this is "
                f"{__version__}: they do not understand each other; use that of the cluster"
            )
        self.python = hello.python

    def _next(self, timeout_s: float) -> ToClient:
        try:
            said = self._heard.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise Unreachable(
                f"the controller at {self.address} did not answer within {timeout_s:g} s"
            ) from None
        if isinstance(said, str):
            self.close()
            raise Unreachable(f"the controller at {self.address} hung up: {said}")
        return said


def _one(listed: JobList, job: str) -> JobInfo:
    if not listed.jobs:
        raise EngineError(f"the controller says nothing of job {job!r}")
    return listed.jobs[-1]


def _error(failure: Failure) -> PenstockError:
    """The error that the controller names, if it is one that a text alone makes."""
    kind = getattr(errors, failure.kind, EngineError)
    if not (isinstance(kind, type) and issubclass(kind, PenstockError)):
        kind = EngineError
    try:
        return kind(failure.text)
    except TypeError:
        return EngineError(failure.text)
