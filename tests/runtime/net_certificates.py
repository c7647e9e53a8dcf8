"""Throw-away certificates for tests, by the openssl command."""

from __future__ import annotations

import subprocess
from pathlib import Path

from penstock.runtime.net.credentials import Credentials


def _openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> Path:
    """A cluster's own authority; its files are `name`.pem and `name`.key."""
    _openssl(
        folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
        "-subj", f"/CN={name}",
    )  # fmt: skip
    return folder / f"{name}.pem"


def member(folder: Path, node: str, signer: str, trusted: str) -> Credentials:
    """Credentials of a node whose certificate `signer` signed and which trusts `trusted`."""
    _openssl(
        folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", f"{node}.key", "-out", f"{node}.csr", "-subj", f"/CN={node}",
    )  # fmt: skip
    _openssl(
        folder, "x509", "-req", "-in", f"{node}.csr", "-CA", f"{signer}.pem",
        "-CAkey", f"{signer}.key", "-CAcreateserial", "-out", f"{node}.pem", "-days", "2",
    )  # fmt: skip
    files = [str(folder / name) for name in (f"{node}.pem", f"{node}.key", f"{trusted}.pem")]
    return Credentials(tls=(files[0], files[1], files[2]))
