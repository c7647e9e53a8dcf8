"""The memory backend keeps every law of state."""

from __future__ import annotations

import pytest

from penstock.state.memory import memory_backend
from penstock.testing.state import check_law, laws


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", sorted(laws()))
def test_memory_backend_keeps_the_law(name: str, seed: int) -> None:
    check_law(memory_backend, name, laws()[name], seed)
