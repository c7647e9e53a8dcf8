"""Timers as operators declare them, and what on_timer is given."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self, cast

from penstock.elements.errors import PlanError

from .current_row import CurrentRow
from .declaration import UNBOUND, KeyedDeclaration
from .instants import Instant, instant, instant_ns
from .timer_service import TimerService


@dataclass(frozen=True, slots=True)
class Fired:
    """A timer that fires: `name` is the attribute it was declared as, `time` what it was set to."""

    name: str
    time: datetime
    time_ns: int
    tag: str = ""


class Timer(KeyedDeclaration):
    """One pending timer per key (and tag): `set` arms or moves it, on_timer gets a `Fired`.

    Event time by default: it fires when the watermark has passed; at the end of data all fire.
    `processing_time=True` goes by the wall clock; such timers are dropped (and counted) at the end
    of data unless `fire_at_end=True`, and their results may differ between two runs.
    """

    _service: TimerService = UNBOUND
    _what: str = UNBOUND

    def __init__(self, *, processing_time: bool = False, fire_at_end: bool = False) -> None:
        if fire_at_end and not processing_time:
            raise PlanError("Timer(fire_at_end=True): event-time timers always fire at the end")
        self.processing_time, self.fire_at_end = processing_time, fire_at_end

    def bind(self, service: TimerService, row: CurrentRow) -> Self:
        """The working twin."""
        twin = self._bound_to(row)
        twin._service = service
        twin._what = f"{self.name}.set"
        return twin

    def set(self, when: Instant, tag: str = "") -> None:
        """Arm, or move if it is pending. An instant that has passed fires after this batch."""
        row = self._row
        self._service.set(
            row.key,
            row.hashes[row.index],
            timer_tag(self.name, tag) if tag else self.name,
            instant_ns(when, self._what),
        )

    def clear(self, tag: str = "") -> None:
        """Disarm."""
        self._service.cancel(self._row.key, timer_tag(self.name, tag))

    @property
    def pending(self) -> datetime | None:
        """When it will fire, if it is armed without a tag."""
        return cast("datetime | None", self.view(self._row.key))

    def view(self, key: Hashable) -> Any:
        """When it will fire for `key`, for tests."""
        time_ns = self._service.pending(key, timer_tag(self.name, ""))
        return None if time_ns is None else instant(time_ns)


def timer_tag(name: str, tag: str) -> str:
    """How a declared timer and the user's tag are stored: one text, ordered by name first."""
    return f"{name}\x1f{tag}" if tag else name


def fired(stored_tag: str, time_ns: int) -> Fired:
    """The inverse, for on_timer."""
    name, _, tag = stored_tag.partition("\x1f")
    return Fired(name, instant(time_ns), time_ns, tag)
