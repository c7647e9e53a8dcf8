"""Who may connect: mutual TLS, a shared secret, or nobody but this machine (and only if asked).

The peer is authenticated before anything of variable size is read from it: a preamble of fixed
size with a fresh nonce each way, then, with a secret, a proof by HMAC from the side that connects
and only then one from the side that listens. Nonces make a recorded session worthless.

A secret proves who is there; it neither hides nor seals what follows. Where the network itself is
not trusted, use TLS.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import ssl
from dataclasses import dataclass

from penstock.elements.errors import ProtocolError, SettingsError

from .frames import PROTOCOL_VERSION
from .streams import Stream

SECRET_BYTES_MIN = 16
MAGIC = b"PSNET"
"""What begins the preamble between net processes; connections for other purposes have their own,
of the same length."""
NONCE_BYTES = 32
PREAMBLE_BYTES = len(MAGIC) + 3 + NONCE_BYTES
"""Magic, version (u16, little endian), mode, nonce."""
PROOF_BYTES = 32
OPEN, SECRET, TLS = 0, 1, 2
"""Modes; both ends must be set up for the same."""
_MODES = {OPEN: "no credentials", SECRET: "a shared secret", TLS: "TLS"}


@dataclass(frozen=True, repr=False)
class Credentials:
    """Exactly one of the three. Never printed.

    `tls`: certificate chain, key, and the authority that signed every node's certificate: whoever
    it signed for is a member. `open_loopback`: anyone on this machine; loopback addresses only.
    """

    secret: bytes = b""
    tls: tuple[str, str, str] | None = None
    open_loopback: bool = False

    def __post_init__(self) -> None:
        if (bool(self.secret), self.tls is not None, self.open_loopback).count(True) != 1:
            raise SettingsError(
                "channels between nodes need TLS certificates or a shared secret, one of them; "
                "on loopback they may do without if that is asked for"
            )
        if self.secret and len(self.secret) < SECRET_BYTES_MIN:
            raise SettingsError(
                f"the shared secret has {len(self.secret)} bytes; take at least "
                f"{SECRET_BYTES_MIN} random ones"
            )

    @property
    def mode(self) -> int:
        """OPEN, SECRET or TLS."""
        return SECRET if self.secret else TLS if self.tls else OPEN

    def check_address(self, address: str) -> None:
        """Raises SettingsError for an address that these credentials are too weak for."""
        if self.open_loopback and not ipaddress.ip_address(address).is_loopback:
            raise SettingsError(
                f"{address} is not a loopback address: channels on it need TLS or a shared secret"
            )

    def tls_context(self, server: bool) -> ssl.SSLContext:
        """Both sides show a certificate of the cluster's own authority, in TLS 1.3."""
        assert self.tls is not None
        certificate, key, authority = self.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The authority is the cluster's own, so its signature says all; nodes have no fixed names.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(certificate, key)
            context.load_verify_locations(authority)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"TLS files {certificate}, {key}, {authority} cannot be used: {error}"
            ) from error
        return context


def authenticate(
    stream: Stream, credentials: Credentials, server: bool, magic: bytes = MAGIC
) -> bytes:
    """Prove ourselves and have the peer proved; raises ProtocolError otherwise.

    Returns both preambles, the connecting side's first: with the secret, keys of this one
    connection can be drawn from them. Since proofs cover them, `magic` binds a proof to its
    purpose.
    """
    mine = _preamble(credentials.mode, magic)
    stream.send([mine])
    theirs = _receive(stream, PREAMBLE_BYTES)
    _check_preamble(theirs, credentials.mode, magic)
    client, listener = (theirs, mine) if server else (mine, theirs)
    if credentials.mode != SECRET:
        return client + listener
    if not server:
        stream.send([_proof(credentials.secret, b"connects", client, listener)])
    proof = _receive(stream, PROOF_BYTES)
    role = b"connects" if server else b"listens"
    if not hmac.compare_digest(proof, _proof(credentials.secret, role, client, listener)):
        raise ProtocolError("the peer does not know the shared secret of this cluster")
    if server:
        stream.send([_proof(credentials.secret, b"listens", client, listener)])
    return client + listener


def _preamble(mode: int, magic: bytes) -> bytes:
    assert len(magic) == len(MAGIC)
    version = PROTOCOL_VERSION.to_bytes(2, "little")
    return magic + version + bytes([mode]) + os.urandom(NONCE_BYTES)


def _check_preamble(theirs: bytes, mode: int, magic: bytes) -> None:
    if theirs[: len(magic)] != magic:
        raise ProtocolError("the peer is no Penstock process of the kind that was expected here")
    version = int.from_bytes(theirs[len(MAGIC) : len(MAGIC) + 2], "little")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the peer speaks version {version} of the protocol between nodes, this node "
            f"{PROTOCOL_VERSION}: install the same Penstock on all nodes"
        )
    if theirs[len(MAGIC) + 2] != mode:
        raise ProtocolError(
            f"the peer does not use {_MODES[mode]}: give all nodes the same credentials"
        )


def _proof(secret: bytes, role: bytes, client: bytes, listener: bytes) -> bytes:
    # The role keeps a proof from being sent back to the one who made it.
    return hmac.digest(secret, b"penstock net " + role + b"\0" + client + listener, "sha256")


def _receive(stream: Stream, size: int) -> bytes:
    data = bytearray(size)
    stream.receive(memoryview(data))
    return bytes(data)
