"""What a log names, writes and merges, against a list of rows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from penstock.elements.keygroup import KEY_GROUPS, KeyGroupRange
from penstock.elements.signals import WATERMARK_MIN
from penstock.state.log_history import (
    FULL_BYTES,
    MERGED_BYTES_MAX,
    MERGED_PARTS_MIN,
    LogHistory,
    LogPart,
    LogSeal,
    to_merge,
)

KB = 1024


def part(run: str, size: int = KB, low: int = 0, high: int = 10) -> LogPart:
    return LogPart(run, size, 0, "op", "log", 0, KEY_GROUPS, KEY_GROUPS, 1, low, high)


def runs(sealed: LogSeal) -> list[str]:
    return [each.run for each in sealed.parts]


def test_rows_are_written_again_until_a_checkpoint_that_has_them_is_known_to_be_complete() -> None:
    log = LogHistory()
    log.append()
    first = log.seal()
    log.append()
    second = log.seal()
    assert (first.appends, second.appends, log.first) == (1, 2, 0)
    assert runs(second) == []
    log.confirm(first, [part("a")], written=True)
    assert (log.first, runs(log.seal())) == (1, ["a"])
    # The second one holds all rows itself: it names no part of the first.
    log.confirm(second, [part("b")], written=True)
    assert (log.first, runs(log.seal())) == (2, ["b"])


def test_rows_stay_while_a_later_checkpoint_may_have_to_do_without_the_part_of_an_earlier() -> None:
    log = LogHistory()
    log.append()
    first = log.seal()
    log.cut(100)
    second = log.seal()
    log.confirm(first, [part("a")], written=True)
    assert (log.first, log.kept) == (1, 0)
    # The second names no part, since it was sealed before the first was known to be complete.
    log.confirm(second, [], written=False)
    assert (log.first, log.kept, runs(log.seal())) == (0, 0, [])
    assert log.cut_of(0) == 100


def test_rows_that_were_too_few_for_a_part_stay_pending() -> None:
    log = LogHistory([part("old")])
    log.append()
    log.confirm(log.seal(), [part("old")], written=False)
    assert (log.first, log.appends, runs(log.seal())) == (0, 1, ["old"])


def test_a_cut_covers_what_was_there_and_nothing_that_comes_later() -> None:
    log = LogHistory([part("a", high=10)])
    log.append()
    log.cut(5)
    log.append()
    log.cut(3)
    assert [log.cut_of(0), log.cut_of(1), log.cut_of(2)] == [5, 3, WATERMARK_MIN]
    sealed = log.seal()
    assert [each.cut_ns for each in sealed.parts] == [5]
    log.confirm(sealed, [*sealed.parts, part("b", low=1, high=9)], written=True)
    # The part "b" was written without what the cuts had taken: they do not touch it again, and
    # a row that is older than they are may have come after them.
    assert [each.cut_ns for each in log.seal().parts] == [5, 3]
    log.cut(8)
    assert [each.cut_ns for each in log.seal().parts] == [8, 8]
    log.cut(10)
    assert runs(log.seal()) == ["a"]


def test_a_cut_between_seal_and_completion_is_not_forgotten() -> None:
    log = LogHistory()
    log.append()
    sealed = log.seal()
    log.cut(7)
    log.append()
    log.confirm(sealed, [part("a")], written=True)
    assert [each.cut_ns for each in log.seal().parts] == [7]
    assert log.cut_of(1) == WATERMARK_MIN


def test_nothing_is_merged_while_a_checkpoint_that_merged_is_undecided() -> None:
    many = [part(str(n)) for n in range(MERGED_PARTS_MIN)]
    log = LogHistory(many)
    first = log.seal()
    assert len(first.merge) == MERGED_PARTS_MIN
    second = log.seal()
    assert (len(second.merge), runs(second)) == (0, [each.run for each in many])
    log.discard(second)
    assert not log.seal().merge
    log.discard(first)
    third = log.seal()
    assert third.merge
    log.confirm(third, [part("merged")], written=False)
    assert runs(log.seal()) == ["merged"]


def test_only_small_neighbours_are_merged_within_the_limit() -> None:
    full = part("full", FULL_BYTES)
    small = [part(str(n), KB) for n in range(MERGED_PARTS_MIN)]
    assert not to_merge(small[1:])
    # A full part in between stays where it is, and so does a large one beside small ones.
    assert not to_merge([*small[:2], full, *small[2:]])
    assert to_merge([*small[:2], full, *small]) == range(3, 3 + MERGED_PARTS_MIN)
    assert to_merge([part("large", 100 * KB), *small]) == range(1, 1 + MERGED_PARTS_MIN)
    assert not to_merge([part(str(n), FULL_BYTES - KB) for n in range(20)])


@pytest.mark.parametrize("spread", [1, 3, 10])
def test_each_byte_is_rewritten_a_few_times_only(spread: int) -> None:
    rng = random.Random(spread)
    parts: list[LogPart] = []
    came = rewritten = most = 0
    for n in range(1000):
        parts.append(part(str(n), round(50 * KB * spread ** rng.uniform(-1, 1))))
        came += parts[-1].size
        merge = to_merge(parts)
        if merge:
            size = sum(parts[at].size for at in merge)
            assert size <= MERGED_BYTES_MAX
            rewritten += size
            parts[merge.start : merge.stop] = [part(f"m{n}", size)]
        most = max(most, sum(each.size < FULL_BYTES for each in parts))
    assert rewritten < 7 * came
    assert most <= 16


def test_a_clipped_part_counts_with_its_share() -> None:
    whole = replace(part("a", 1000), first_group=0, stop_group=100, whole_groups=100)
    clipped = whole.clipped(KeyGroupRange(90, 200))
    assert clipped is not None
    assert (clipped.first_group, clipped.stop_group, clipped.bytes) == (90, 100, 101)
    assert whole.clipped(KeyGroupRange(100, 200)) is None


@pytest.mark.parametrize("seed", range(20))
def test_parts_and_pending_rows_are_what_a_list_would_hold(seed: int) -> None:
    rng = random.Random(seed)
    log = LogHistory()
    rows: list[tuple[int, int]] = []  # (time, number): one an append
    inside: dict[str, list[tuple[int, int]]] = {}
    pending: dict[int, tuple[int, int]] = {}
    open_seals: list[tuple[LogSeal, list[LogPart], bool]] = []
    for number in range(400):
        step = rng.random()
        if step < 0.5:
            row = (rng.randrange(100), number)
            rows.append(row)
            pending[log.appends] = row
            log.append()
        elif step < 0.6:
            before = rng.randrange(60)
            log.cut(before)
            rows = [row for row in rows if row[0] >= before]
        elif step < 0.8:
            open_seals.append(_written(log, pending, inside, rng))
            assert _content(*open_seals[-1][:2], inside, pending, log, open_seals[-1][2]) == rows
        elif open_seals:
            at = rng.randrange(len(open_seals))
            sealed, parts, written = open_seals[at]
            if rng.random() < 0.6:
                log.confirm(sealed, parts, written)
                # Commits come in order: older ones never follow.
                del open_seals[: at + 1]
            else:
                log.discard(sealed)
                del open_seals[at]


def _written(
    log: LogHistory, pending: dict[int, tuple[int, int]], inside: dict[str, list[tuple[int, int]]],
    rng: random.Random,
) -> tuple[LogSeal, list[LogPart], bool]:  # fmt: skip
    """What the snapshot thread makes of a seal."""
    sealed = log.seal()
    parts = list(sealed.parts)
    if sealed.merge:
        found = [r for at in sealed.merge for r in _alive(parts[at], inside)]
        parts[sealed.merge.start : sealed.merge.stop] = _new_part(found, inside)
    young = _pending(log, sealed, pending)
    written = bool(young) and rng.random() < 0.7
    if written:
        parts += _new_part(young, inside)
    return sealed, parts, written


def _new_part(
    found: list[tuple[int, int]], inside: dict[str, list[tuple[int, int]]]
) -> list[LogPart]:
    if not found:
        return []
    name = f"run/{len(inside)}"
    inside[name] = found
    times = [time for time, _ in found]
    return [part(name, KB * len(found), min(times), max(times))]


def _alive(each: LogPart, inside: dict[str, list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return [row for row in inside[each.run] if row[0] >= each.cut_ns]


def _pending(
    log: LogHistory, sealed: LogSeal, pending: dict[int, tuple[int, int]]
) -> list[tuple[int, int]]:
    assert log.kept <= sealed.first
    numbers = range(sealed.first, sealed.appends)
    return [pending[n] for n in numbers if pending[n][0] >= log.cut_of(n)]


def _content(
    sealed: LogSeal, parts: list[LogPart], inside: dict[str, list[tuple[int, int]]],
    pending: dict[int, tuple[int, int]], log: LogHistory, written: bool,
) -> list[tuple[int, int]]:  # fmt: skip
    """What a restore would find."""
    found = [row for each in parts for row in _alive(each, inside)]
    return found if written else found + _pending(log, sealed, pending)
