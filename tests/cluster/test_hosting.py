"""Services on a host: begun once, known by pid and start time, shot with all below, cleared."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from penstock.cluster.hosting import PROCESS_FILE, Begin, Clear, End, Look, Seen, Shoot
from penstock.testing.chaos import descendants

LEDGER = """
from penstock.testing.ledger import ledger

p = ledger({!r}, 2, 100_000, 1000.0)
"""
PATIENCE_S = 60


def ask(request: Begin | Look | Shoot | End | Clear, folder: Path) -> Seen:
    """As ssh does it."""
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cluster.hosting"], input=msgspec.json.encode(request),
        capture_output=True, timeout=PATIENCE_S, check=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    return msgspec.json.decode(done.stdout, type=Seen)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Begin]:
    (tmp_path / "job.py").write_text(LEDGER.format(str(tmp_path / "out")))
    words = ["run", str(tmp_path / "job.py"), "--state-dir", "{directory}/state"]
    begin = Begin(str(tmp_path / "service"), words, "s" * 32)
    yield begin
    ask(Shoot(begin.directory), tmp_path)


def until_it_works(folder: Path, pid: int) -> list[int]:
    """Pids of it and all below, once it has subtasks."""
    while True:
        found = descendants(pid)
        if any(process.kind == "subtask" for process in found):
            return [process.pid for process in found]
        assert found, (folder / "service" / "log").read_text()


def test_a_service_is_begun_once_and_shot_with_all_below_it(service: Begin, tmp_path: Path) -> None:
    first = ask(service, tmp_path)
    assert first.pid
    assert ask(service, tmp_path).pid == first.pid
    pids = until_it_works(tmp_path, first.pid)
    assert (tmp_path / "service" / "state").is_dir()
    shot = ask(Shoot(service.directory), tmp_path)
    assert (shot.pid, shot.killed >= len(pids)) == (0, True)
    assert not any(descendants(pid) for pid in pids)
    assert ask(Shoot(service.directory), tmp_path).killed == 0


def test_a_service_ends_by_sigterm_and_is_cleared_only_then(service: Begin, tmp_path: Path) -> None:
    pid = ask(service, tmp_path).pid
    pids = until_it_works(tmp_path, pid)
    assert "still runs" in ask(Clear(service.directory), tmp_path).error
    assert ask(End(service.directory), tmp_path).pid == 0
    assert not any(descendants(pid) for pid in pids)
    ask(Clear(service.directory), tmp_path)
    assert not (tmp_path / "service").exists()
    assert ask(Look(service.directory), tmp_path).pid == 0


def test_a_secret_is_kept_from_others(service: Begin, tmp_path: Path) -> None:
    ask(service, tmp_path)
    secret = tmp_path / "service" / "secret"
    assert secret.read_text() == "s" * 32
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}])
def test_a_stale_pid_is_never_shot(tmp_path: Path, change: dict[str, object]) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(")")[2].split()[19]
        named = {"pid": bystander.pid, "started": int(started), "boot": boot}
        (tmp_path / "service").mkdir()
        path = tmp_path / "service" / PROCESS_FILE
        path.write_bytes(msgspec.json.encode({**named, **change}))
        assert ask(Shoot(str(tmp_path / "service")), tmp_path).killed == 0
        assert bystander.poll() is None
        path.write_bytes(msgspec.json.encode(named))
        assert ask(Shoot(str(tmp_path / "service")), tmp_path).killed == 1
    finally:
        bystander.kill()
        bystander.wait()
        assert bystander.stdin is not None
        bystander.stdin.close()


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cluster.hosting"], input=b"{}", capture_output=True,
        timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert msgspec.json.decode(done.stdout, type=Seen).error
