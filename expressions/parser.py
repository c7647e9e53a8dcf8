"""Reads one SQL expression into a tree. Precedence is SQL's; no statements, no subqueries.

Promises: the tree covers the whole text, or SyntaxFault names the place. Accepts the syntax of
scalar expressions and calls of aggregates; whether functions exist is for the checker to say.
"""

from __future__ import annotations

from .cursor import Cursor, SyntaxFault
from .lexer import TIME_UNITS, WORDS_RESERVED, LexicalError, Token, tokenize
from .syntax import Node

DEPTH_MAX = 100
"""Nesting of one expression; each level takes several frames of the stack here."""

_BINARY: dict[str, int] = {
    "or": 5, "and": 10,
    "=": 20, "==": 20, "<>": 20, "!=": 20, "<": 20, "<=": 20, ">": 20, ">=": 20, "<=>": 20,
    "~": 20, "~*": 20, "!~": 20, "!~*": 20, "@>": 20, "<@": 20,
    "|": 21, "^": 22, "#": 22, "&": 23, "<<": 24, ">>": 24,
    "+": 30, "-": 30, "*": 40, "/": 40, "%": 40, "||": 40,
}  # fmt: skip
_NOT, _IS, _COMPARE, _AT, _SIGN, _CAST = 15, 17, 20, 41, 45, 50
_RESERVED = frozenset(WORDS_RESERVED.split())
_TYPED_TEXT = frozenset(["date", "timestamp", "time", "timestamptz"])
_SEPARATORS = frozenset(["from", "for", "placing", "to"])
_UNITS = frozenset(unit + plural for unit in TIME_UNITS.split() for plural in ("", "s"))


def parse(text: str) -> Node:
    """The tree of `text`; raises SyntaxFault.

    >>> parse("a + b * 2").name
    '+'
    """
    try:
        tokens = tokenize(text)
    except LexicalError as error:
        raise SyntaxFault(error.reason, error.position, error.position + 1) from None
    if tokens[0].kind == "end":
        raise SyntaxFault("an expression is missing here", 0, max(1, len(text)))
    parser = _Parser(tokens)
    node = parser.expression(0)
    parser.finish()
    return node


