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


class Unbound:
    """Stands on the class for what `bind` puts on the twin: whoever reads it before learns why.

    It does what `__getattr__` would do, but leaves the twins' attributes to the interpreter's fast
    path, which a class with `__getattr__` loses.
    """

    def __get__(self, declared: Declared | None, owner: type[Any]) -> Any:
        if declared is None:
            return self
        raise StateError(
            f"{declared.owner}.{declared.name} is state, and there is none before the operator "
            "opens\n"
            "  Use it in process, process_group and on_timer; open() only connects and loads."
        )


UNBOUND: Any = Unbound()


class KeyedDeclaration(Declared):
    """State or a timer of the current key. Unbound until the operator is open."""

    _row: CurrentRow = UNBOUND

    def _bound_to(self, row: CurrentRow) -> Self:
        twin = copy.copy(self)
        twin._row = row
        return twin
