"""What the agent hands to a subtask's fresh process, over their control socket.

One frame with a Handover, then its descriptors: each marker byte carries up to
DESCRIPTORS_PER_SEND_MAX of them. The process answers HELLO with its own pidfd as its first act,
and ATTACHED once everything named is open, so that the names may be unlinked; events follow.
"""

from __future__ import annotations

import os
import socket

import msgspec

from penstock.elements.errors import ProtocolError

from .framing import DESCRIPTORS_PER_SEND_MAX, Outbox, frame, receive_frame
from .messages import ChannelSpec, SubtaskDeployment, encode

HELLO = b"hello"
ATTACHED = b"attached"
"""No event begins like these: an event is a msgpack map."""
_MARKER = b"\0"


class ChannelEnd(msgspec.Struct, frozen=True):
    """One channel as one of its ends needs it.

    `segment` is the place of the consumer's segment among the descriptors; `peer_doorbell` is the
    name of the bell at the other end.
    """

    spec: ChannelSpec
    segment: int
    region: int
    peer_doorbell: str


class Handover(msgspec.Struct, frozen=True):
    """All that a subtask's process is given; the descriptors follow it.

    Descriptor 0 is the program (cloudpickle of the Plan), 1 the page of progress words, 2 is held
    open for as long as the process lives (see agent_handle.py); the others are segments.
    """

    job: str
    generation: int
    attempt: int
    run_id: str
    store_root: str
    settings: bytes
    deployment: SubtaskDeployment
    ordinal: int
    subtasks: int
    doorbell: str
    inbound: list[ChannelEnd]
    outbound: list[ChannelEnd]
    descriptors: int
    entry: str
    """`module:function`; called with the SubtaskSetup."""
    scratch_dir: str
    python_path: list[str]
    cwd: str


PLAN_DESCRIPTOR = 0
PROGRESS_DESCRIPTOR = 1
LIVENESS_DESCRIPTOR = 2

_decoder = msgspec.msgpack.Decoder(Handover)


def put_handover(outbox: Outbox, handover: Handover, descriptors: list[int]) -> None:
    """Queue it all; the descriptors must stay open until the process says ATTACHED."""
    assert handover.descriptors == len(descriptors)
    outbox.put(frame(encode(handover)))
    for start in range(0, len(descriptors), DESCRIPTORS_PER_SEND_MAX):
        outbox.put(_MARKER, descriptors[start : start + DESCRIPTORS_PER_SEND_MAX])


def receive_handover(sock: socket.socket) -> tuple[Handover, list[int]] | None:
    """Read what `put_handover` queued; None when the agent hangs up meanwhile."""
    body = receive_frame(sock)
    if body is None:
        return None
    handover: Handover = _decoder.decode(body)
    descriptors: list[int] = []
    while len(descriptors) < handover.descriptors:
        marker, received, _, _ = socket.recv_fds(sock, 1, DESCRIPTORS_PER_SEND_MAX)
        if not marker:
            return None
        if not received:
            raise ProtocolError(
                f"of {handover.descriptors} descriptors only {len(descriptors)} arrived; "
                "the limit of open files (ulimit -n) may be too low"
            )
        for descriptor in received:
            # The kernel hands them over open across exec; user code may start programs.
            os.set_inheritable(descriptor, False)
        descriptors.extend(received)
    return handover, descriptors


def say_hello(sock: socket.socket) -> None:
    """Send HELLO with a descriptor of this very process, which no reuse of its pid can fool."""
    pidfd = os.pidfd_open(os.getpid())
    try:
        # A few bytes into an empty socket buffer: they go out whole.
        sent = socket.send_fds(sock, [frame(HELLO)], [pidfd])
        assert sent == len(frame(HELLO))
    finally:
        os.close(pidfd)
