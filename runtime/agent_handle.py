"""The controller's side of its agent: starts it, talks to it, and learns of its end.

The agent dies with the thread that started it (lifeline.py), so a daemon thread starts it and
then reads it for as long as it lives. Every process below the agent holds a pipe open; `AgentLost`
waits for its end, so that nothing of the lost attempt still runs when a new one begins, or says
that something may.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from penstock.elements.errors import EngineError, ProtocolError

from .doorbell import sweep_stale
from .framing import frame, receive_frame
from .lifeline import THREAD_ENVIRONMENT
from .messages import Shutdown, ToAgent, ToController, decode_to_controller, encode
from .sweep import sweep_directories

SUBTASK_ENTRY = "penstock.runtime.subtask:run_subtask"
SEND_TIMEOUT_S = 30
"""An agent that takes no byte for this long is stuck, and is killed."""
EXIT_WAIT_S = 3.0
"""For an agent that hung up or was told to shut down, to leave by itself."""
PROCESSES_WAIT_S = 2.0
"""For the processes below a dead agent to be gone; they are killed by the kernel."""


@dataclass(frozen=True)
class AgentLost:
    """The agent is gone, and with it all its subtasks.

    `status` is its exit code, or minus a signal number. Not `all_gone`: a process of it still
    lived after PROCESSES_WAIT_S (stopped in the kernel, or user code forked one).
    """

    pid: int
    status: int
    cause: str
    all_gone: bool


ToControllerOrLost = ToController | AgentLost


class EventSink(Protocol):
    """Takes what an agent says, in its thread; any queue does."""

    def put(self, event: ToControllerOrLost, /) -> None:
        """Never blocks."""
        ...


class AgentHandle:
    """One agent. `start` it once; when it is lost, make another.

    `launch` before anything is known of the job lets it warm up meanwhile (hazard 73); `start`
    then takes it over.
    """

    def __init__(
        self,
        entry: str = SUBTASK_ENTRY,
        output: int | None = None,
        environment: Mapping[str, str] | None = None,
        processes_wait_s: float = PROCESSES_WAIT_S,
    ) -> None:
        """`entry` is what subtask processes run, `module:function`; `output` is a descriptor for
        what they and the agent write to stdout and stderr, which may be closed once the agent is
        launched; `environment` comes on top of this process's; AgentLost comes this long after the
        agent's death at the latest."""
        self._entry = entry
        self._output = output
        self._environment = dict(environment or {})
        self._processes_wait_s = processes_wait_s
        self._send_lock = threading.Lock()
        self._started = threading.Event()
        self._over = threading.Event()
        self._error: OSError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._early: queue.SimpleQueue[ToControllerOrLost] = queue.SimpleQueue()
        self._events: EventSink = self._early
        self._events_lock = threading.Lock()
        self._taken = False
        self._surroundings: dict[str, str] = {}
        self._sock, self._theirs = socket.socketpair()
        self._liveness, self._held = os.pipe()
        timeout = struct.pack("@ll", SEND_TIMEOUT_S, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    @property
    def pid(self) -> int:
        """The agent's process id. Requires: started."""
        assert self._process is not None
        return self._process.pid

    @property
    def over(self) -> bool:
        """The agent and, as far as could be seen, all below it are gone."""
        return self._over.is_set()

    @property
    def fits(self) -> bool:
        """It is launched and lives, and was given the environment that this process has now.

        User code must see what the program put into os.environ, so an agent launched before that
        cannot serve it.
        """
        alive = self._process is not None and not self._over.is_set()
        return alive and self._surroundings == dict(os.environ)

    def launch(self) -> None:
        """Exec the agent and let it warm up; what it says is kept for `start`.

        Raises EngineError if there can be no such process.
        """
        assert self._process is None
        self._surroundings = dict(os.environ)
        # Before the thread, which takes it back when the agent is gone.
        atexit.register(self.close)
        thread = threading.Thread(target=self._live, name="agent", daemon=True)
        thread.start()
        self._started.wait()
        if self._error is not None:
            raise EngineError(f"the agent process cannot be started: {self._error}")

    def start(self, events: EventSink) -> None:
        """Exec the agent unless it was launched; what it says goes to `events`, last an AgentLost.

        Returns when the process exists; AgentReady comes when it is warm.
        """
        assert not self._taken
        if self._process is None:
            self.launch()
        with self._events_lock:
            while not self._early.empty():
                events.put(self._early.get_nowait())
            self._events, self._taken = events, True

    def send(self, message: ToAgent) -> None:
        """Say something to the agent. If it is gone nothing happens: AgentLost comes, or came.

        Raises ProtocolError for a message beyond the frame limit.
        """
        data = memoryview(frame(encode(message)))
        with self._send_lock:
            while data and not self._over.is_set():
                try:
                    sent = self._sock.send(data, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    self.kill()
                    return
                except OSError:
                    return
                data = data[sent:]

    def kill(self) -> None:
        """SIGKILL to the agent; everything below it follows. AgentLost comes as usual."""
        if self._process is not None and not self._over.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Shut the agent down and wait until it and all below it are gone. May be repeated."""
        atexit.unregister(self.close)
        if self._process is None:
            return
        if self._taken:
            self.send(Shutdown())
        else:
            # Nothing was asked of it: it need not finish warming up to say goodbye.
            self.kill()
        if not self._over.wait(EXIT_WAIT_S):
            self.kill()
            self._over.wait(EXIT_WAIT_S + PROCESSES_WAIT_S)

    # In the agent's thread ---------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._process = self._exec()
        except OSError as error:
            self._error = error
            atexit.unregister(self.close)
            self._sock.close()
            os.close(self._liveness)
            return
        finally:
            self._theirs.close()
            os.close(self._held)
            self._started.set()
        cause = self._read()
        lost = self._wait(cause)
        self._over.set()
        # A node's agent outlives any number of these: none may be kept for its end.
        atexit.unregister(self.close)
        with self._send_lock:
            self._sock.close()
        os.close(self._liveness)
        self._say(lost)

    def _exec(self) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise OSError("sys.executable is empty: there is no Python to run it with")
        control, held = self._theirs.fileno(), self._held
        program = (
            "from penstock.runtime.agent import main; "
            f"main({control}, {held}, {os.getpid()}, {self._entry!r})"
        )
        # -P: a file of the working directory must not stand in for a module of ours.
        return subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=_environment(self._environment),
            pass_fds=(control, held),
            start_new_session=True,
        )

    def _read(self) -> str:
        """Pass on what the agent says until it hangs up; why it ended."""
        try:
            while (body := receive_frame(self._sock)) is not None:
                self._say(decode_to_controller(body))
        except OSError as error:
            return f"its connection broke: {error}"
        except (ProtocolError, msgspec.DecodeError) as error:
            # What follows cannot be understood either.
            self.kill()
            return f"it broke the protocol: {error}"
        return "it hung up"

    def _say(self, event: ToControllerOrLost) -> None:
        with self._events_lock:
            self._events.put(event)

    def _wait(self, cause: str) -> AgentLost:
        assert self._process is not None
        # Python's wait with a timeout sleeps between looks, for longer and longer.
        if not _ends(self._process, EXIT_WAIT_S):
            self._process.kill()
        status = self._process.wait()
        if status < 0:
            cause = f"it was killed by {signal.Signals(-status).name}"
        all_gone = _readable(self._liveness, self._processes_wait_s)
        if status:
            # A killed agent leaves its directories and perhaps names of bells.
            sweep_directories()
            sweep_stale()
        return AgentLost(self._process.pid, status, cause, all_gone)


def _ends(process: subprocess.Popen[bytes], within_s: float) -> bool:
    """Whether our child, which nobody has waited for yet, is dead by then."""
    pidfd = os.pidfd_open(process.pid)
    try:
        return _readable(pidfd, within_s)
    finally:
        os.close(pidfd)


def _readable(descriptor: int, within_s: float) -> bool:
    # Not select.select, which refuses descriptors from 1024 on: a user's process may have many.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _environment(additions: Mapping[str, str]) -> dict[str, str]:
    """The user's, with one thread for every library, and Penstock on the path if it was not."""
    environment = {**os.environ, **additions}
    environment.update(THREAD_ENVIRONMENT)
    root = str(Path(__file__).absolute().parents[2])
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    if root not in installed:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = root if not known else f"{known}{os.pathsep}{root}"
    return environment
