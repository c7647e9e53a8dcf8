"""scripts/cluster as the README shows it, and on the hosts of a file through a stand-in for ssh."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.testing.chaos import parent_and_title
from penstock.testing.ledger import check_ledger

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "cluster"
PATIENCE_S = 120
TIMEOUT_S = 240


class Place:
    """A folder with its own home and temporary directory, where the script is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")},
            "PENSTOCK_PYTHON": sys.executable, "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            # Compiled kernels are those of the user who runs the tests.
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
        }  # fmt: skip
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, str(SCRIPT), *words]

    def cluster(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One use of the script."""
        return subprocess.run(
            self.command(*words), cwd=self.folder, env=self.environment, capture_output=True,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """What runs with a working directory in the folder."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and int(entry) != os.getpid():
                try:
                    here = os.readlink(f"/proc/{entry}/cwd").startswith(str(self.folder))
                except OSError:
                    continue
                named = parent_and_title(int(entry)) if here else None
                if named is not None:
                    found[int(entry)] = named[1]
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    left = place.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == {}
    assert list((tmp_path / "tmp").iterdir()) == []


def readme_commands() -> list[list[str]]:
    """The lines of the README's section on clusters, without their comments."""
    section = (ROOT / "README.md").read_text().partition("## A cluster\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


@pytest.mark.timeout(TIMEOUT_S)
def test_the_readmes_commands_do_what_it_says(place: Place) -> None:
    """In short: fewer rows, any free port."""
    up, run, kill, ps, start, down = readme_commands()
    assert [words[words.index("scripts/cluster") + 1] for words in (up, run, kill, ps, start, down)]
    done = place.cluster(*up[1:], "--listen", "127.0.0.1:0", "--slots", "2")
    assert done.returncode == 0, done.stderr
    assert (place.folder / ".penstock-cluster" / "cluster.toml").exists()
    secret = place.folder / ".penstock-cluster" / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    at = run.index("scripts/cluster")
    said = dict(word.split("=", 1) for word in run[:at])
    words = [str(ROOT / w) if w.startswith("examples/") else w for w in run[at + 1 :]]
    rows, out = 8_000, place.folder / "ledger-output"
    log = place.folder / "run.log"
    with open(log, "wb") as output:
        running = subprocess.Popen(
            place.command(*words, "--set", "checkpoint_interval_s=0.2"), cwd=place.folder,
            env={**place.environment, **said, "LEDGER_ROWS": str(rows), "LEDGER_OUT": str(out)},
            stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        while not list(out.glob("part-*.parquet")):
            assert running.poll() is None, log.read_text()
        killed = place.cluster(*kill[1:])
        assert re.search(r"agent-2: [1-9]\d* processes killed", killed.stdout), killed.stderr
        seen = place.cluster(*ps[1:])
        assert re.search(r"agent-2 +here +down", seen.stdout), seen.stdout + seen.stderr
        assert "ledger" in seen.stdout
        started = place.cluster(*start[1:])
        assert "agent-2: up" in started.stdout, started.stderr
        assert running.wait(PATIENCE_S) == 0, log.read_text()
        assert "ledger: finished" in log.read_text()
    finally:
        running.kill()
        running.wait()
        ended = place.cluster(*down[1:])
    assert "nothing is left" in ended.stdout, ended.stderr
    assert not (place.folder / ".penstock-cluster").exists()
    assert check_ledger(out, 4, rows).problems == []


@pytest.mark.timeout(TIMEOUT_S)
def test_hosts_of_a_file_are_reached_through_ssh(place: Place, tmp_path: Path) -> None:
    ssh = tmp_path / "fake-ssh"
    ssh.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/called\nshift\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    hosts = tmp_path / "hosts"
    python = f"python={sys.executable}"
    hosts.write_text(f"# two\nalpha 2 zone=a {python}\n\nbeta 3 {python} zone=b disk=ssd\n")
    options = ("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state"))
    up = place.cluster("up", "--hosts", str(hosts), "--ssh", str(ssh), *options)
    try:
        assert up.returncode == 0, up.stderr
        (agents,) = (tmp_path / "home" / ".penstock-cluster").iterdir()
        secret = agents / "agent-1" / "secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        seen = place.cluster("ps").stdout
        assert "disk=ssd,zone=b" in seen
        assert re.search(r"agent-1 +alpha +pid \d+", seen)
        assert "agent-2: " in place.cluster("kill", "2").stdout
        again = place.cluster("up")
        assert again.returncode == 0, again.stderr
    finally:
        down = place.cluster("down")
    assert down.returncode == 0, down.stderr
    assert set((tmp_path / "called").read_text().split()) == {"alpha", "beta"}
    assert not (tmp_path / "home" / ".penstock-cluster").exists()


@pytest.mark.timeout(TIMEOUT_S)
def test_a_port_that_is_taken_and_a_cluster_that_is_up_are_said(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = place.cluster("up", "1", "--listen", address)
    assert refused.returncode == 2
    assert "--listen 127.0.0.1:0" in refused.stderr
    assert not (place.folder / ".penstock-cluster").exists()
    assert place.cluster("up", "1", "--listen", "127.0.0.1:0").returncode == 0
    try:
        assert place.cluster("up", "1").returncode == 0
        more = place.cluster("up", "2")
        assert more.returncode == 2
        assert "is up" in more.stderr
        assert "there is no agent 4" in place.cluster("kill", "4").stderr
        assert "controller: " in place.cluster("kill", "controller").stdout
        assert place.cluster("start", "controller").returncode == 0
    finally:
        assert place.cluster("down", "--keep").returncode == 0
    assert place.processes() == {}
    assert place.cluster("down").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up"], "up N"),
        (["up", "--hosts", "hosts"], "--listen"),
        (["up", "--hosts", "hosts", "--listen", "127.0.0.1:0"], "hosts line 1: 'what'"),
        (["ps"], "no cluster is up"),
        (["kill", "1"], "no cluster is up"),
    ],
)
def test_what_cannot_be_done_exits_with_two(place: Place, words: list[str], said: str) -> None:
    (place.folder / "hosts").write_text("alpha what\n")
    done = place.cluster(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (place.folder / ".penstock-cluster").exists()


def test_nothing_to_end_is_no_fault(place: Place) -> None:
    done = place.cluster("down")
    assert done.returncode == 0
    assert "nothing is up" in done.stdout
