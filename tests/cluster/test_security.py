"""Secrets and certificates: what is made, and what is refused."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from penstock.cluster.security import load_credentials, make_secret, make_tls
from penstock.elements.clock import SystemClock
from penstock.elements.errors import SettingsError


def test_a_secret_is_random_and_for_its_owner_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "secret", tmp_path / "b" / "secret"
    make_secret(first)
    make_secret(second)
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    loaded = load_credentials(str(first), None)
    assert len(loaded.secret) == 64
    assert loaded.secret != load_credentials(str(second), None).secret
    assert os.listdir(tmp_path / "a") == ["secret"]


def test_a_secret_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    make_secret(path)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="exists already"):
        make_secret(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["secret"]


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    make_secret(path)
    for mode in (0o640, 0o604, 0o620, 0o666):
        path.chmod(mode)
        with pytest.raises(SettingsError, match="chmod 600"):
            load_credentials(str(path), None)


@pytest.mark.parametrize("content", [b"", b"short", b"\n" * 100, b"x" * 5000])
def test_a_secret_of_no_use_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="bytes"):
        load_credentials(str(path), None)


def test_a_secret_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere.*No such file"):
        load_credentials(str(tmp_path / "nowhere"), None)
    with pytest.raises(SettingsError, match="not a file"):
        load_credentials(str(tmp_path), None)


def test_exactly_one_kind_is_given(tmp_path: Path) -> None:
    make_secret(tmp_path / "secret")
    for secret, tls in ((None, None), (str(tmp_path / "secret"), ("a", "b", "c"))):
        with pytest.raises(SettingsError, match="either"):
            load_credentials(secret, tls)


def test_certificates_are_signed_by_the_authority_and_keys_are_private(tmp_path: Path) -> None:
    made = make_tls(tmp_path, ["controller", "10.0.0.7", "fe80::7"])
    for certificate, key, authority in made.values():
        load_credentials(None, (certificate, key, authority))
        assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
        told = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-CAfile", authority, certificate],
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stderr
    assert stat.S_IMODE((tmp_path / "authority-key.pem").stat().st_mode) == 0o600


def test_the_authority_signs_for_further_names_and_repeats_none(tmp_path: Path) -> None:
    make_tls(tmp_path, ["one"])
    authority = (tmp_path / "authority.pem").read_bytes()
    later = make_tls(tmp_path, ["two"])
    assert (tmp_path / "authority.pem").read_bytes() == authority
    load_credentials(None, later["two"])
    with pytest.raises(SettingsError, match="exists already"):
        make_tls(tmp_path, ["two"])


@pytest.mark.parametrize("name", ["", "../out", "a/b", ".hidden", "authority"])
def test_names_that_cannot_be_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot name"):
        make_tls(tmp_path / "tls", [name])


def test_a_key_that_others_can_read_and_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = make_tls(tmp_path, ["one", "two"])
    certificate, key, authority = made["one"]
    with pytest.raises(SettingsError, match="cannot be used"):
        load_credentials(None, (certificate, made["two"][1], authority))
    os.chmod(key, 0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_credentials(None, made["one"])


def test_certificates_are_valid_for_nodes_whose_clock_is_a_little_behind(tmp_path: Path) -> None:
    class Late(SystemClock):
        def wall_ns(self) -> int:
            return super().wall_ns() + 50 * 60 * 1_000_000_000

    ((certificate, _, authority),) = make_tls(tmp_path, ["one"], Late()).values()
    told = subprocess.run(
        ["openssl", "verify", "-CAfile", authority, certificate], capture_output=True, check=False
    )
    assert told.returncode == 0
