"""Directories of dead agents are swept; those of the living and of others are not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from penstock.runtime import sweep


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sweep, "_SHORT_ROOT", str(tmp_path))
    return tmp_path


def _parts() -> list[str]:
    return sweep.directory_name().split("-")


def _named(root: Path, *, at: int, value: str) -> Path:
    parts = _parts()
    parts[at] = value
    path = root / "-".join(parts)
    path.mkdir()
    (path / "file").write_text("x")
    return path


def _dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_sweep_removes_the_directory_of_a_dead_process(root: Path) -> None:
    stale = _named(root, at=4, value=str(_dead_pid()))
    assert sweep.sweep_directories() == [str(stale)]
    assert not stale.exists()


def test_sweep_removes_the_directory_of_a_process_whose_pid_was_reused(root: Path) -> None:
    stale = _named(root, at=5, value="1")
    assert sweep.sweep_directories() == [str(stale)]


def test_sweep_removes_the_temporary_job_of_a_program_that_was_killed(root: Path) -> None:
    made = Path(sweep.make_job_root())
    assert sweep.sweep_directories() == []
    parts = made.name.split("-")
    parts[4] = str(_dead_pid())
    stale = made.rename(root / "-".join(parts))
    (stale / "job").mkdir()
    assert sweep.sweep_directories() == [str(stale)]
    assert not stale.exists()


def test_sweep_keeps_the_directory_of_the_living(root: Path) -> None:
    made = Path(sweep.make_scratch_root())
    assert made.parent == root
    assert made.stat().st_mode & 0o777 == 0o700
    assert sweep.sweep_directories() == []
    assert made.is_dir()
    sweep.remove_own()
    assert not made.exists()


@pytest.mark.parametrize(
    ("at", "value"), [(1, "999999"), (2, "0f0f0f"), (3, "1")], ids=["user", "boot", "namespace"]
)
def test_sweep_leaves_what_it_cannot_judge(root: Path, at: int, value: str) -> None:
    parts = _parts()
    parts[4], parts[at] = str(_dead_pid()), value
    path = root / "-".join(parts)
    path.mkdir()
    assert sweep.sweep_directories() == []
    assert path.is_dir()


def test_sweep_leaves_names_that_are_not_ours(root: Path) -> None:
    for name in ("penstock-demo", "penstock-0-xyz", "other"):
        (root / name).mkdir()
    assert sweep.sweep_directories() == []


def test_a_long_temporary_directory_does_not_break_the_servers_socket(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SOCKET_DIRECTORY_CHARS_MAX", 10)
    short = tmp_path_factory.mktemp("short")
    monkeypatch.setattr(sweep, "_SHORT_ROOT", str(short))
    scratch = sweep.make_scratch_root()
    assert sweep.socket_directory(scratch) == str(short / sweep.directory_name())
    sweep.remove_own()
    assert list(short.iterdir()) == []
    assert not os.path.exists(scratch)
