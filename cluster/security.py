"""Who belongs to a cluster: a shared secret in a file, or certificates of the cluster's authority.

Whoever holds either can run code on every node, so files that others can read are refused, and
files made here are readable by their owner only. Nothing is ever overwritten.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.elements.clock import Clock, SystemClock
from penstock.elements.errors import SettingsError
from penstock.runtime.net.credentials import SECRET_BYTES_MIN, Credentials

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SECRET_BYTES = 32
SECRET_FILE_BYTES_MAX = 4096
AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825
BACKDATED = datetime.timedelta(hours=1)
"""Nodes whose clocks are behind accept a new certificate too."""


def load_credentials(secret_file: str | None, tls: tuple[str, str, str] | None) -> Credentials:
    """From the file of a shared secret, or from TLS files: certificate, key, authority.

    Raises SettingsError unless exactly one is given and can be used.
    """
    if (secret_file is None) == (tls is None):
        raise SettingsError(
            "a cluster needs either --secret-file FILE or --tls CERTIFICATE KEY AUTHORITY, and "
            "the same kind everywhere"
        )
    if secret_file is not None:
        return Credentials(secret=_read_secret(secret_file))
    assert tls is not None
    certificate, key, authority = (os.path.abspath(os.path.expanduser(path)) for path in tls)
    _check_private(key, "the TLS key")
    credentials = Credentials(tls=(certificate, key, authority))
    # Files that do not fit together are noticed now, not at the first connection.
    credentials.tls_context(server=True)
    return credentials


def make_secret(path: str | os.PathLike[str]) -> None:
    """A new shared secret in a file of mode 0600; raises SettingsError if there is a file."""
    _write_new(Path(path), (secrets.token_hex(SECRET_BYTES) + "\n").encode(), 0o600)


def make_tls(
    directory: str | os.PathLike[str], names: Sequence[str], clock: Clock | None = None
) -> dict[str, tuple[str, str, str]]:
    """Certificates for `names`, signed by the authority in `directory`, made if there is none.

    By name: certificate, key, authority, as `load_credentials` takes them. Names may be
    addresses. Keep authority-key.pem away from the nodes: whom it signs for is a member. Raises
    SettingsError if a name has a certificate already.
    """
    _require_cryptography()
    now = _now(clock or SystemClock())
    folder = Path(directory).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_path = folder / "authority.pem"
    if authority_path.exists():
        authority, key = _load_authority(folder)
    else:
        authority, key = _make_authority(folder, now)
    made: dict[str, tuple[str, str, str]] = {}
    for name in names:
        certificate_path, key_path = _make_member(folder, name, authority, key, now)
        made[name] = (str(certificate_path), str(key_path), str(authority_path))
    return made


# Files --------------------------------------------------------------------------------------------


def _read_secret(path: str) -> bytes:
    path = os.path.expanduser(path)
    _check_private(path, "the secret file")
    try:
        with open(path, "rb") as file:
            secret = file.read(SECRET_FILE_BYTES_MAX + 1).strip()
    except OSError as error:
        raise SettingsError(f"the secret file {path}: {error.strerror}") from error
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_FILE_BYTES_MAX:
        raise SettingsError(
            f"the secret file {path} holds {len(secret):,} bytes; it must hold "
            f"{SECRET_BYTES_MIN} to {SECRET_FILE_BYTES_MAX:,} random ones"
        )
    return secret


def _check_private(path: str, what: str) -> None:
    try:
        found = os.stat(path)
    except OSError as error:
        raise SettingsError(f"{what} {path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise SettingsError(f"{what} {path} is not a file")
    if found.st_uid not in (os.geteuid(), 0):
        raise SettingsError(f"{what} {path} belongs to another user")
    if found.st_mode & 0o077:
        raise SettingsError(
            f"{what} {path} can be read by others, who could then run code on every node: "
            f"chmod 600 {path}, and make a new one if someone may have"
        )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """All of the file or none of it, and never over another."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(scratch, path)
        finally:
            os.unlink(scratch)
    except FileExistsError as error:
        raise SettingsError(f"{path} exists already and is left as it is") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error


# Certificates -------------------------------------------------------------------------------------


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "making certificates needs the cryptography package: pip install 'penstock[tls]'"
        ) from error


def _now(clock: Clock) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(clock.wall_ns() // 1_000_000_000, datetime.UTC)


def _make_authority(
    folder: Path, now: datetime.datetime
) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject("penstock cluster")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    # The key first: a certificate without one could never sign anything.
    _write_new(folder / "authority-key.pem", _private_bytes(key), 0o600)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    _write_new(folder / "authority.pem", pem, 0o644)
    return certificate, key


def _load_authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key_path = folder / "authority-key.pem"
    _check_private(str(key_path), "the authority's key")
    try:
        key = load_pem_private_key(key_path.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"the authority in {folder} cannot be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"{key_path} was not made by Penstock: it is no elliptic curve key")
    return certificate, key


def _make_member(
    folder: Path,
    name: str,
    authority: x509.Certificate,
    authority_key: EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    stem = name.replace(":", "-")
    if not stem or os.path.basename(stem) != stem or stem.startswith(("authority", ".")):
        raise SettingsError(f"{name!r} cannot name a certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(name)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    certificate_path, key_path = folder / f"{stem}.pem", folder / f"{stem}-key.pem"
    _write_new(key_path, _private_bytes(key), 0o600)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    _write_new(certificate_path, pem, 0o644)
    return certificate_path, key_path


def _subject(name: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _private_bytes(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
