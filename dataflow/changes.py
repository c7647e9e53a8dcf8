"""changes(): an updating stream read as rows that stay, with a column that says +1 or -1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from penstock.elements.changelog import CHANGE, CHANGE_FIELD, HIDDEN, is_updating
from penstock.operators.processor import MAIN, Processor
from penstock.operators.rename_change import RenameChange

from .graph import BuildContext, Columns, Logic, user_columns
from .schema_check import check_new_name, plan_error

if TYPE_CHECKING:
    from .stream import Stream


@dataclass(frozen=True)
class Changes(Logic):
    """`_change` becomes a column of the user's, called `column`."""

    column: str
    kind = "changes"
    takes_updates = True

    @property
    def title(self) -> str:
        """For people."""
        return "changes"

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """The user's columns, the change, `_time`."""
        schema = inputs[0]
        fields = [field for field in schema if field.name not in HIDDEN]
        time = [field for field in schema if field.name in HIDDEN and field.name != CHANGE]
        return {MAIN: pa.schema([*fields, CHANGE_FIELD.with_name(self.column), *time])}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """What is required, but for the change, which rides along."""
        return [required.get(MAIN, frozenset()) - {self.column}]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """Moves a column."""
        return RenameChange(self.outputs(inputs)[MAIN], self.column)

    def describe(self) -> str:
        """The column."""
        return f"changes as {self.column}"


def changes_of(stream: Stream[Any], column: str, location: str) -> Stream[Any]:
    """The append-only stream of `stream`'s changes; raises PlanError of the user's line."""
    if not is_updating(stream._schema):
        raise plan_error(
            "changes", "the stream is not updating: its rows stay as they come", location
        )
    if not isinstance(column, str):
        raise plan_error("changes", f"{column!r} is not a column's name", location)
    check_new_name(column, "changes", location)
    if column in user_columns(stream._schema):
        raise plan_error(
            "changes",
            f'there is a column "{column}" already',
            location,
            'Choose another name:  stream.changes("sign")',
        )
    return stream._then(Changes(column), location)
