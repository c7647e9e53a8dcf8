"""Exceptions as data, for the control link: what failed, and what makes it the same again."""

from __future__ import annotations

import traceback

from penstock.elements.errors import PenstockError, UserCodeError

from .messages import Failure

TEXT_CHARS_MAX = 16_000
"""A report longer than this is cut in the middle; the ends say most."""


def failure_of(error: BaseException) -> Failure:
    """The failure that `error` means.

    Poison (hazard 43) is told by operator, exception type and row, else by the source position,
    which is only near the row and moves with the size of what was read. Only rows can poison: a
    feed that is down raises at the same position again and again, and may come back.
    """
    if isinstance(error, UserCodeError):
        kind = error.cause.split(":", 1)[0]
        poison = bytes(error.poison)
        in_hand = error.row is not None or bool(poison)
        place = (error.row or error.source or "") if in_hand else ""
        identity = f"{error.operator}|{kind}|{place}"
        return Failure("UserCodeError", report_text(str(error)), error.operator, identity, poison)
    if isinstance(error, PenstockError):
        return Failure(type(error).__name__, report_text(str(error)))
    report = "".join(traceback.format_exception(error))
    return Failure(type(error).__name__, report_text(report))


def report_text(text: str) -> str:
    """What can be sent of a report: text without half characters, as names of files may hold,
    and not beyond TEXT_CHARS_MAX."""
    text = text.encode(errors="backslashreplace").decode()
    if len(text) <= TEXT_CHARS_MAX:
        return text
    half = TEXT_CHARS_MAX // 2
    return f"{text[:half]}\n…\n{text[-half:]}"
