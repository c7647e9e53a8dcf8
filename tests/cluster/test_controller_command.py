from __future__ import annotations

import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.cli.controller_command import controller
from penstock.cluster.client import Client
from penstock.cluster.security import load_credentials, make_secret, make_tls
from penstock.elements.errors import PenstockError, SettingsError

PATIENCE_S = 60


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the line that it says first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "controller", "--listen", "127.0.0.1:0", "--data",
         str(folder / "data"), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def address_in(line: str) -> str:
    found = re.match(r"controller on (127\.0\.0\.1:\d+) \(term \d+\); join with:  penstock", line)
    assert found is not None, line
    return found[1]


def test_it_says_where_it_is_and_makes_itself_a_secret_that_it_keeps(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, line):
        secret = tmp_path / "data" / "secret"
        assert line.rstrip().endswith(f"--secret-file {secret}")
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        kept = secret.read_text()
        with Client(address_in(line), load_credentials(str(secret), None)) as client:
            assert client.nodes() == []
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=PATIENCE_S)
        assert "jobs go on when the controller is started again" in told
        assert process.returncode == 0
    with serving(tmp_path) as (_, line):
        assert "(term 2)" in line
        assert secret.read_text() == kept


def test_who_has_another_secret_is_turned_away(tmp_path: Path) -> None:
    make_secret(tmp_path / "other")
    with serving(tmp_path) as (_, line):
        client = Client(address_in(line), load_credentials(str(tmp_path / "other"), None))
        with pytest.raises(PenstockError):
            client.nodes()
        client.close()


def test_it_speaks_tls_with_certificates_of_the_cluster(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    made = make_tls(tmp_path / "tls", ["controller", "laptop"])
    with serving(tmp_path, "--tls", *made["controller"]) as (_, line):
        assert made["controller"][2] in line
        assert made["controller"][1] not in line
        with Client(address_in(line), load_credentials(None, made["laptop"])) as client:
            assert client.nodes() == []
    assert not (tmp_path / "data" / "secret").exists()


def test_other_machines_are_let_in_only_with_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("setproctitle.setproctitle", lambda title: None)
    with pytest.raises(SettingsError, match="--secret-file FILE or --tls CERT KEY CA"):
        controller(tmp_path / "data", listen="0.0.0.0:0")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lease": "soon"}, "not a duration"),
        ({"lease": "1s", "heartbeat": "900 ms"}, "at least twice"),
        ({"listen": "nowhere"}, "host:port"),
        ({"secret_file": "none"}, "secret file"),
        ({"secret_file": "a", "tls": ("a", "b", "c")}, "not both"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_say(
    tmp_path: Path, options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would name this process.
    monkeypatch.setattr("setproctitle.setproctitle", lambda title: None)
    with pytest.raises(SettingsError, match=says):
        controller(tmp_path / "data", **options)


def test_directories_that_cannot_be_had_are_named_with_their_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("setproctitle.setproctitle", lambda title: None)
    (tmp_path / "file").touch()
    for data in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(SettingsError, match="--data"):
            controller(data, listen="127.0.0.1:0")
    # Found now, it is the operator's; found later, it would fail every job that is submitted.
    with pytest.raises(SettingsError, match="--state-dir"):
        controller(tmp_path / "data", listen="127.0.0.1:0", state_dir=tmp_path / "file" / "state")
