"""A place in a list of tokens: looking, taking, faults that say where, and names of SQL types."""

from __future__ import annotations

from .lexer import Token

_TYPE_TAILS = {
    "double": ("precision",),
    "character": ("varying",),
    "char": ("varying",),
    "timestamp": ("with", "without", "time", "zone"),
    "time": ("with", "without", "time", "zone"),
    "int": ("unsigned",),
    "integer": ("unsigned",),
    "bigint": ("unsigned",),
    "smallint": ("unsigned",),
    "tinyint": ("unsigned",),
}


class SyntaxFault(ValueError):
    """The text is not an expression; `start` and `end` mark what was found there."""

    def __init__(self, reason: str, start: int, end: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.start = start
        self.end = end


class Cursor:
    """Moves forward over tokens; the last one is of kind "end" and is never passed."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    # -- tokens

    @property
    def _now(self) -> Token:
        return self._tokens[self._at]

    @property
    def _next(self) -> Token:
        return self._tokens[min(self._at + 1, len(self._tokens) - 1)]

    def _take(self) -> Token:
        token = self._now
        if token.kind != "end":
            self._at += 1
        return token

    def _last_end(self) -> int:
        return self._tokens[self._at - 1].end

    def _fault(self, reason: str, token: Token | None = None) -> SyntaxFault:
        token = token or self._now
        return SyntaxFault(reason, token.start, max(token.end, token.start + 1))

    def _want(self, sign: str) -> Token:
        if not self._now.is_op(sign):
            raise self._fault(f"{sign} is missing here")
        return self._take()

    def _want_word(self, word: str) -> Token:
        if not self._now.is_word(word):
            raise self._fault(f"{word.upper()} is missing here")
        return self._take()

    def _type(self) -> str:
        token = self._take()
        if token.kind != "word":
            raise self._fault("a type is missing here, such as bigint, double, varchar", token)
        written = token.text
        tails = _TYPE_TAILS.get(token.text.lower(), ())
        while self._now.is_word(*tails):
            written += " " + self._take().text
        if self._now.is_op("(", "<"):
            written += self._type_arguments()
        while self._now.is_op("[") and self._next.is_op("]"):
            self._take()
            self._take()
            written += "[]"
        return written

    def _type_arguments(self) -> str:
        written = ""
        depth = 0
        while True:
            token = self._take()
            if token.kind not in ("op", "word", "number"):
                raise self._fault("this type is not complete", token)
            depth += {"(": 1, "<": 1, ")": -1, ">": -1, ">>": -2}.get(token.text, 0)
            written += token.text
            if depth <= 0:
                return written
