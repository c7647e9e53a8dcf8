"""bit_and, bit_or and bit_xor of integers, in the type of the argument; nulls are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_array, fixed_values

from .accumulators import Accumulator, Numbers, present
from .grouping import Groups

_FUNCTIONS: dict[str, np.ufunc] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@dataclass(frozen=True, kw_only=True)
class Bits(Accumulator):
    """One integer per group; NULL if there was none."""

    kind: pa.DataType
    function: Literal["and", "or", "xor"]

    @property
    def repeats_matter(self) -> bool:
        return self.function == "xor"

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (self.kind,)

    @property
    def result(self) -> pa.DataType:
        return self.kind

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        return self.merge(groups, [argument])

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        valid = present(parts[0])
        values = fixed_values(parts[0])
        neutral: Any = ~values.dtype.type(0) if self.function == "and" else values.dtype.type(0)
        found = groups.reduce(_FUNCTIONS[self.function], np.where(valid, values, neutral))
        return [fixed_array(self.kind, found, groups.any(valid))]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return parts[0]
