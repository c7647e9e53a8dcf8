"""What can go wrong when an expression is evaluated, and what the engine's words mean."""

from __future__ import annotations

import re

from penstock.elements.errors import PenstockError

_PREFIX = re.compile(
    r"^(?:DataFusion error|Execution error|Arrow error|External error|Schema error"
    r"|Error during planning|This feature is not implemented|Invalid argument error"
    r"|Compute error|Cast error|Arithmetic overflow|SQL error|ParserError"
    r"|type_coercion|Optimizer rule '\w+' failed\s+caused by)\s*:?\s*",
)
_TYPE_NAMES = {
    "Utf8View": "text",
    "LargeUtf8": "text",
    "Utf8": "text",
    "Boolean": "bool",
    "Date32": "date",
    "Float64": "float64",
    "Float32": "float32",
}
_TYPE_WORD = re.compile(r"\b(Utf8View|LargeUtf8|Utf8|Boolean|Date32|Float64|Float32|U?Int\d+)\b")


class ExpressionError(PenstockError):
    """Rows of a batch could not be evaluated: overflow, a bad cast, an error in a function.

    The batch as a whole gave nothing; smaller batches of the same projection may be tried. The
    exception of a user function, if it was one, is the `__cause__`.
    """


def reason_of(error: BaseException) -> str:
    """The engine's message without its layers of prefixes, in our words for types."""
    text = str(error).strip()
    before = None
    while text != before:
        before = text
        text = _PREFIX.sub("", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    return _TYPE_WORD.sub(lambda m: _TYPE_NAMES.get(m[1], m[1].lower()), text)
