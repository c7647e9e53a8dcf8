"""Routers: every row goes to the one subtask that owns its key group, in order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import GROUP_SHIFT, owned_groups
from penstock.operators.kernels.compile import MODE_VARIABLE
from penstock.runtime.partition import BroadcastRouter, HashRouter, RebalanceRouter


def rows(count: int) -> pa.RecordBatch:
    numbers = np.arange(count)
    return pa.record_batch({"key": numbers % 37, "n": numbers})


@pytest.mark.parametrize("parallelism", [1, 2, 3, 5, 8, 64, 300])
def test_every_row_goes_once_to_the_owner_of_its_key_group_in_order(parallelism: int) -> None:
    batch = rows(5000)
    seen = []
    for target, part in HashRouter(["key"], parallelism)(batch):
        groups = hash_columns(part, ["key"]) >> np.uint64(GROUP_SHIFT)
        owned = owned_groups(target, parallelism)
        assert all(int(group) in owned for group in np.unique(groups))
        numbers = part["n"].to_pylist()
        assert numbers == sorted(numbers)
        seen += numbers
    assert sorted(seen) == list(range(5000))


KEYS = {
    "int64": pa.array([0, -1, 2**63 - 1, -(2**63), 5] * 40, pa.int64()),
    "uint64": pa.array([0, 2**64 - 1, 2**63, 7, 5] * 40, pa.uint64()),
    "int8": pa.array([0, -128, 127, 3, 4] * 40, pa.int8()),
    "uint32": pa.array([0, 2**32 - 1, 9, 3, 4] * 40, pa.uint32()),
    "timestamp": pa.array([0, -1, 10**15, 3, 4] * 40, pa.timestamp("us")),
    "with nulls": pa.array([0, None, 10**15, 3, 4] * 40, pa.int64()),
    "bool": pa.array([True, False, None, False, True] * 40, pa.bool_()),
    "float": pa.array([0.0, -0.0, float("nan"), 1.5, -2.0] * 40, pa.float64()),
    "text": pa.array(["", "a", "longer than eight", None, "b"] * 40, pa.string()),
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("parallelism", [2, 7, 256, 257])
def test_compiled_and_plain_routers_deal_alike(
    kind: str, parallelism: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = KEYS[kind]
    batch = pa.record_batch({"key": column, "n": np.arange(len(column))}).slice(3)
    keys = [["key"], ["key", "n"]]
    compiled = [HashRouter(each, parallelism)(batch) for each in keys]
    monkeypatch.setenv(MODE_VARIABLE, "reference")
    plain = [HashRouter(each, parallelism)(batch) for each in keys]
    for one, other in zip(compiled, plain, strict=True):
        assert [(target, part["n"].to_pylist()) for target, part in one] == [
            (target, part["n"].to_pylist()) for target, part in other
        ]


def test_rebalance_deals_batches_out_in_turn_and_cuts_large_ones() -> None:
    router = RebalanceRouter(3, first=2, batch_rows=10)
    routed = [(target, part.num_rows) for target, part in router(rows(25))]
    assert routed == [(2, 10), (0, 10), (1, 5)]
    assert [target for target, _ in router(rows(1))] == [2]


def test_broadcast_gives_all_rows_to_everyone() -> None:
    routed = BroadcastRouter(3)(rows(4))
    assert [(target, part.num_rows) for target, part in routed] == [(0, 4), (1, 4), (2, 4)]
