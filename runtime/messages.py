"""The control protocol between controller, agent and subtasks: typed messages, msgpack on a wire.

Every message carries generation and attempt; a receiver drops what is not of its own (hazard 17).
A frame is a u32 length (little endian) and one msgpack body; FRAME_BYTES_MAX bounds it.
Program code travels as bytes made by cloudpickle and is unpickled only in a subtask.
"""

from __future__ import annotations

import msgspec

from penstock.state.log_history import LogPart

FRAME_BYTES_MAX = 64 * 1024 * 1024
INLINE_STATE_BYTES_MAX = 64 * 1024
"""State up to this size travels inside its acknowledgement; more is written to the store."""


class SubtaskKey(msgspec.Struct, frozen=True, order=True):
    """One subtask of a plan."""

    vertex: str
    index: int

    def __str__(self) -> str:
        return f"{self.vertex}[{self.index}]"


class Failure(msgspec.Struct, frozen=True):
    """An exception as data. `text` is the whole report; `identity` is what makes two failures
    the same poison (hazard 43): operator, exception type and source position or row."""

    kind: str
    text: str
    operator: str = ""
    identity: str = ""
    poison: bytes = b""
    """The offending rows as an Arrow IPC stream, for the poison folder."""


class RunRef(msgspec.Struct, frozen=True):
    """Where the sealed state of one subtask lies: inline bytes, or an object of the store."""

    name: str
    size: int
    crc: int
    inline: bytes = b""


class SourceSplit(msgspec.Struct, frozen=True):
    """A split on the wire; `detail` is JSON text."""

    id: str
    size: int
    detail: str


class ChannelSpec(msgspec.Struct, frozen=True):
    """One channel: an edge between one producer subtask and one consumer subtask."""

    edge: str
    source: SubtaskKey
    target: SubtaskKey
    slots: int
    slot_bytes: int


class SubtaskDeployment(msgspec.Struct, frozen=True):
    """All that one subtask needs beside the plan."""

    key: SubtaskKey
    title: str
    restored: list[RunRef]
    """Runs of the restored checkpoint that may hold state of this vertex's operators."""
    splits: dict[str, list[SourceSplit]]
    no_more_splits: bool
    finished: bool
    """It had finished at the restored cut: it starts in FINISHED (hazard 9)."""
    commit_up_to: int
    """The restored checkpoint id: pending commits up to it are repeated before the first row."""
    restored_parts: list[LogPart] = []
    """Rows of its logs that are not in `restored`, clipped to its key groups, oldest first."""


# Controller to agent ------------------------------------------------------------------------


class RemoteChannel(msgspec.Struct, frozen=True):
    """One of `Deploy.channels`, by its place there, whose other end is on `node`. `number` is its
    place among those that go the same way between the two nodes, `fingerprint` that of its wire
    schema (net/setup.py)."""

    channel: int
    node: str
    number: int
    fingerprint: int


class NetDeployment(msgspec.Struct, frozen=True):
    """What an attempt on several nodes adds for one of them, whose name is `node`."""

    node: str
    channels: list[RemoteChannel]


class Deploy(msgspec.Struct, frozen=True, tag=True):
    """Start an attempt: the subtasks of the plan that this agent is to run."""

    job: str
    generation: int
    attempt: int
    run_id: str
    store_root: str
    plan: bytes
    subtasks: list[SubtaskDeployment]
    channels: list[ChannelSpec]
    settings: bytes
    """JobSettings as JSON."""
    python_path: list[str] = []
    """`sys.path` of the user's process, "" resolved: the plan's modules are found there."""
    cwd: str = ""
    """The user's working directory: relative paths in user code mean the same in a subtask."""
    net: NetDeployment | None = None
    """None: no channel leaves this node. `subtasks` are those of this node, `channels` those with
    an end here."""


class UseNetwork(msgspec.Struct, frozen=True, tag=True):
    """Before the first Deploy with a `net`: how this node's net processes listen and prove
    themselves. The fields are those of net/setup.py."""

    host: str
    secret: bytes = b""
    tls: tuple[str, str, str] | None = None
    open_loopback: bool = False
    compression: str = ""


class NetAddresses(msgspec.Struct, frozen=True, tag=True):
    """Where every node of the attempt listens; sent when all have said NetListening."""

    generation: int
    attempt: int
    nodes: dict[str, tuple[str, int]]


class ToSubtask(msgspec.Struct, frozen=True, tag=True):
    """Relay a command to one subtask."""

    generation: int
    attempt: int
    key: SubtaskKey
    command: bytes


class CancelAttempt(msgspec.Struct, frozen=True, tag=True):
    """Kill all processes of the attempt, then answer AttemptGone."""

    generation: int
    attempt: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Kill everything and exit."""


# Agent to controller ------------------------------------------------------------------------


class AgentReady(msgspec.Struct, frozen=True, tag=True):
    """The agent is warm and takes attempts."""

    pid: int
    slots: int
    fork_server_pid: int = 0


class NotResponding(msgspec.Struct, frozen=True, tag=True):
    """A live subtask's progress word has stood still (hazard 40): status, never a verdict.

    Sent once the standstill is `seconds` long, again each time it has doubled, and with
    `seconds=0` when the subtask moves again. `state` is one of progress_word.STATES.
    """

    generation: int
    attempt: int
    key: SubtaskKey
    state: str
    seconds: float


class SubtaskExited(msgspec.Struct, frozen=True, tag=True):
    """A subtask's process is gone. `status` is an exit code, or minus a signal number."""

    generation: int
    attempt: int
    key: SubtaskKey
    pid: int
    status: int


