"""Programs as users write them, each a process of its own: how they start agents, and how they die.

The agent must never import the user's `__main__` again, and must not outlive it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from agent_harness import wait_until_dead

from penstock.runtime.sweep import sweep_directories

HERE = os.path.dirname(__file__)
PROGRAM = f"""
import sys
sys.path.insert(0, {HERE!r})
print("imported once", flush=True)
from agent_harness import Controller, chain, deploy, vertex
from penstock.dataflow.plan import Plan
from penstock.runtime.messages import AgentReady, AttemptGone, Started

greet = lambda name: f"hello from {{name}}"

class Speaker:
    greeting = staticmethod(greet)

    def say(self):
        return self.greeting(__name__)

controller = Controller()
"""
SPEAK = """
controller.handle.send(deploy("call_program", Plan("t", (vertex("a", processor=Speaker()),), ())))
print(controller.wait_for_word(), flush=True)
controller.handle.close()
"""
LINGER = """
import os, time
controller.wait_for(AgentReady)
controller.handle.send(deploy("{entry}", chain("a", "b")))
pids = [controller.wait_for_event(Started).pid for _ in range(2)]
print(controller.handle.pid, *pids, flush=True)
sys.stdin.read()
"""


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "users_script.py"
    script.write_text(PROGRAM + SPEAK)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["imported once", "hello from __main__"]


def test_a_class_of_a_program_without_a_file_runs_in_a_subtask() -> None:
    """As in a notebook: `__main__` has no file, and the class exists in memory only."""
    done = subprocess.run(
        [sys.executable, "-"], input=PROGRAM + SPEAK, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["imported once", "hello from __main__"]


def test_a_program_that_ends_without_closing_takes_its_agent_along() -> None:
    ending = "controller.wait_for(AgentReady)\nprint(controller.handle.pid)\n"
    done = subprocess.run(
        [sys.executable, "-"], input=PROGRAM + ending, capture_output=True, text=True, check=True
    )
    pid = int(done.stdout.splitlines()[-1])
    wait_until_dead([pid])
    assert _directories_of(pid) == []


@pytest.mark.parametrize("entry", ["echo", "deaf"])
def test_a_killed_program_takes_every_process_along(entry: str) -> None:
    """`deaf` holds the interpreter's lock: no thread of it can hear that anyone is gone."""
    with _lingering(entry) as (program, agent, subtasks):
        everyone = [agent, *(p.pid for p in psutil.Process(agent).children(recursive=True))]
        assert set(subtasks) <= set(everyone)
        program.kill()
        wait_until_dead(everyone)


def test_nothing_is_left_when_every_process_is_killed_at_once() -> None:
    with _lingering("echo") as (program, agent, _):
        everyone = [p.pid for p in psutil.Process(program.pid).children(recursive=True)]
        # Stopped, the program cannot tidy up after its agent before it is killed itself.
        program.send_signal(signal.SIGSTOP)
        for pid in [agent, *everyone]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        program.kill()
        wait_until_dead(everyone)
        names = [path.name for path in Path("/dev/shm").iterdir()]
        assert [name for name in names if f"-{agent}-" in name] == []
        sweep_directories()
        assert _directories_of(agent) == []


def _directories_of(agent: int) -> list[Path]:
    found = Path(tempfile.gettempdir()).glob("penstock-*")
    return [path for path in found if f"-{agent}-" in path.name]


class _lingering:
    """A program with two running subtasks: (its process, the agent's pid, the subtasks' pids)."""

    def __init__(self, entry: str) -> None:
        self._program = PROGRAM + LINGER.format(entry=entry)

    def __enter__(self) -> tuple[subprocess.Popen[str], int, list[int]]:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "imported once\n"
        agent, *subtasks = map(int, self._process.stdout.readline().split())
        return self._process, agent, subtasks

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        sweep_directories()
