"""The net process of a node: owns every socket to other nodes for one attempt of one job.

`python -m penstock.runtime.net.process FD`, FD being its end of a control socket to the agent. It
never looks into a row, imports no user code, and dies with its agent. To the subtasks of its node
it is an ordinary neighbour: the reader of the slabs of channels that leave, the writer of the
slabs of channels that arrive.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading

import posix_ipc
import setproctitle

from penstock.elements.clock import SystemClock
from penstock.elements.errors import PenstockError
from penstock.runtime.doorbell import Doorbell
from penstock.runtime.framing import frame, receive_frame
from penstock.runtime.lifeline import die_with_parent, ignore_interrupts, raise_open_files_limit
from penstock.runtime.segment import Segment

from .peers import Peers
from .setup import (
    Listening,
    NetEvent,
    NetFailed,
    NetSetup,
    decode_addresses,
    encode,
    receive_setup,
)

TICK_S = 0.1
SWITCH_INTERVAL_S = 0.0005
"""Readers and writers of all connections share one interpreter; none computes for long."""


def serve(control: socket.socket) -> None:
    """Serve one attempt until the agent hangs up."""
    received = receive_setup(control)
    if received is None:
        return
    setup, descriptors = received
    setproctitle.setproctitle(f"penstock: net {setup.job}")
    said = threading.Lock()

    def say(event: NetEvent) -> None:
        with said:
            try:
                control.sendall(frame(encode(event)), socket.MSG_NOSIGNAL)
            except OSError:
                # The agent is gone; the loop below sees that too, and ends everything.
                pass

    try:
        segments = [Segment.attach(descriptor) for descriptor in descriptors]
        peers = Peers(setup, segments, _open_bells(setup), SystemClock(), say)
    except (PenstockError, OSError, posix_ipc.Error) as error:
        say(NetFailed(str(error)))
        return
    say(Listening(peers.port))
    try:
        _loop(control, peers)
    finally:
        peers.close()


def _loop(control: socket.socket, peers: Peers) -> None:
    told = select.poll()
    told.register(control, select.POLLIN)
    while True:
        if told.poll(TICK_S * 1000):
            body = _received(control)
            if body is None:
                return
            peers.connect(decode_addresses(body).nodes)
        peers.tick()


def _received(control: socket.socket) -> bytes | None:
    try:
        return receive_frame(control)
    except ConnectionResetError:
        # It has hung up with events of ours unread.
        return None


def _open_bells(setup: NetSetup) -> dict[str, Doorbell]:
    names = {peer.bell for peer in setup.peers}
    for peer in setup.peers:
        names.update(end.subtask_bell for end in (*peer.sends, *peer.receives))
    return {name: Doorbell.open(name) for name in names}


def main(control: int) -> None:
    """Never returns: threads of lost connections may be blocked for ever, and own nothing."""
    die_with_parent(os.getppid())
    ignore_interrupts()
    raise_open_files_limit()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    setproctitle.setproctitle("penstock: net, idle")
    try:
        serve(socket.socket(fileno=control))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
