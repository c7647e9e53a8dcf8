"""Object pages: only what changed is pickled again, and classes of scripts survive."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.errors import StateError
from penstock.elements.keygroup import ALL_GROUPS
from penstock.state import memory_pages
from penstock.state.backend import RestoredState, StateBackend
from penstock.state.memory import memory_backend
from penstock.state.run import read_run, write_run


def _backend(runs: list[bytes] | None = None) -> StateBackend:
    sections = [s for run in runs or [] for s in read_run(run, {"op"}, ALL_GROUPS)]
    return memory_backend("op", RestoredState(sections, ALL_GROUPS, 0, 1))


def _sealed(backend: StateBackend) -> bytes:
    return write_run(backend.seal().sections())


def test_a_seal_pickles_only_pages_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    dumped: list[Any] = []
    plain = memory_pages.dump_value
    monkeypatch.setattr(
        memory_pages, "dump_value", lambda value: dumped.append(dict(value)) or plain(value)
    )
    backend = _backend()
    state = backend.objects("s", "value")
    for number in range(100):
        state.put(number, number << 50, {"n": number})
    backend.seal()
    assert len(dumped) == 100
    dumped.clear()
    state.put(3, 3 << 50, {"n": 0})
    state.get(4)  # a dict could be changed in place
    state.remove(5)
    backend.seal()
    assert sorted(key for page in dumped for key in page) == [3, 4]
    dumped.clear()
    state.put(6, 6 << 50, 1)
    backend.seal()
    dumped.clear()
    assert state.get(6) == 1  # an int could not
    backend.seal()
    assert dumped == []
    restored = _backend([_sealed(backend)]).objects("s", "value")
    assert restored.get(3) == {"n": 0}
    assert restored.get(5) is None
    assert len(list(restored.keys())) == 99


def test_a_value_that_cannot_be_pickled_is_named() -> None:
    backend = _backend()
    backend.objects("cache", "value").put("key 7", 7, {"lock": threading.Lock()})
    with pytest.raises(StateError, match=r"(?s)op: state cache.*'key 7'.*dict.*open connections"):
        backend.seal()


SCRIPT = """
import sys
from dataclasses import dataclass
from pathlib import Path
import cloudpickle

@dataclass
class Flight:
    number: int
    def label(self):
        return f"{VERSION} {self.number}"

VERSION = sys.argv[3]
if sys.argv[1] == "program":
    Path(sys.argv[2]).write_bytes(cloudpickle.dumps(Flight))
"""

SUBTASK = """
import sys
from pathlib import Path
import cloudpickle
from penstock.elements.keygroup import ALL_GROUPS
from penstock.state.backend import RestoredState
from penstock.state.memory import memory_backend
from penstock.state.run import read_run, write_run

def main(step, program, run):
    Flight = cloudpickle.loads(Path(program).read_bytes()) if program else None
    if step == "write":
        backend = memory_backend("op", RestoredState([], ALL_GROUPS, 0, 1))
        backend.objects("flights", "list").put("N1", 77, [Flight(7), Flight(8)])
        Path(run).write_bytes(write_run(backend.seal().sections()))
    else:
        sections = read_run(Path(run).read_bytes(), {"op"}, ALL_GROUPS)
        backend = memory_backend("op", RestoredState(sections, ALL_GROUPS, 0, 1))
        flights = backend.objects("flights", "list").get("N1")
        backend.seal()
        print([flight.label() for flight in flights], bool(program) and type(flights[0]) is Flight)

main(*sys.argv[1:4])
"""


def test_objects_of_a_scripts_classes_come_back_as_the_running_programs_classes(
    tmp_path: Path,
) -> None:
    """The user's script is `__main__` only in the user's process, never in a subtask."""

    def python(code: str, *arguments: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(code)
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    first, second, run = (str(tmp_path / name) for name in ("first", "second", "run"))
    python(SCRIPT, "program", first, "v1")
    python(SUBTASK, "write", first, run)
    python(SCRIPT, "program", second, "v2")
    assert python(SUBTASK, "read", first, run) == "['v1 7', 'v1 8'] True"
    assert python(SUBTASK, "read", second, run) == "['v2 7', 'v2 8'] True"
    assert python(SUBTASK, "read", "", run) == "['v1 7', 'v1 8'] False"


def test_a_page_of_another_shape_is_refused_by_name() -> None:
    backend = _backend()
    backend.objects("s", "value").put(1, 1, 1)
    (section,) = backend.seal().sections()
    damaged = section.batch.set_column(1, "page", pa.array([b"not a pickle"], pa.large_binary()))
    broken = type(section)("op", "s", "objects", damaged, section.declared)
    restored = memory_backend("op", RestoredState([broken], ALL_GROUPS, 0, 1))
    with pytest.raises(StateError, match="op: state s cannot be restored"):
        restored.objects("s", "value")
