"""A job process as the controller sees it: started, spoken to, killed, reaped.

It dies with the thread that started it (runtime/lifeline.py), so one thread starts it, reads it
and reaps it; another writes, since the controller's own must never wait for a job. What the
process prints goes to the job's log.
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
    """One launch. `on_body` and `on_gone` are called from its thread, `on_gone` once and last."""

    def __init__(
        self,
        job: str,
        launch: int,
        log: Path,
        environment: Mapping[str, str],
        on_body: OnBody,
        on_gone: OnGone,
        command: Sequence[str] = JOB_COMMAND,
    ) -> None:
        self.job = job
        self.launch = launch
        self._log = log
        self._environment = environment
        self._on_body, self._on_gone = on_body, on_gone
        self._command = command
        self._sock, self._theirs = socket.socketpair()
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._outbox: deque[bytes] = deque()
        self._pending_bytes = 0
        self._killed = self._over = False
        self._thread = threading.Thread(target=self._live, name=f"job-{job}", daemon=True)
        self._writer = threading.Thread(target=self._write, name=f"job-{job}-out", daemon=True)

    def start(self) -> None:
        """Returns at once; if it cannot be started, `on_gone` says so."""
        self._writer.start()
        self._thread.start()

    def send(self, message: ToJob) -> None:
        """Never blocks. Nothing happens if it is gone, which `on_gone` tells."""
        try:
            data = frame(encode(message))
        except ProtocolError:
            # Only a bug makes such a message; without it the job cannot go on.
            self.kill()
            return
        with self._changed:
            if self._over:
                return
            self._outbox.append(data)
            self._pending_bytes += len(data)
            self._changed.notify()
        if self._pending_bytes > OUTBOX_BYTES_MAX:
            self.kill()

    def kill(self) -> None:
        """SIGKILL; `on_gone` follows."""
        with self._changed:
            self._killed = True
            if self._process is not None and not self._over:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()

    def join(self, timeout_s: float) -> None:
        """Wait until it is reaped. Requires: started."""
        self._thread.join(timeout_s)

    # Its thread ---------------------------------------------------------------------------------

    def _live(self) -> None:
        cause = self._run()
        with self._changed:
            self._over = True
            self._changed.notify()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._writer.join()
        self._sock.close()
        self._on_gone(self, cause)

    def _run(self) -> str:
        log = JobLog()
        try:
            process = self._exec(log)
        except OSError as error:
            log.discard()
            return f"it cannot be started: {error}"
        finally:
            log.launched()
            self._theirs.close()
        log.keep(self._log, f"--- launch {self.launch}, pid {process.pid}")
        with self._changed:
            self._process = process
            if self._killed:
                process.kill()
        try:
            while (body := receive_frame(self._sock)) is not None:
                self._on_body(self, body)
        except (OSError, ProtocolError):
            # It is of no use any more, whatever the reason was.
            process.kill()
        return self._reap(process)

    def _exec(self, log: JobLog) -> subprocess.Popen[bytes]:
        theirs = self._theirs.fileno()
        return subprocess.Popen(
            [*self._command, str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=log.descriptor,
            stderr=log.descriptor,
            env=_environment(self._environment),
            pass_fds=(theirs,),
            start_new_session=True,
        )

    def _reap(self, process: subprocess.Popen[bytes]) -> str:
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

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outbox or self._over)
                if self._over:
                    return
                data = self._outbox.popleft()
                self._pending_bytes -= len(data)
            try:
                self._sock.sendall(data)
            except OSError:
                # The reader finds the end.
                return


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """The controller's, what the submission adds, and one thread for every library."""
    environment = {**os.environ, **more, **THREAD_ENVIRONMENT}
    root = str(Path(__file__).absolute().parents[2])
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    if root not in installed:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = root if not known else f"{known}{os.pathsep}{root}"
    return environment
