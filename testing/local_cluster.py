"""A whole cluster on loopback: a controller and agents as real processes in a temporary folder.

Everything that was started has its working directory below the folder, which is how it is found
again and ended by pid; leaving the context checks that no process, no name in /dev/shm and no
temporary directory of any of them is left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from penstock.cluster.client import Client
from penstock.cluster.client_messages import JobInfo, NodeInfo
from penstock.cluster.hosting import Clear
from penstock.cluster.security import load_credentials, make_secret, make_tls
from penstock.cluster.submitting import OUTCOMES
from penstock.elements.errors import Unreachable
from penstock.runtime.sweep import start_time

from .chaos import parent_and_title

COMMAND = [sys.executable, "-m", "penstock"]
PATIENCE_S = 60.0
"""For a busy machine."""
GONE_S = 15.0
POLL_S = 0.02


@dataclass(frozen=True)
class Process:
    """One process of the cluster. `kind`: controller, job, agent, job agent, fork server, net,
    subtask."""

    pid: int
    parent: int
    started: int
    kind: str
    title: str
    node: str


class LocalCluster:
    """Use as a context; `folder` is where the job's programs and output go."""

    def __init__(self, folder: Path, agents: int = 3, slots: int = 2, *, tls: bool = False) -> None:
        """`tls`: certificates of an authority of its own instead of a shared secret."""
        self.folder = folder
        self.slots = slots
        (folder / "tmp").mkdir(parents=True)
        self._files = make_tls(folder / "tls", ["all"])["all"] if tls else None
        if not tls:
            make_secret(folder / "secret")
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.address = f"127.0.0.1:{server.getsockname()[1]}"
        self.popens: dict[str, subprocess.Popen[bytes]] = {}
        self.agents = [f"n{i}" for i in range(1, agents + 1)]
        self.roads: dict[str, str] = {}
        """Addresses that lead to the controller, by agent, for tests that cut them."""
        self.left: dict[str, list[str]] = {"processes": [], "files": [], "segments": []}
        """What was still there after an orderly end; known when the context is left."""
        self._seen: set[tuple[int, int]] = set()
        secret = None if tls else str(folder / "secret")
        self.client = Client(self.address, load_credentials(secret, self._files))

    def __enter__(self) -> Self:
        try:
            self.start_controller()
            for name in self.agents:
                self.start_agent(name)
            self.until("all agents are members", lambda: len(self.members()) == len(self.agents))
        except BaseException:
            self._kill_everything()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        try:
            if kind is None:
                self._end_gently()
        finally:
            left = self._kill_everything()
        if kind is None:
            self.left["processes"] = [f"{p.kind} {p.node}: {p.title}" for p in left]
            self._look_for_rest()
            assert not any(self.left.values()), f"still there after an orderly end: {self.left}"

    # Starting ---------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """With the data directory of the one before, if there was one."""
        self._start(
            "controller", "controller", "--listen", self.address, "--data",
            str(self.folder / "controller"), *self._proof(),
        )  # fmt: skip

    def start_agent(self, name: str, secret_file: Path | None = None) -> None:
        """Join as `name`, from its own directory, by way of `roads` if that says so."""
        self._start(
            name, "agent", "--join", self.roads.get(name, self.address), "--name", name,
            "--slots", str(self.slots), "--directory", str(self.folder / name),
            *self._proof(secret_file),
        )  # fmt: skip

    def _proof(self, secret_file: Path | None = None) -> tuple[str, ...]:
        if self._files is not None:
            return ("--tls", *self._files)
        return ("--secret-file", str(secret_file or self.folder / "secret"))

    def _start(self, name: str, *words: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.popens[name] = subprocess.Popen(
                [*self.host_of(name), *COMMAND, *words], cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=self.environment(), start_new_session=True,
            )  # fmt: skip

    def host_of(self, name: str) -> list[str]:
        """Words before the command of a service: what runs it on a host of its own."""
        return []

    def environment(self) -> dict[str, str]:
        """Of everything that is started here."""
        around = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        return {**around, "TMPDIR": str(self.folder / "tmp")}

    def penstock(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of a user."""
        return subprocess.run(
            self.command(*words), cwd=self.folder, env=self.environment(),
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def command(self, *words: str) -> list[str]:
        """A command of a user, as words."""
        return [*COMMAND, *words, "--controller", self.address, *self._proof()]

    def submit(self, program: str, *words: str) -> JobInfo:
        """Submit a program's text; comes back when it is accepted."""
        path = self.folder / "program.py"
        path.write_text(program)
        done = self.penstock("submit", str(path), "--json", *words)
        assert done.returncode == 0, done.stderr
        return self.job(json.loads(done.stdout)["jobs"][0]["job"])

    # Looking ----------------------------------------------------------------------------------

    def job(self, name: str) -> JobInfo:
        """Its newest submission."""
        return self.client.jobs(name, ended=True)[-1]

    def members(self) -> list[NodeInfo]:
        """Nodes that are there; none while the controller is not."""
        try:
            return [node for node in self.client.nodes() if node.state == "member"]
        except Unreachable:
            return []

    def processes(self, kind: str = "", node: str = "") -> list[Process]:
        """All live processes that belong here."""
        found = list(self._processes())
        self._seen.update((process.pid, process.started) for process in found)
        return [p for p in found if kind in ("", p.kind) and node in ("", p.node)]

    def at_work(self, kind: str) -> Process | None:
        """One of that kind that the job cannot do without: each node keeps a spare agent warm."""
        found = {process.pid: process for process in self.processes()}
        subtasks = [process for process in found.values() if process.kind == "subtask"]
        if kind in ("fork server", "job agent"):
            above = [found.get(process.parent) for process in subtasks]
            if kind == "job agent":
                above = [found.get(process.parent) for process in above if process is not None]
            chosen = [process for process in above if process is not None]
        else:
            chosen = [process for process in found.values() if process.kind == kind]
        assert all(process.kind == kind for process in chosen)
        # The last: neither on the first node nor the first subtask.
        return max(chosen, key=lambda process: process.pid, default=None)

    def _processes(self) -> Iterator[Process]:
        roots = {popen.pid: name for name, popen in self.popens.items()}
        facts: dict[int, tuple[int, str]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and int(entry) != os.getpid():
                try:
                    here = os.readlink(f"/proc/{entry}/cwd").startswith(str(self.folder))
                except OSError:
                    continue
                found = parent_and_title(int(entry)) if here else None
                if found is not None:
                    facts[int(entry)] = found
        for pid, (parent, title) in facts.items():
            above = parent
            while above in facts and above not in roots:
                above = facts[above][0]
            started = start_time(pid)
            if started is not None:
                node = roots.get(pid) or roots.get(above, "")
                yield Process(pid, parent, started, kind_of(title, pid in roots), title, node)

    def until(
        self, what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S,
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:  # fmt: skip
        """Wait until `condition` gives something true, and give that."""
        deadline = time.monotonic() + patience_s
        while True:
            if meanwhile is not None:
                meanwhile()
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {patience_s:g} s: {what}\n{self.story()}")
            time.sleep(POLL_S)

    def until_state(
        self, job: str, *states: str, patience_s: float = PATIENCE_S,
        meanwhile: Callable[[], None] | None = None,
    ) -> JobInfo:  # fmt: skip
        """Wait for one of these states; at once an AssertionError if it ends otherwise."""

        def look() -> JobInfo | None:
            try:
                info = self.job(job)
            except Unreachable:
                return None
            wrong = info.state in OUTCOMES and info.state not in states
            assert not wrong, f"{info.state}: {info.note}\n{self.story()}"
            return info if info.state in states else None

        what = f"{job} is {' or '.join(states)}"
        found: JobInfo = self.until(what, look, patience_s, meanwhile)
        return found

    def story(self) -> str:
        """What everything has written, and what is seen now."""
        texts = [f"{p.kind} {p.node} {p.pid}: {p.title}" for p in self.processes()]
        for path in sorted(self.folder.glob("*.log")):
            texts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}")
        for path in sorted(self.folder.glob("*/logs/**/*.log")):
            texts.append(f"--- {path.relative_to(self.folder)}\n{path.read_text()[-4000:]}")
        return "\n".join(texts)

    # Ending -----------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """SIGKILL, if it is still that one."""
        if start_time(process.pid) == process.started:
            os.kill(process.pid, signal.SIGKILL)

    def kill_root(self, name: str) -> None:
        """SIGKILL to an agent or the controller; what is below goes by itself."""
        self.processes()
        self.popens[name].kill()
        self.popens[name].wait(GONE_S)

    def _end_gently(self) -> None:
        self.processes()
        for name in ("controller", *self.agents):
            popen = self.popens.get(name)
            if popen is not None and popen.poll() is None:
                popen.send_signal(signal.SIGTERM)
                if name != "controller":
                    # Nobody is left to take its work over.
                    time.sleep(POLL_S)
                    popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GONE_S
        while self.processes() and time.monotonic() < deadline:
            for popen in self.popens.values():
                popen.poll()
            time.sleep(POLL_S)

    def _kill_everything(self) -> list[Process]:
        left = self.processes()
        for process in left:
            self.kill(process)
        for popen in self.popens.values():
            popen.kill()
            popen.wait(GONE_S)
        return left

    def _look_for_rest(self) -> None:
        # Killed processes leave names and folders that the next agent of the machine sweeps, as
        # this does.
        clear = msgspec.json.encode(Clear(str(self.folder / "none")))
        subprocess.run(
            [sys.executable, "-m", "penstock.cluster.hosting"], input=clear, check=True,
            env=self.environment(), capture_output=True, timeout=PATIENCE_S,
        )  # fmt: skip
        self.left["files"] = [path.name for path in (self.folder / "tmp").iterdir()]
        pids = {str(pid) for pid, _ in self._seen}
        names = [name for name in os.listdir("/dev/shm") if "ps-" in name or "penstock" in name]
        self.left["segments"] = [n for n in names if pids & set(re.findall(r"\d+", n))]


def kind_of(title: str, is_root: bool) -> str:
    """What a process is, by its title."""
    if is_root:
        return "controller" if "controller" in title else "agent"
    if "fork server" in title:
        return "fork server"
    if title.startswith("penstock: net"):
        return "net"
    if title.startswith("penstock: job "):
        return "job"
    if title.startswith("penstock:") and title.endswith("]"):
        return "subtask"
    if title.startswith("penstock: agent"):
        return "job agent"
    return "other"
