"""Which rows a top N takes back and adds, from how often each was and is among the first.

Pure: rows are numbers, in order, those of a group next to each other. What goes lies just before
what comes in its place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from penstock.elements.changelog import ADDED, TAKEN_BACK

from .row_order import Numbers, run_starts

Mask = npt.NDArray[np.bool_]


class Moves(NamedTuple):
    """Changes: of which row, with which rank (from 0), taken back or added."""

    rows: Numbers
    ranks: Numbers
    weights: npt.NDArray[np.int8]


def sums_before(values: Numbers, groups: Numbers) -> Numbers:
    """The sum of the values before each one in its group.

    >>> sums_before(np.array([2, 1, 5, 3]), np.array([0, 0, 4, 4])).tolist()
    [0, 2, 0, 5]
    """
    before = np.cumsum(values) - values
    return before - before[run_starts(groups)]


def first_of(times: Numbers, groups: Numbers, count: int) -> Numbers:
    """How often each row is among the first `count` of its group, being there `times` times."""
    return np.clip(count - sums_before(times, groups), 0, times)


def row_moves(groups: Numbers, before: Numbers, after: Numbers) -> Moves:
    """Rows that were among the first more, or less, often than they are; ranks do not count."""
    more = after - before
    gone = np.repeat(np.arange(len(more)), np.maximum(-more, 0))
    come = np.repeat(np.arange(len(more)), np.maximum(more, 0))
    return _paired(groups, gone, _place(groups[gone]), come, _place(groups[come]))


def rank_moves(groups: Numbers, before: Numbers, after: Numbers) -> Moves:
    """Ranks that have another row than they had."""
    had, have = np.repeat(np.arange(len(groups)), before), np.repeat(np.arange(len(groups)), after)
    had_rank, have_rank = _place(groups[had]), _place(groups[have])
    gone = _differs(groups, had, had_rank, have)
    come = _differs(groups, have, have_rank, had)
    return _paired(groups, had[gone], had_rank[gone], have[come], have_rank[come])


def _place(groups: Numbers) -> Numbers:
    return np.arange(len(groups)) - run_starts(groups)


def _differs(groups: Numbers, rows: Numbers, ranks: Numbers, others: Numbers) -> Mask:
    """Whether the same rank of the same group is another row in `others`, or nobody's."""
    of_others = groups[others]
    owners = groups[rows]
    starts = np.searchsorted(of_others, owners)
    there = ranks < np.searchsorted(of_others, owners, side="right") - starts
    differs = np.ones(len(rows), np.bool_)
    differs[there] = others[(starts + ranks)[there]] != rows[there]
    return differs


def _paired(
    groups: Numbers, gone: Numbers, gone_place: Numbers, come: Numbers, come_place: Numbers
) -> Moves:
    rows, places = np.concatenate([gone, come]), np.concatenate([gone_place, come_place])
    weights = np.repeat(np.array([TAKEN_BACK, ADDED], np.int8), [len(gone), len(come)])
    order = np.lexsort([weights, places, groups[rows]])
    return Moves(rows[order], places[order], weights[order])
