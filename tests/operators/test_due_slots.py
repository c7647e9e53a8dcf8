"""Slots that are looked at when their time has come, against a dict."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.windows.due_slots import DueSlots

said = st.dictionaries(st.integers(0, 30), st.integers(-50, 50), max_size=12)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.one_of(said, st.integers(-60, 60)), max_size=30))
def test_each_slot_is_taken_once_at_the_earliest_time_that_was_said_since(steps: list[Any]) -> None:
    due, known = DueSlots(), dict[int, int]()
    due.room(31)
    for step in [*steps, WATERMARK_MAX]:
        if isinstance(step, dict):
            slots, times = (np.array(list(part), np.int64) for part in (step, step.values()))
            due.expect(slots, times)
            known |= {slot: min(time, known.get(slot, time)) for slot, time in step.items()}
            continue
        ready = sorted(slot for slot, time in known.items() if time <= step)
        assert due.take(step).tolist() == ready
        for slot in ready:
            del known[slot]


def test_a_look_at_what_is_not_due_sorts_nothing() -> None:
    due = DueSlots()
    due.room(100)
    for slot in range(100):
        due.expect(np.array([slot]), np.array([slot + 1000]))
        assert not len(due.take(999))
    assert due._runs == []
    assert due.take(1010).tolist() == list(range(11))
    assert len(due._runs) == 1
