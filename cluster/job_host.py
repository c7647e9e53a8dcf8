"""A job process as the controller sees it: started, given a job, spoken to, killed, reaped.

It dies with the thread that started it (runtime/lifeline.py), so one thread starts it, reads it
and reaps it; another writes, since the controller's own must never wait for a job. What the
process prints goes to the job's log. One that has no job yet is warm: its imports are done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from penstock.elements.errors import ProtocolError
from penstock.runtime.framing import frame, receive_frame
from penstock.runtime.lifeline import THREAD_ENVIRONMENT

from .job_messages import ToJob, encode
from .node_logs import JobLog

# -P: a file of the working directory must not stand in for a module of ours.
JOB_COMMAND = (sys.executable, "-P", "-m", "penstock.cluster.job_process")
"""The descriptor of its end of the socket pair is added."""
OUTBOX_BYTES_MAX = 256 * 1024 * 1024
"""What waits for a job process that does not read; beyond it, it is killed."""
HUNG_UP_S = 5.0
"""For a process whose socket has ended, to end as well."""

OnBody = Callable[["JobProcess", bytes], None]
OnGone = Callable[["JobProcess", str], None]


class JobProcess:
    """One process, for one launch of one job. `start` and `assign` it once each."""

    def __init__(self, environment: Mapping[str, str], command: Sequence[str]) -> None:
        self.job = ""
        self.launch = 0
        self._environment = environment
        self._command = command
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: JobLog | None = None
        self._log_path: Path | None = None
        self._on_body: OnBody | None = None
        self._on_gone: OnGone | None = None
        self._outbox: deque[bytes] = deque()
        self._pending_bytes = 0
        self._killed = False
        self._cause: str | None = None
        self._thread = threading.Thread(target=self._live, name="job-process", daemon=True)

    @property
    def over(self) -> bool:
        """It is reaped, or could not be started."""
        return self._cause is not None

    def start(self) -> None:
        """Returns at once; if it cannot be started, `on_gone` will say so."""
        self._thread.start()

    def assign(self, job: str, launch: int, log: Path, on_body: OnBody, on_gone: OnGone) -> None:
        """Give it its job. From here on `on_body` and, once and last, `on_gone` are called, from
        its thread, or from here if it is gone already."""
        assert not self.job
        with self._changed:
            self.job, self.launch, self._log_path = job, launch, log
            self._on_body, self._on_gone = on_body, on_gone
            self._keep_log()
            cause = self._cause
        if cause is not None:
            on_gone(self, cause)

    def send(self, message: ToJob) -> None:
        """Never blocks. Nothing happens if it is gone, which `on_gone` tells."""
        try:
            data = frame(encode(message))
        except ProtocolError:
            # Only a bug makes such a message; without it the job cannot go on.
            self.kill()
            return
        with self._changed:
            if self.over:
                return
            self._outbox.append(data)
            self._pending_bytes += len(data)
            self._changed.notify()
            too_much = self._pending_bytes > OUTBOX_BYTES_MAX
        if too_much:
            self.kill()

    def kill(self) -> None:
        """SIGKILL; `on_gone` follows."""
        with self._changed:
            self._killed = True
            if self._process is not None and not self.over:
                self._process.kill()

    def join(self, timeout_s: float) -> None:
        """Wait until it is reaped. Requires: started."""
        self._thread.join(timeout_s)

    # Its thread ---------------------------------------------------------------------------------

    def _live(self) -> None:
        log = JobLog()
        try:
            cause = self._run(log)
        except Exception as error:
            # Such as no more threads: what is told must be its end all the same.
            self.kill()
            cause = f"the controller could not look after it: {error}"
        with self._changed:
            self._cause = cause
            if self._log is None or self._log_path is None:
                log.discard()
            self._log = None
            on_gone = self._on_gone
        if on_gone is not None:
            on_gone(self, cause)

    def _run(self, log: JobLog) -> str:
        try:
            sock, theirs = socket.socketpair()
        except OSError as error:
            log.launched()
            return f"it cannot be started: {error}"
        try:
            process = self._exec(log, theirs.fileno())
        except OSError as error:
            sock.close()
            return f"it cannot be started: {error}"
        finally:
            log.launched()
            theirs.close()
        with self._changed:
            self._process, self._log = process, log
            self._keep_log()
            if self._killed:
                process.kill()
        with sock:
            return self._serve(process, sock)

    def _serve(self, process: subprocess.Popen[bytes], sock: socket.socket) -> str:
        over = threading.Event()
        writer = threading.Thread(target=self._write, args=(sock, over), daemon=True)
        writer.start()
        try:
            while (body := receive_frame(sock)) is not None:
                if self._on_body is None:
                    raise ProtocolError("it speaks before it was spoken to")
                self._on_body(self, body)
        except (OSError, ProtocolError):
            # It is of no use any more, whatever the reason was.
            process.kill()
        cause = _reap(process)
        over.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        with self._changed:
            self._changed.notify()
        writer.join()
        return cause

    def _exec(self, log: JobLog, theirs: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._command, str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=log.descriptor,
            stderr=log.descriptor,
            env=_environment(self._environment),
            pass_fds=(theirs,),
            start_new_session=True,
        )

    def _keep_log(self) -> None:
        """Once there are both a process and a place for its log. Requires: the lock."""
        if self._process is not None and self._log is not None and self._log_path is not None:
            heading = f"--- launch {self.launch}, pid {self._process.pid}"
            self._log.keep(self._log_path, heading)

    def _write(self, sock: socket.socket, over: threading.Event) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outbox or over.is_set())
                if over.is_set():
                    return
                data = self._outbox.popleft()
                self._pending_bytes -= len(data)
            try:
                sock.sendall(data)
            except OSError:
                # The reader finds the end.
                return


def _reap(process: subprocess.Popen[bytes]) -> str:
    """How it ended; it is killed if it does not."""
    try:
        status = process.wait(HUNG_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    if status >= 0:
        return f"it exited with code {status}"
    with contextlib.suppress(ValueError):
        return f"it was killed by {signal.Signals(-status).name}"
    return f"it was killed by signal {-status}"


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """The controller's, what the submission adds, and one thread for every library."""
    environment = {**os.environ, **more, **THREAD_ENVIRONMENT}
    root = str(Path(__file__).absolute().parents[2])
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    if root not in installed:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = root if not known else f"{known}{os.pathsep}{root}"
    return environment
