"""Declaration: what stands on an operator's class, and how it comes to work on an instance."""

from __future__ import annotations

import copy
from typing import Any, Self

from penstock.elements.errors import StateError

from .current_row import CurrentRow


class Declared:
    """Anything declared on an operator's class; knows the name it was given."""

    name = ""
    owner = ""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        # Python wraps what is raised here, so check_declarations complains instead.
        if not self.name:
            self.name, self.owner = name, owner.__name__


class KeyedDeclaration(Declared):
    """State or a timer of the current key. Unbound until the operator is open."""

    _row: CurrentRow

    def _bound_to(self, row: CurrentRow) -> Self:
        twin = copy.copy(self)
        twin._row = row
        return twin

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and not name.startswith("__"):
            raise StateError(
                f"{self.owner}.{self.name} is state, and there is none before the operator opens\n"
                "  Use it in process, process_group and on_timer; open() only connects and loads."
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
