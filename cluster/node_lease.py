"""A node agent's lease: how long what it runs may go on without word from the controller. Pure.

Time comes in as nanoseconds of CLOCK_BOOTTIME, which counts while the machine sleeps (hazard 18).
The lease runs from the moment the last answered heartbeat was *sent*; the controller counts from
the moment it received it, so the agent's always ends first. Once lapsed it stays so: whoever owns
it kills everything and joins anew.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SendHeartbeat:
    """Send it now; its moment has been noted already."""

    sequence: int


@dataclass(frozen=True)
class Lapsed:
    """Nothing may run any more. Said once."""


LeaseCommand = SendHeartbeat | Lapsed


class NodeLease:
    """One membership, from Welcome to its end."""

    def __init__(self, joined_ns: int, lease_ns: int, heartbeat_ns: int) -> None:
        """`joined_ns` is when Join was sent, or earlier."""
        self._lease_ns = lease_ns
        self._heartbeat_ns = heartbeat_ns
        self._next_ns = joined_ns
        self._sequence = 0
        self._sent: dict[int, int] = {}
        self.expires_ns = joined_ns + lease_ns
        self.lapsed = False

    @property
    def deadline_ns(self) -> int:
        """When `on_time` wants to be called at the latest."""
        return min(self.expires_ns, self._next_ns)

    def on_time(self, now_ns: int) -> list[LeaseCommand]:
        """To be called before anything else is done, at whatever time it is."""
        if self.lapsed:
            return []
        if now_ns >= self.expires_ns:
            self.lapsed = True
            return [Lapsed()]
        if now_ns < self._next_ns:
            return []
        self._sequence += 1
        self._sent[self._sequence] = now_ns
        self._next_ns = now_ns + self._heartbeat_ns
        return [SendHeartbeat(self._sequence)]

    def on_reply(self, sequence: int, now_ns: int) -> list[LeaseCommand]:
        """The controller has answered this heartbeat. What comes too late renews nothing."""
        commands = self.on_time(now_ns)
        sent_ns = self._sent.get(sequence)
        if self.lapsed or sent_ns is None:
            return commands
        self.expires_ns = max(self.expires_ns, sent_ns + self._lease_ns)
        # Links keep order: replies to earlier ones would say nothing new.
        self._sent = {number: at for number, at in self._sent.items() if number > sequence}
        return commands
