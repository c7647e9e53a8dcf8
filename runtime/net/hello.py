"""HELLO: what two nodes must agree on before the first row. Pure.

Each end says which job, generation and attempt it serves, who it is, and all channels of the pair
with their schemas' fingerprints. A node of another attempt is refused here and never reaches a
slab (hazards 17, 45).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from penstock.elements.errors import ProtocolError

from .inbound import Inbound
from .outbound import Outbound


class ChannelOffer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One end of a channel: `slots` and `slot_bytes` of that end's own region."""

    number: int
    fingerprint: int
    slots: int
    slot_bytes: int


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first frame each way."""

    job: str
    generation: int
    attempt: int
    node: str
    """Who speaks."""
    peer: str
    """Whom the speaker means to speak to."""
    compression: str
    sends: list[ChannelOffer]
    receives: list[ChannelOffer]


_decoder = msgspec.msgpack.Decoder(Hello)
_encoder = msgspec.msgpack.Encoder()


def encode_hello(hello: Hello) -> bytes:
    """The body of a HELLO frame."""
    return _encoder.encode(hello)


def decode_hello(body: bytes | bytearray) -> Hello:
    """Raises ProtocolError for anything but a Hello."""
    try:
        hello: Hello = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a HELLO cannot be read: {error}") from error
    return hello


def offers(channels: Sequence[Inbound] | Sequence[Outbound]) -> list[ChannelOffer]:
    """The ends of one direction as HELLO names them."""
    return [
        ChannelOffer(each.number, each.fingerprint, each.size.slots, each.size.slot_bytes)
        for each in channels
    ]


def check_hello(mine: Hello, theirs: Hello) -> None:
    """Raises ProtocolError, whose text also goes to the peer, unless the two belong together."""
    _same("job", mine.job, theirs.job)
    _same("generation", mine.generation, theirs.generation)
    _same("attempt", mine.attempt, theirs.attempt)
    _same("peer", mine.peer, theirs.node)
    _same("node", mine.node, theirs.peer)
    _same("compression", mine.compression, theirs.compression)
    _match(mine.sends, theirs.receives, f"{mine.node} to {theirs.node}")
    _match(theirs.sends, mine.receives, f"{theirs.node} to {mine.node}")


def remote_slots(theirs: Hello) -> Mapping[int, int]:
    """By channel number, the slots that the peer receives into."""
    return {offer.number: offer.slots for offer in theirs.receives}


def _same(what: str, mine: object, theirs: object) -> None:
    if mine != theirs:
        raise ProtocolError(f"the two nodes do not agree on the {what}: {mine!r} and {theirs!r}")


def _match(sending: list[ChannelOffer], receiving: list[ChannelOffer], way: str) -> None:
    senders = {offer.number: offer for offer in sending}
    receivers = {offer.number: offer for offer in receiving}
    if len(senders) != len(sending) or len(receivers) != len(receiving):
        raise ProtocolError(f"a channel from {way} is named twice")
    if odd := sorted(senders.keys() ^ receivers.keys()):
        raise ProtocolError(f"channels from {way} are known to one end only: {odd[:10]}")
    for number, sender in senders.items():
        receiver = receivers[number]
        if sender.fingerprint != receiver.fingerprint:
            raise ProtocolError(
                f"channel {number} from {way} has two schemas: {sender.fingerprint:#x} and "
                f"{receiver.fingerprint:#x}"
            )
        if sender.slot_bytes > receiver.slot_bytes:
            raise ProtocolError(
                f"channel {number} from {way} has slots of {sender.slot_bytes:,} bytes at its "
                f"beginning and of {receiver.slot_bytes:,} at its end"
            )
