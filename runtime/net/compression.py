"""Compressed bodies: encoded to scratch, since their size is not known before; decoded in place.

For links slower than about 300 MB/s; on a faster one it costs more than it saves.
"""

from __future__ import annotations

import pyarrow as pa

from penstock.elements.errors import ProtocolError, SettingsError

NONE = ""
CODECS = (NONE, "lz4", "zstd")
WORTHWHILE_BYTES = 1024
"""Smaller bodies go as they are."""


class Compression:
    """One per connection; each method belongs to one thread."""

    def __init__(self, name: str) -> None:
        if name not in CODECS:
            raise SettingsError(f"compression between nodes is one of {CODECS}, not {name!r}")
        self.name = name
        self._codec = pa.Codec(name) if name else None

    def encode(self, body: memoryview) -> memoryview | None:
        """The compressed body, or None where that saves nothing."""
        if self._codec is None or len(body) < WORTHWHILE_BYTES:
            return None
        encoded = memoryview(self._codec.compress(body)).cast("B")
        return encoded if len(encoded) < len(body) else None

    def decode(self, encoded: memoryview, target: memoryview) -> None:
        """Fill `target` exactly; raises ProtocolError for anything that does not."""
        if self._codec is None:
            raise ProtocolError("a compressed frame on a connection without compression")
        try:
            with pa.CompressedInputStream(pa.BufferReader(encoded), self.name) as stream:
                have = 0
                while have < len(target):
                    count = stream.readinto(target[have:])
                    if not count:
                        break
                    have += count
                excess = stream.read(1)
        except OSError as error:
            raise ProtocolError(f"a compressed frame cannot be decoded: {error}") from error
        if have != len(target) or excess:
            raise ProtocolError(f"a compressed frame does not hold {len(target):,} bytes")
