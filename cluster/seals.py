"""Seals on the frames of a connection that was opened with a shared secret.

The keys are drawn from the secret and both nonces of the handshake, one for each direction, and a
seal covers the frame's place in its direction: a frame that is changed, repeated, left out, sent
back, or taken from another connection does not fit. Seals do not hide anything; TLS does.
"""

from __future__ import annotations

import hmac
import struct

SEAL_BYTES = 32
_PLACE = struct.Struct("<QI")
"""The frame's number in its direction, and the size of its body."""


def draw_keys(secret: bytes, transcript: bytes) -> tuple[bytes, bytes]:
    """Keys of the two directions: from the side that connected, and to it.

    `transcript` is what runtime/net's `authenticate` returned.
    """
    label = b"penstock link seals "
    from_caller = hmac.digest(secret, label + b"caller\0" + transcript, "sha256")
    from_listener = hmac.digest(secret, label + b"listener\0" + transcript, "sha256")
    return from_caller, from_listener


class Seals:
    """One direction of one connection; without a key (under TLS) its seals are empty.

    >>> sender, receiver = Seals(b"key"), Seals(b"key")
    >>> seal = sender.next_seal(b"body")
    >>> receiver.fits(b"body", seal), receiver.fits(b"body", seal)
    (True, False)
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0
        self.size = SEAL_BYTES if key else 0

    def next_seal(self, body: bytes | bytearray) -> bytes:
        """The seal of the next body. Each call counts one frame."""
        if not self._key:
            return b""
        seal = hmac.new(self._key, _PLACE.pack(self._number, len(body)), "sha256")
        seal.update(body)
        self._number += 1
        return seal.digest()

    def fits(self, body: bytes | bytearray, seal: bytes | bytearray) -> bool:
        """Whether the next body carries the right seal. Each call counts one frame."""
        return hmac.compare_digest(self.next_seal(body), seal)