class AttemptGone(msgspec.Struct, frozen=True, tag=True):
    """The pidfds of all processes of the attempt have fired, and its memory is released."""

    generation: int
    attempt: int


class NetListening(msgspec.Struct, frozen=True, tag=True):
    """This node's net process listens; the answer, once all have it, is NetAddresses."""

    generation: int
    attempt: int
    host: str
    port: int


class FromSubtask(msgspec.Struct, frozen=True, tag=True):
    """Relay an event of one subtask."""

    generation: int
    attempt: int
    key: SubtaskKey
    event: bytes


class AgentFailure(msgspec.Struct, frozen=True, tag=True):
    """The agent could not carry out a deployment, or go on with it."""

    generation: int
    attempt: int
    text: str
    consequence: bool = False
    """It may follow from what a subtask tells better."""


# Commands to a subtask ----------------------------------------------------------------------


class TriggerCheckpoint(msgspec.Struct, frozen=True, tag=True):
    """To subtasks without unfinished inputs: start the barrier here. `flags`: BarrierFlag."""

    checkpoint_id: int
    flags: int


class AbortCheckpoint(msgspec.Struct, frozen=True, tag=True):
    """Unblock at once if aligning for it."""

    checkpoint_id: int


class Commit(msgspec.Struct, frozen=True, tag=True):
    """Every cut up to this id is durable. Cumulative."""

    checkpoint_id: int


class AssignSplits(msgspec.Struct, frozen=True, tag=True):
    """Further splits for one source operator."""

    operator_id: str
    splits: list[SourceSplit]
    no_more: bool


class Drain(msgspec.Struct, frozen=True, tag=True):
    """To sources: end the data here; END flushes everything downstream."""


Command = TriggerCheckpoint | AbortCheckpoint | Commit | AssignSplits | Drain

# Events of a subtask ------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True, tag=True):
    """Operators are open and state is restored; the first row may flow."""

    pid: int


class Acknowledge(msgspec.Struct, frozen=True, tag=True):
    """The snapshot of this subtask at the cut is durable."""

    checkpoint_id: int
    run: RunRef | None
    finished: bool
    watermark: int
    seen_splits: dict[str, list[str]]
    owes_commit: bool
    """Some operator holds staged rows of a cut <= this one whose commit it will report."""
    aligned_ms: float
    sealed_ms: float
    bytes: int
    """What was written for this checkpoint, parts of logs among it."""
    parts: list[LogPart] = []
    """Rows of logs that are not in `run`: new objects, and those of earlier checkpoints."""


class Decline(msgspec.Struct, frozen=True, tag=True):
    """This subtask will not take part in the checkpoint."""

    checkpoint_id: int
    reason: str


class CommitDone(msgspec.Struct, frozen=True, tag=True):
    """All staged rows of cuts up to this id are published by this subtask."""

    checkpoint_id: int


class InputEnded(msgspec.Struct, frozen=True, tag=True):
    """All inputs of this subtask have ended and END was sent on; it lives on in FINISHED."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The subtask cannot go on; its process exits after this."""

    failure: Failure


class Statistics(msgspec.Struct, frozen=True, tag=True):
    """Once a second: counters since the start of the attempt, by operator id, and gauges.

    `busy`, `blocked` are fractions of the last second spent in operators and waiting for room.
    """

    rows_in: int
    rows_out: int
    watermark: int
    busy: float
    blocked: float
    counters: dict[str, dict[str, int]]


Event = Started | Acknowledge | Decline | CommitDone | InputEnded | Failed | Statistics

_command_decoder = msgspec.msgpack.Decoder(Command)
_event_decoder = msgspec.msgpack.Decoder(Event)
_encoder = msgspec.msgpack.Encoder()

ToAgent = Deploy | ToSubtask | CancelAttempt | Shutdown | UseNetwork | NetAddresses
ToController = (
    AgentReady | NotResponding | SubtaskExited | AttemptGone | FromSubtask | AgentFailure
    | NetListening
)  # fmt: skip


def encode(message: msgspec.Struct) -> bytes:
    """The body of a frame."""
    return _encoder.encode(message)


def decode_command(body: bytes) -> Command:
    """Raises msgspec.DecodeError for what is not a command."""
    command: Command = _command_decoder.decode(body)
    return command


def decode_event(body: bytes) -> Event:
    """Raises msgspec.DecodeError for what is not an event."""
    event: Event = _event_decoder.decode(body)
    return event


_to_agent_decoder = msgspec.msgpack.Decoder(ToAgent)
_to_controller_decoder = msgspec.msgpack.Decoder(ToController)


def decode_to_agent(body: bytes) -> ToAgent:
    """Raises msgspec.DecodeError for what the controller never says."""
    message: ToAgent = _to_agent_decoder.decode(body)
    return message


def decode_to_controller(body: bytes) -> ToController:
    """Raises msgspec.DecodeError for what an agent never says."""
    message: ToController = _to_controller_decoder.decode(body)
    return message
