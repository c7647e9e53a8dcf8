"""`expr(text, **params)`: an expression with values in it, never built by f-string.

Promises: an Expr is immutable and plain data; its values become typed SQL literals that cannot
end early whatever they hold. A string is accepted wherever an Expr is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from penstock.elements.errors import PlanError

from .lexer import quote_text

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT64_MAX = 2**64 - 1
_DECIMAL_DIGITS_MAX = 38


@dataclass(frozen=True)
class Expr:
    """The text of an expression and the values of its `$name` parameters."""

    text: str
    params: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.text

    def value(self, name: str) -> Any:
        """The value of parameter `name`; KeyError if it has none."""
        return dict(self.params)[name]


ExprLike = str | Expr


def expr(text: str, **params: Any) -> Expr:
    """An expression with parameters: `expr("price * $rate", rate=0.908)`.

    Values may be None, bool, int, float, str, bytes, Decimal, datetime, date, time, timedelta;
    after IN also a list of them: `expr("carrier IN $few", few=["AA", "UA"])`.
    """
    if not isinstance(text, str):
        raise PlanError(f"expr: an expression is a string, not {type(text).__name__}")
    frozen = tuple((name, _frozen(value)) for name, value in sorted(params.items()))
    for name, value in frozen:
        for each in value if isinstance(value, tuple) else (value,):
            literal(each, f"${name}")
    return Expr(text, frozen)


def as_expr(expression: ExprLike) -> Expr:
    """Strings become an Expr without parameters; PlanError for anything else."""
    if isinstance(expression, Expr):
        return expression
    if isinstance(expression, str):
        return Expr(expression)
    raise PlanError(
        f"expressions are strings or ps.expr(…), not {type(expression).__name__}: {expression!r}\n"
        '  Values enter as parameters: ps.expr("price * $rate", rate=0.908)'
    )


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_frozen(each) for each in value)
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0:
        return item()  # a NumPy scalar
    return value


def literal(value: Any, what: str) -> str:
    """`value` as typed SQL text; raises PlanError naming `what` if it has no such form.

    >>> literal("it's", "$name"), literal(-1, "$n"), literal(None, "$x")
    ("'it''s'", '(-1)', 'NULL')
    """
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return _integer(value, what)
    if isinstance(value, float):
        if math.isfinite(value):
            return f"CAST('{value!r}' AS DOUBLE)"
        return f"CAST('{'NaN' if math.isnan(value) else 'inf' if value > 0 else '-inf'}' AS DOUBLE)"
    if isinstance(value, str):
        if "\0" in value:
            raise PlanError(f"{what}: text with a NUL character has no place in an expression")
        return quote_text(value)
    if isinstance(value, (bytes, bytearray)):
        return f"X'{bytes(value).hex()}'"
    if isinstance(value, Decimal):
        return _decimal(value, what)
    text = _time_literal(value)
    if text is None:
        hint = " (a list may only follow IN)" if isinstance(value, tuple) else ""
        raise PlanError(
            f"{what}: a {type(value).__name__} cannot be a value in an expression{hint}\n"
            "  Possible: None, bool, int, float, str, bytes, Decimal, datetime, date, time, "
            "timedelta"
        )
    return text


def _integer(value: int, what: str) -> str:
    if not INT64_MIN <= value <= UINT64_MAX:
        raise PlanError(f"{what}: {value} does not fit in 64 bits; pass a Decimal or a float")
    return f"({value})" if value < 0 else str(value)


def _decimal(value: Decimal, what: str) -> str:
    if not value.is_finite():
        raise PlanError(f"{what}: {value} is not a number that a decimal column can hold")
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    scale = max(0, -exponent)
    precision = max(len(digits) + max(0, exponent), scale, 1)
    if precision > _DECIMAL_DIGITS_MAX:
        raise PlanError(f"{what}: {value} has more than {_DECIMAL_DIGITS_MAX} digits")
    return f"CAST('{value:f}' AS DECIMAL({precision}, {scale}))"


def _time_literal(value: Any) -> str | None:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return f"arrow_cast('{value.isoformat()}', 'Timestamp(Microsecond, None)')"
        instant = value.astimezone(UTC).replace(tzinfo=None).isoformat()
        return f"arrow_cast('{instant}', 'Timestamp(Microsecond, Some(\"UTC\"))')"
    if isinstance(value, date):
        return f"DATE '{value.isoformat()}'"
    if isinstance(value, time) and value.tzinfo is None:
        return f"arrow_cast('{value.isoformat()}', 'Time64(Microsecond)')"
    if isinstance(value, timedelta):
        seconds = value.days * 86_400 + value.seconds
        total = seconds * 1_000_000 + value.microseconds
        return f"INTERVAL '{total} microseconds'"
    return None
