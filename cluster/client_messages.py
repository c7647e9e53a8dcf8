"""What clients and the controller say to each other: msgpack in the frames of a Link.

A client says ClientHello first, then requests, each with a number of its own that the reply names.
"""

from __future__ import annotations

import msgspec

from .node_messages import Join

# Client to controller -----------------------------------------------------------------------------


class ClientHello(msgspec.Struct, frozen=True, tag=True):
    """The first word of a client."""

    protocol: int
    penstock: str
    python: str


class PutBundle(msgspec.Struct, frozen=True, tag=True):
    """A piece of a bundle, in order. Answered by BundleHeld with what is held so far; a bundle
    that is held already is answered with its full size at once."""

    request: int
    sha256: str
    size: int
    offset: int
    data: bytes


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Run a bundle. Answered by JobList of the one job."""

    request: int
    job: str
    bundle: str
    settings: bytes
    placement: str = "pack"
    """pack: as few nodes as possible; spread: as many."""
    environment: dict[str, str] = {}


class ListJobs(msgspec.Struct, frozen=True, tag=True):
    """`job` names one, "" all; `ended` includes those that are over."""

    request: int
    job: str = ""
    ended: bool = False


class ListNodes(msgspec.Struct, frozen=True, tag=True):
    """All members and those lost of late."""

    request: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Answered by JobList at once; the job ends when it ends."""

    request: int
    job: str
    mode: str


class Scale(msgspec.Struct, frozen=True, tag=True):
    """Stop with a checkpoint, go on with these widths. Answered by JobList at once. The name ""
    stands for the job's default parallelism."""

    request: int
    job: str
    parallelism: dict[str, int]


class ReadLog(msgspec.Struct, frozen=True, tag=True):
    """The job's coordinator and its processes on all nodes, the last `bytes_max` of each."""

    request: int
    job: str
    bytes_max: int


FromClient = PutBundle | Submit | ListJobs | ListNodes | Stop | Scale | ReadLog | ClientHello

# Controller to client -----------------------------------------------------------------------------


class ServerHello(msgspec.Struct, frozen=True, tag=True):
    """The answer to ClientHello."""

    protocol: int
    penstock: str
    python: str
    term: int


class Failure(msgspec.Struct, frozen=True, tag=True):
    """The request cannot be met; `kind` is a class of elements/errors.py."""

    request: int
    kind: str
    text: str


class BundleHeld(msgspec.Struct, frozen=True, tag=True):
    """Bytes of the bundle that the controller has, all of them checked against its name."""

    request: int
    bytes: int


class JobInfo(msgspec.Struct, frozen=True):
    """One submission."""

    id: int
    job: str
    state: str
    """waiting, starting, running, restarting, stopping, rescaling, then an outcome."""
    slots: int
    nodes: list[str]
    launch: int
    submitted_ns: int
    ended_ns: int
    note: str
    """Why it waits, restarts or failed."""
    status: bytes
    """dataflow's JobStatus as JSON, the last one known; empty before the first."""
    summary: bytes


class JobList(msgspec.Struct, frozen=True, tag=True):
    """Newest last."""

    request: int
    jobs: list[JobInfo]


class NodeInfo(msgspec.Struct, frozen=True):
    """One node. `state`: member, draining, lost."""

    name: str
    state: str
    address: str
    slots: int
    used: int
    labels: dict[str, str]
    memory_bytes: int
    pid: int
    jobs: list[str]
    note: str


class NodeList(msgspec.Struct, frozen=True, tag=True):
    """By name."""

    request: int
    nodes: list[NodeInfo]


class LogPart(msgspec.Struct, frozen=True):
    """`where` is "coordinator" or a node's name."""

    where: str
    text: str


class LogParts(msgspec.Struct, frozen=True, tag=True):
    """What could be had in time; a node that did not answer says so in its text."""

    request: int
    parts: list[LogPart]


ToClient = ServerHello | Failure | BundleHeld | JobList | NodeList | LogParts

encode = msgspec.msgpack.Encoder().encode
"""The body of a frame."""
decode_from_client = msgspec.msgpack.Decoder(FromClient).decode
decode_to_client = msgspec.msgpack.Decoder(ToClient).decode
decode_first = msgspec.msgpack.Decoder(Join | ClientHello).decode
"""What any caller of the controller may say first. All raise msgspec.DecodeError otherwise."""
