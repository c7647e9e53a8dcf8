"""What a node's agent and its net process say to each other over their control socket.

Frames of runtime/framing.py with msgpack bodies. The agent sends one NetSetup, then its segments'
descriptors as in runtime/handover.py, then Addresses once it knows where every peer listens; the
net process answers with the events below. When the agent hangs up the net process ends.
"""

from __future__ import annotations

import socket

import msgspec

from penstock.elements.errors import ProtocolError
from penstock.runtime.framing import DESCRIPTORS_PER_SEND_MAX, Outbox, frame, receive_frame

from .credentials import Credentials


class ChannelEnd(msgspec.Struct, frozen=True):
    """This node's end of one channel. `number` is the same at both nodes of a pair and unique
    among the channels of one direction; `segment` is a place among the descriptors."""

    number: int
    segment: int
    region: int
    fingerprint: int
    """`schema_fingerprint` of the channel's wire schema."""
    subtask_bell: str


class PeerSetup(msgspec.Struct, frozen=True):
    """All channels shared with one other node. `bell` is the one that the subtasks of these
    channels ring as their neighbour's."""

    node: str
    bell: str
    sends: list[ChannelEnd]
    receives: list[ChannelEnd]


class NetSetup(msgspec.Struct, frozen=True):
    """All that a net process is given; it serves one attempt and no other."""

    job: str
    generation: int
    attempt: int
    node: str
    address: str
    """Where to listen, by name or number; the port is the system's choice."""
    peers: list[PeerSetup]
    descriptors: int
    compression: str = ""
    secret: bytes = b""
    tls: tuple[str, str, str] | None = None
    open_loopback: bool = False

    def credentials(self) -> Credentials:
        """Raises SettingsError unless there is exactly one kind."""
        return Credentials(self.secret, self.tls, self.open_loopback)


class Addresses(msgspec.Struct, frozen=True):
    """Host and port by node, for every peer at least."""

    nodes: dict[str, tuple[str, int]]


# Events ---------------------------------------------------------------------------------------


class Listening(msgspec.Struct, frozen=True, tag=True):
    """Everything named is open, so names may be unlinked; peers may connect to this port."""

    port: int


class PeerReady(msgspec.Struct, frozen=True, tag=True):
    """Both ends agree; rows of these channels flow."""

    node: str


class PeerLost(msgspec.Struct, frozen=True, tag=True):
    """No connection to the peer, or no more: all channels shared with it are aborted."""

    node: str
    reason: str


class PeerFinished(msgspec.Struct, frozen=True, tag=True):
    """The connection was closed after every channel had ended; nothing is lost."""

    node: str


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """Callers that were turned away since the last such event, and why the last one was."""

    count: int
    reason: str


class NetFailed(msgspec.Struct, frozen=True, tag=True):
    """The setup cannot be carried out; the process exits."""

    reason: str


NetEvent = Listening | PeerReady | PeerLost | PeerFinished | Rejected | NetFailed

_encoder = msgspec.msgpack.Encoder()
_setup_decoder = msgspec.msgpack.Decoder(NetSetup)
_addresses_decoder = msgspec.msgpack.Decoder(Addresses)
_event_decoder = msgspec.msgpack.Decoder(NetEvent)


def encode(message: NetSetup | Addresses | NetEvent) -> bytes:
    """The body of a frame."""
    return _encoder.encode(message)


def decode_setup(body: bytes) -> NetSetup:
    """Raises msgspec.DecodeError for anything else."""
    setup: NetSetup = _setup_decoder.decode(body)
    return setup


def decode_addresses(body: bytes) -> Addresses:
    """Raises msgspec.DecodeError for anything else."""
    addresses: Addresses = _addresses_decoder.decode(body)
    return addresses


def decode_event(body: bytes) -> NetEvent:
    """Raises msgspec.DecodeError for anything else."""
    event: NetEvent = _event_decoder.decode(body)
    return event


def put_setup(outbox: Outbox, setup: NetSetup, descriptors: list[int]) -> None:
    """The agent's side: queue a setup with its segments, open until it answers Listening."""
    assert setup.descriptors == len(descriptors)
    outbox.put(frame(encode(setup)))
    for start in range(0, len(descriptors), DESCRIPTORS_PER_SEND_MAX):
        outbox.put(b"\0", descriptors[start : start + DESCRIPTORS_PER_SEND_MAX])


def receive_setup(control: socket.socket) -> tuple[NetSetup, list[int]] | None:
    """Read what `put_setup` queued; None when the agent hangs up meanwhile."""
    body = receive_frame(control)
    if body is None:
        return None
    setup = decode_setup(body)
    descriptors: list[int] = []
    while len(descriptors) < setup.descriptors:
        marker, received, _, _ = socket.recv_fds(control, 1, DESCRIPTORS_PER_SEND_MAX)
        if not marker:
            return None
        if not received:
            raise ProtocolError(
                f"of {setup.descriptors} segments only {len(descriptors)} arrived; the limit of "
                "open files (ulimit -n) may be too low"
            )
        descriptors.extend(received)
    return setup, descriptors
