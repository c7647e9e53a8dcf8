"""A channel over TCP keeps the laws of channels: plain, compressed, and under TLS."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from net_pair import LOOPBACK, channel_ends

from penstock.testing.channel import CHANNEL_LAWS, ChannelEnds, MakeChannel


def maker(compression: str) -> MakeChannel:
    def make(schema: pa.Schema, slots: int, slot_bytes: int) -> ChannelEnds:
        return channel_ends(schema, slots, slot_bytes, compression, LOOPBACK)

    return make


@pytest.mark.parametrize("law", CHANNEL_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("compression", ["", "lz4"], ids=["plain", "lz4"])
def test_a_channel_over_tcp_keeps_the_law(
    law: Callable[[MakeChannel], None], compression: str
) -> None:
    law(maker(compression))
