"""What controller and node agents say to each other: msgpack in the frames of a Link.

Each direction is a union of its own, so a peer can say only what its role allows. A node is named
by (node, incarnation): an incarnation is made anew at each joining, and what names an older one is
dropped. A job's coordinator is named by (job, launch): launches count up for ever. Program code
travels as bundles and is unpickled in job processes and subtasks only.
"""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 1
CHUNK_BYTES = 4 * 1024 * 1024
"""Bundles and logs travel in pieces of at most this size."""
BUNDLE_BYTES_MAX = 512 * 1024 * 1024
LABELS_MAX = 64
SLOTS_MAX = 4096


class NodeName(msgspec.Struct, frozen=True, order=True):
    """One life of one node agent."""

    node: str
    incarnation: str

    def __str__(self) -> str:
        return self.node


# Node agent to controller -----------------------------------------------------------------------


class Join(msgspec.Struct, frozen=True, tag=True):
    """The first word of a node agent. Nothing of what it ran before still runs on its node."""

    name: NodeName
    slots: int
    labels: dict[str, str]
    memory_bytes: int
    data_host: str
    """Where its net processes listen: an address that all other nodes can reach."""
    pid: int
    protocol: int
    penstock: str
    """Version of the package."""
    python: str
    """Such as "3.11": bundles hold byte code of one minor version."""


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """Asks for the lease to be renewed."""

    sequence: int


class FromJobAgent(msgspec.Struct, frozen=True, tag=True):
    """`body` is a ToController message of runtime/messages.py."""

    job: str
    launch: int
    body: bytes


class JobAgentGone(msgspec.Struct, frozen=True, tag=True):
    """The job's agent on this node and every process below it are gone. Also the answer to
    CloseJob for a job that has no agent here."""

    job: str
    launch: int
    cause: str


class NeedBundle(msgspec.Struct, frozen=True, tag=True):
    """Send the bundle's bytes from `offset`, one chunk."""

    sha256: str
    offset: int


class Draining(msgspec.Struct, frozen=True, tag=True):
    """SIGTERM: give this node nothing new, move its jobs away; it leaves when told or in time."""

    reason: str


class LogText(msgspec.Struct, frozen=True, tag=True):
    """The answer to FetchLog: the last bytes of the log, whole lines of UTF-8."""

    request: int
    text: str


FromNode = Join | Heartbeat | FromJobAgent | JobAgentGone | NeedBundle | Draining | LogText

# Controller to node agent -----------------------------------------------------------------------


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The node is a member. `term` counts the controller's starts: an agent obeys no lower one
    than the highest it has seen."""

    term: int
    lease_ms: int
    heartbeat_ms: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It cannot join; `again` says whether trying later may help."""

    reason: str
    again: bool


class HeartbeatReply(msgspec.Struct, frozen=True, tag=True):
    """The lease runs on from the moment this heartbeat was sent."""

    sequence: int


class OpenJob(msgspec.Struct, frozen=True, tag=True):
    """Have an agent for this job (runtime's AgentHandle); idempotent. Its AgentReady follows.

    The node fetches the bundle if it has not got it, and makes its modules importable."""

    job: str
    launch: int
    bundle: str
    """sha256 of the bundle."""
    bundle_bytes: int
    environment: dict[str, str]


class ToJobAgent(msgspec.Struct, frozen=True, tag=True):
    """`body` is a ToAgent message of runtime/messages.py; of a Deploy the node replaces
    python_path and cwd by its own."""

    job: str
    launch: int
    body: bytes


class CloseJob(msgspec.Struct, frozen=True, tag=True):
    """Kill the job's agent and all below it, then answer JobAgentGone."""

    job: str
    launch: int


class BundleChunk(msgspec.Struct, frozen=True, tag=True):
    """The answer to NeedBundle. Empty `data` beyond the end, or if there is no such bundle."""

    sha256: str
    offset: int
    data: bytes


class FetchLog(msgspec.Struct, frozen=True, tag=True):
    """What the job's processes on this node have written, the last `bytes_max`."""

    request: int
    job: str
    bytes_max: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """A draining node may go: nothing runs there any more."""


ToNode = (
    Welcome | Refused | HeartbeatReply | OpenJob | ToJobAgent | CloseJob | BundleChunk | FetchLog
    | Leave
)  # fmt: skip

encode = msgspec.msgpack.Encoder().encode
"""The body of a frame."""
decode_from_node = msgspec.msgpack.Decoder(FromNode).decode
decode_to_node = msgspec.msgpack.Decoder(ToNode).decode
"""Both raise msgspec.DecodeError for what the other side never says."""