class _Parser(Cursor):
    """Precedence climbing over a list of tokens."""

    def finish(self) -> None:
        """Requires that all text was read."""
        if self._now.is_word("as"):
            raise self._fault("names go before the expression as keywords: name='…', without AS")
        if self._now.is_word("from", "where"):
            raise self._fault("an expression, not a query: use p.sql(…) for queries")
        if self._now.is_word("over"):
            raise self._fault("window functions work on tables: use p.sql(…)")
        if self._now.is_op(","):
            raise self._fault("one expression, not a list of them")
        if self._now.kind != "end":
            raise self._fault("the expression should have ended before this")

    # -- operators

    def expression(self, least: int) -> Node:
        """An expression whose operators all bind at least as tightly as `least`."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._fault(f"nested more than {DEPTH_MAX} deep")
        left = self._prefix()
        while True:
            longer = self._infix(left, least)
            if longer is None:
                break
            left = longer
        self._depth -= 1
        return left

    def _infix(self, left: Node, least: int) -> Node | None:
        token = self._now
        if token.is_op("::") and least <= _CAST:
            self._take()
            written = self._type()
            return _pieces("cast", left.start, self._last_end(), (left,), ("(", f"::{written})"))
        if token.is_op("[") and least <= _CAST:
            return self._subscript(left)
        if token.is_op(".") and least <= _CAST:
            return self._field(left)
        if token.is_word("at") and least <= _AT:
            return self._at_time_zone(left)
        if token.is_word("is") and least <= _IS:
            return self._is(left)
        if token.is_word("not", "in", "between", "like", "ilike", "similar") and least <= _COMPARE:
            return self._predicate(left)
        name = token.text.lower()
        power = _BINARY.get(name) if token.kind in ("op", "word") else None
        if power is None or power < least:
            return None
        self._take()
        right = self.expression(power + 1)
        shown = {"and": "AND", "or": "OR", "==": "="}.get(name, token.text)
        return Node("binary", shown, left.start, right.end, (left, right))

    def _subscript(self, left: Node) -> Node:
        self._take()
        first = self.expression(0)
        children: tuple[Node, ...] = (left, first)
        parts: tuple[str, ...] = ("", "[", "]")
        if self._now.is_op(":"):
            self._take()
            children, parts = (left, first, self.expression(0)), ("", "[", ":", "]")
        self._want("]")
        return _pieces("subscript", left.start, self._last_end(), children, parts)

    def _field(self, left: Node) -> Node:
        self._take()
        token = self._take()
        if token.kind not in ("word", "quoted"):
            raise self._fault("the name of a field is missing after the dot", token)
        key = Node("literal", "'" + token.value.replace("'", "''") + "'", token.start, token.end)
        return _pieces("field", left.start, token.end, (left, key), ("", "[", "]"))

    def _at_time_zone(self, left: Node) -> Node:
        self._take()
        self._want_word("time")
        self._want_word("zone")
        zone = self.expression(_AT + 1)
        parts = ("(", " AT TIME ZONE ", ")")
        return _pieces("at time zone", left.start, zone.end, (left, zone), parts)

    def _is(self, left: Node) -> Node:
        self._take()
        words = " IS "
        if self._now.is_word("not"):
            self._take()
            words += "NOT "
        if self._now.is_word("distinct"):
            self._take()
            self._want_word("from")
            right = self.expression(_COMPARE + 1)
            parts = ("(", f"{words}DISTINCT FROM ", ")")
            return _pieces("is distinct", left.start, right.end, (left, right), parts)
        if not self._now.is_word("null", "true", "false", "unknown"):
            raise self._fault("after IS comes NULL, TRUE, FALSE, UNKNOWN or DISTINCT FROM")
        state = self._take()
        parts2 = ("(", f"{words}{state.text.upper()})")
        return _pieces(f"is {state.text.lower()}", left.start, state.end, (left,), parts2)

    def _predicate(self, left: Node) -> Node:
        words = " "
        if self._now.is_word("not"):
            self._take()
            words = " NOT "
        token = self._take()
        if token.is_word("between"):
            low = self.expression(_COMPARE + 1)
            self._want_word("and")
            high = self.expression(_COMPARE + 1)
            parts = ("(", f"{words}BETWEEN ", " AND ", ")")
            return _pieces("between", left.start, high.end, (left, low, high), parts)
        if token.is_word("in"):
            return self._in(left, words)
        if token.is_word("similar"):
            self._want_word("to")
            words += "SIMILAR TO "
        elif token.is_word("like", "ilike"):
            words += f"{token.text.upper()} "
        else:
            raise self._fault("after NOT comes IN, BETWEEN, LIKE, ILIKE or SIMILAR TO", token)
        pattern = self.expression(_COMPARE + 1)
        if not self._now.is_word("escape"):
            parts3 = ("(", words, ")")
            return _pieces("like", left.start, pattern.end, (left, pattern), parts3)
        self._take()
        sign = self.expression(_COMPARE + 1)
        parts4 = ("(", words, " ESCAPE ", ")")
        return _pieces("like", left.start, sign.end, (left, pattern, sign), parts4)

    def _in(self, left: Node, words: str) -> Node:
        if self._now.kind == "param":
            token = self._take()
            values = Node("param", token.value, token.start, token.end)
            parts = ("(", f"{words}IN ", ")")
            return _pieces("in param", left.start, token.end, (left, values), parts)
        self._want("(")
        if self._now.is_word("select", "with"):
            raise self._fault("no queries inside expressions: use p.sql(…) for those")
        items = [self.expression(0)]
        while self._now.is_op(","):
            self._take()
            items.append(self.expression(0))
        self._want(")")
        written = ("(", f"{words}IN (", *([", "] * (len(items) - 1)), "))")
        return _pieces("in", left.start, self._last_end(), (left, *items), written)

    # -- what stands alone

    def _prefix(self) -> Node:
        token = self._take()
        if token.kind == "end":
            raise self._fault("the expression ends too early", token)
        if token.kind in ("string", "number"):
            return Node("literal", token.text, token.start, token.end)
        if token.kind == "param":
            return Node("param", token.value, token.start, token.end)
        if token.is_op("("):
            if self._now.is_word("select", "with"):
                raise self._fault("no queries inside expressions: use p.sql(…) for those")
            inner = self.expression(0)
            self._want(")")
            return _pieces("paren", token.start, self._last_end(), (inner,), ("", ""))
        if token.is_op("-", "+", "~"):
            return self._sign(token)
        if token.is_op("["):
            return self._array(token)
        if token.is_op("*"):
            raise self._fault("* stands for all columns only inside count(*)", token)
        if token.kind == "quoted":
            if self._now.is_op("("):
                return self._call(token)
            return Node("column", token.value, token.start, token.end, quoted=True)
        if token.kind == "word":
            return self._word(token)
        raise self._fault("an expression should begin here", token)

    def _sign(self, token: Token) -> Node:
        number = self._now
        if token.text == "-" and number.kind == "number":
            # One literal, for the least integer has no positive twin that could be negated.
            self._take()
            return Node("literal", f"(-{number.text})", token.start, number.end)
        inner = self.expression(_SIGN)
        return Node("unary", token.text, token.start, inner.end, (inner,))

    def _array(self, token: Token) -> Node:
        items: list[Node] = []
        while not self._now.is_op("]"):
            if items:
                self._want(",")
            items.append(self.expression(0))
        self._take()
        if not items:
            raise self._fault("an empty array has no type", token)
        parts = ("make_array(", *([", "] * (len(items) - 1)), ")")
        return _pieces("array", token.start, self._last_end(), tuple(items), parts)

    def _word(self, token: Token) -> Node:
        word = token.text.lower()
        if word in ("null", "true", "false"):
            return Node("literal", word.upper(), token.start, token.end)
        if word == "not":
            inner = self.expression(_NOT)
            return Node("unary", "NOT", token.start, inner.end, (inner,))
        if word == "case":
            return self._case(token)
        if word == "interval" and (self._now.kind in ("string", "number")):
            return self._interval(token)
        if word in _TYPED_TEXT and self._now.kind == "string":
            value = self._take()
            return Node("literal", f"{word.upper()} {value.text}", token.start, value.end)
        if word == "array" and self._now.is_op("["):
            return self._array(self._take())
        if word in ("cast", "try_cast") and self._now.is_op("("):
            return self._cast(token)
        if word == "exists" and self._now.is_op("("):
            raise self._fault("no queries inside expressions: use p.sql(…) for those", token)
        if self._now.is_op("("):
            return self._call(token)
        if word in _RESERVED:
            raise self._fault(
                f'{token.text} is a word of SQL; a column of this name is written "{token.text}"',
                token,
            )
        return Node("column", token.text, token.start, token.end)

    def _case(self, token: Token) -> Node:
        children: list[Node] = []
        parts = ["(CASE "]
        if not self._now.is_word("when"):
            children.append(self.expression(0))
            parts.append(" ")
        if not self._now.is_word("when"):
            raise self._fault("WHEN is missing here")
        while self._now.is_word("when"):
            self._take()
            parts[-1] += "WHEN "
            children.append(self.expression(0))
            self._want_word("then")
            parts.append(" THEN ")
            children.append(self.expression(0))
            parts.append(" ")
        if self._now.is_word("else"):
            self._take()
            parts[-1] += "ELSE "
            children.append(self.expression(0))
            parts.append(" ")
        self._want_word("end")
        parts[-1] += "END)"
        return _pieces("case", token.start, self._last_end(), tuple(children), tuple(parts))

    def _interval(self, token: Token) -> Node:
        value = self._take()
        written = value.value
        if self._now.kind == "word" and self._now.text.lower() in _UNITS:
            written += " " + self._take().text
        return Node("literal", f"INTERVAL '{written}'", token.start, self._last_end())

    def _cast(self, token: Token) -> Node:
        self._want("(")
        inner = self.expression(0)
        self._want_word("as")
        written = self._type()
        self._want(")")
        parts = (f"{token.text.upper()}(", f" AS {written})")
        kind = token.text.lower()
        return _pieces(kind, token.start, self._last_end(), (inner,), parts)

    # -- calls

    def _call(self, name: Token) -> Node:
        self._want("(")
        lower = name.text.lower()
        if lower in ("extract", "position", "trim"):
            return self._special_call(name, lower)
        distinct = self._now.is_word("distinct")
        if distinct:
            self._take()
        star = self._now.is_op("*") and self._next.is_op(")")
        if star:
            self._take()
        children: list[Node] = []
        parts = [f"{lower}("]
        while not self._now.is_op(")"):
            if children:
                parts.append(self._separator())
            children.append(self.expression(0))
        self._want(")")
        if any(part != ", " for part in parts[1:]):
            parts.append(")")
            return _pieces("call", name.start, self._last_end(), tuple(children), tuple(parts))
        where = self._where()
        return Node(
            "call",
            name.value,
            name.start,
            self._last_end(),
            tuple(children),
            quoted=name.kind == "quoted",
            distinct=distinct,
            star=star,
            where=where,
        )

    def _separator(self) -> str:
        if self._now.is_op(","):
            self._take()
            return ", "
        if self._now.is_word(*_SEPARATORS):
            return f" {self._take().text.upper()} "
        if self._now.is_word("order"):
            raise self._fault("ORDER BY inside a call is not supported")
        raise self._fault("a comma or ) is missing here")

    def _where(self) -> Node | None:
        if not (self._now.is_word("filter") and self._next.is_op("(")):
            return None
        self._take()
        self._take()
        self._want_word("where")
        where = self.expression(0)
        self._want(")")
        return where

    def _special_call(self, name: Token, lower: str) -> Node:
        children: list[Node] = []
        if lower == "extract":
            unit = self._take()
            self._want_word("from")
            parts = [f"extract({unit.value} FROM "]
        elif lower == "position":
            children.append(self.expression(_COMPARE + 1))
            self._want_word("in")
            parts = ["position(", " IN "]
        else:
            parts = ["trim("]
            if self._now.is_word("both", "leading", "trailing"):
                parts[0] += self._take().text.upper() + " "
        while not self._now.is_op(")"):
            if len(children) == len(parts):
                parts.append(self._separator())
            elif self._now.is_word("from"):
                self._take()  # trim(BOTH FROM x)
                parts[-1] += "FROM "
            children.append(self.expression(0))
        self._want(")")
        parts.append(")")
        return _pieces(lower, name.start, self._last_end(), tuple(children), tuple(parts))


def _pieces(
    name: str, start: int, end: int, children: tuple[Node, ...], parts: tuple[str, ...]
) -> Node:
    assert len(parts) == len(children) + 1
    return Node("pieces", name, start, end, children, parts)
