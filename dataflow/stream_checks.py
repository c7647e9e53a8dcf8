"""What the methods of Stream ask before they make a node: names, options, outputs, operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from penstock.expressions.check import Checker
from penstock.expressions.expression import ExprLike, as_expr
from penstock.expressions.functions import Functions
from penstock.operators.error_policy import DeadLetter, Drop, ErrorPolicy, Fail
from penstock.operators.processor import DEAD, MAIN
from penstock.operators.python_operator import Operator

from .graph import Options, Tap, user_columns
from .identity import check_name
from .schema_check import check_new_name, find_column, plan_error
from .values import Item, Rename


def checked_items(
    items: Mapping[str, ExprLike], schema: pa.Schema, functions: Functions, who: str, location: str
) -> list[Item]:
    """`name="expression"` keywords, understood."""
    checker = Checker(schema, functions)
    for name in items:
        check_new_name(name, who, location)
    return [(name, checker.check(text, who, location)) for name, text in items.items()]


def kept_columns(
    columns: Sequence[str], schema: pa.Schema, functions: Functions, location: str
) -> list[Item]:
    """The positional arguments of select(): columns as they are."""
    checker = Checker(schema, functions)
    kept = []
    for column in columns:
        checked = checker.check(column, "select", location)
        if checked.column is None:
            text = as_expr(column).text
            raise plan_error(
                "select", f"{text!r} needs a name", location, f'Write  select(name="{text}")'
            )
        if checked.column not in user_columns(schema):
            find_column(checked.column, schema, "select", location)
        kept.append((checked.column, checked))
    return kept


def renaming(names: Mapping[str, str], schema: pa.Schema, location: str) -> Rename:
    """`new="old"` keywords; no two columns may meet."""
    pairs = []
    for new, old in names.items():
        check_new_name(new, "rename", location)
        pairs.append((find_column(old, schema, "rename", location), new))
    new_names = dict(pairs)
    if len(new_names) < len(pairs):
        raise plan_error("rename", "one column is given two names", location)
    after = [new_names.get(name, name) for name in user_columns(schema)]
    for name in after:
        if after.count(name) > 1:
            raise plan_error("rename", f'two columns would be called "{name}"', location)
    return Rename(tuple(pairs))


def checked_options(name: str | None, parallelism: int | None, location: str) -> Options:
    """Options of an operator."""
    if name is not None:
        check_name(name, location)
    whole = isinstance(parallelism, int) and not isinstance(parallelism, bool)
    if parallelism is not None and (not whole or parallelism < 1):
        raise plan_error(
            f"parallelism={parallelism!r}", "a number of subtasks is 1 or more", location
        )
    return Options(name, parallelism)


def checked_policy(policy: Any, tap: Tap, location: str) -> ErrorPolicy:
    """A policy for the operator of `tap`, which must have rows that can fail alone."""
    if isinstance(policy, type) and issubclass(policy, (Fail, Drop)):
        policy = policy()
    if not isinstance(policy, (Fail, Drop, DeadLetter)):
        raise plan_error(
            "on_error",
            f"{policy!r} is not a policy",
            location,
            'There are ps.Fail(), ps.Drop() and ps.DeadLetter("bad/").',
        )
    if DEAD not in tap.node.outputs and not isinstance(policy, Fail):
        raise plan_error(
            f"on_error on {tap.node.name}", "it has no rows that could fail alone", location
        )
    return policy


def side_tap(tap: Tap, output: str, location: str) -> Tap:
    """Another output of the tap's operator."""
    if output not in tap.node.outputs or output == DEAD:
        known = [name for name in tap.node.outputs if name not in (MAIN, DEAD)]
        raise plan_error(
            tap.node.name,
            f"it has no output {output!r}",
            location,
            f"outputs: {', '.join(known) or '(only its rows)'}",
        )
    return Tap(tap.node, output)


def require_operator(operator: Any, location: str) -> None:
    """A batch-level Operator, as an instance."""
    if isinstance(operator, Operator):
        return
    what = operator.__name__ if isinstance(operator, type) else type(operator).__name__
    advice = (
        f"Pass an instance:  process({what}())"
        if isinstance(operator, type)
        else "Write a class that derives from ps.Operator or ps.KeyedOperator."
    )
    raise plan_error(f"process({what})", "it is not an operator", location, advice)
