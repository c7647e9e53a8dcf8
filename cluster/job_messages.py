"""What controller and job processes say to each other: frames on a socket pair.

The socket pair is made before the job process is exec'd, so both ends are the controller's own.
"""

from __future__ import annotations

import msgspec

from .node_messages import NodeName

# Controller to job process (a unix socket made before it was exec'd) ------------------------------


class LaunchJob(msgspec.Struct, frozen=True, tag=True):
    """The first word: what to run."""

    job: str
    launch: int
    bundle: str
    """Path of the bundle on this machine."""
    settings: bytes
    """JobSettings as JSON; `state_dir` is filled in."""
    parallelism: dict[str, int]
    """By operator name, over what the program says (`penstock scale`)."""
    submission: str = ""
    """Names this submission among all that there ever were, the same in each of its launches: of
    `settings.fresh` the job process makes sure that it happens once per submission."""


class GrantedNode(msgspec.Struct, frozen=True):
    """Room on one node. `slots` may be more than it has where slots are shared."""

    name: NodeName
    host: str
    slots: int


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The answer to NeedSlots, sooner or later. Replaces what was granted before."""

    grant: int
    """The NeedSlots it answers."""
    nodes: list[GrantedNode]
    note: str = ""
    """What the user should know, such as "6 slots on 4, since a node was lost"."""


class Waiting(msgspec.Struct, frozen=True, tag=True):
    """There is not room enough yet; `reason` says what is missing."""

    grant: int
    reason: str


class Told(msgspec.Struct, frozen=True, tag=True):
    """The job's agent on this node says something: a ToController message."""

    name: NodeName
    body: bytes


class AgentGone(msgspec.Struct, frozen=True, tag=True):
    """The job's agent on this node, and all below it, are gone; the node itself may live."""

    name: NodeName
    cause: str


class NodeLost(msgspec.Struct, frozen=True, tag=True):
    """Contact is lost; its processes may still run until NodeGone."""

    name: NodeName
    cause: str


class NodeGone(msgspec.Struct, frozen=True, tag=True):
    """Its lease and a margin are over, or it has joined anew: nothing of it runs any more."""

    name: NodeName


class StopJob(msgspec.Struct, frozen=True, tag=True):
    """The user wants the job to end; `mode` is dataflow's StopMode."""

    mode: str


ToJob = LaunchJob | Granted | Waiting | Told | AgentGone | NodeLost | NodeGone | StopJob

# Job process to controller ------------------------------------------------------------------------


class NeedSlots(msgspec.Struct, frozen=True, tag=True):
    """Room for `count` slots, in place of what the job has. One slot holds one subtask of each
    vertex, as in Flink: a job needs as many as its widest vertex. `again`: it ran before, so
    after SHARE_AFTER_S too few slots are shared rather than waited for."""

    grant: int
    count: int
    again: bool


class OpenAgent(msgspec.Struct, frozen=True, tag=True):
    """See OpenJob."""

    name: NodeName


class Tell(msgspec.Struct, frozen=True, tag=True):
    """Pass a ToAgent message on to the job's agent on this node."""

    name: NodeName
    body: bytes


class CloseAgent(msgspec.Struct, frozen=True, tag=True):
    """See CloseJob; AgentGone is the answer."""

    name: NodeName


class Report(msgspec.Struct, frozen=True, tag=True):
    """Once a second and at each change of state. `status` is dataflow's JobStatus as JSON."""

    status: bytes


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The last word. `outcome`: finished, stopped, already finished, failed."""

    outcome: str
    summary: bytes
    """dataflow's Summary as JSON; empty when it failed."""
    failure: str = ""


FromJob = NeedSlots | OpenAgent | Tell | CloseAgent | Report | Ended

encode = msgspec.msgpack.Encoder().encode
"""The body of a frame."""
decode_to_job = msgspec.msgpack.Decoder(ToJob).decode
decode_from_job = msgspec.msgpack.Decoder(FromJob).decode
"""Both raise msgspec.DecodeError for what the other side never says."""
