"""Splits the text of an expression into tokens that remember where they stood.

Promises: every character of the text belongs to one token or is blank or comment; positions are
offsets into the text as the user wrote it. Knows nothing of grammar or of columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

TokenKind = Literal["word", "quoted", "string", "number", "param", "op", "end"]

TEXT_CHARS_MAX = 65_536
"""Longest expression; generated text of this length is a mistake, and parsing is recursive."""

WORDS_RESERVED = (
    "and or is in like ilike between as from where group order by having select with union then "
    "else when end on using join limit distinct filter over into values escape similar"
)
"""Words that name no column unless they are quoted."""
TIME_UNITS = "nanosecond microsecond millisecond second minute hour day week month year"

_PIECES = re.compile(
    r"""
    (?P<blank>\s+|--[^\n]*|/\*.*?\*/)
  | (?P<string>(?:[xX])?'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")*")
  | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<param>\$[A-Za-z_]\w*)
  | (?P<word>[^\W\d]\w*)
  | (?P<op>::|<=>|<>|!=|>=|<=|==|\|\||<<|>>|!~\*|!~|~\*|@>|<@|=>|[-+*/%=<>()\[\],.&|^#~:])
    """,
    re.VERBOSE | re.DOTALL,
)


class LexicalError(ValueError):
    """A character that starts no token, or text that never ends; `position` says where."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position


@dataclass(frozen=True)
class Token:
    """`text` as written; `value` without quotes (words as written, in their own case)."""

    kind: TokenKind
    text: str
    start: int
    end: int

    @property
    def value(self) -> str:
        """The name or the text that the token stands for."""
        if self.kind == "quoted":
            return self.text[1:-1].replace('""', '"')
        if self.kind == "string":
            return self.text[self.text.index("'") + 1 : -1].replace("''", "'")
        return self.text[1:] if self.kind == "param" else self.text

    def is_word(self, *words: str) -> bool:
        """Whether this is one of these unquoted words, in any case."""
        return self.kind == "word" and self.text.lower() in words

    def is_op(self, *operators: str) -> bool:
        """Whether this is one of these signs."""
        return self.kind == "op" and self.text in operators


def tokenize(text: str) -> list[Token]:
    """All tokens of `text`, closed by one of kind "end"; raises LexicalError.

    >>> [t.text for t in tokenize('a >= 1.5 -- why')]
    ['a', '>=', '1.5', '']
    """
    if len(text) > TEXT_CHARS_MAX:
        raise LexicalError(f"longer than {TEXT_CHARS_MAX:,} characters", 0)
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        piece = _PIECES.match(text, at)
        if piece is None:
            raise LexicalError(_why(text, at), at)
        kind = piece.lastgroup
        if kind != "blank":
            tokens.append(Token(kind, piece.group(), at, piece.end()))  # type: ignore[arg-type]
        at = piece.end()
    tokens.append(Token("end", "", len(text), len(text)))
    return tokens


def _why(text: str, at: int) -> str:
    if text[at] == "'":
        return "this text never ends: a closing ' is missing"
    if text[at] == '"':
        return 'this name never ends: a closing " is missing'
    if text.startswith("/*", at):
        return "this comment never ends: */ is missing"
    if text[at] == ";":
        return "one expression, not several statements: leave out the ;"
    if text[at] == "`":
        return 'names are quoted with ", not with `'
    if text[at] == "$":
        return "a parameter is a $ and a name, as in $rate"
    return f"{text[at]!r} means nothing here"


def quote_name(name: str) -> str:
    """`name` as a quoted identifier: exact, whatever its case or characters."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """`text` as a string literal."""
    return "'" + text.replace("'", "''") + "'"
