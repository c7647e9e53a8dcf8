"""How Python values become bytes: pickle, and for classes of the user's script a name.

A class that was defined in `__main__` or in a function cannot be imported in a subtask: there it
exists only because the program was sent by value. Such a class is written as its name together
with its definition. When it is read, the running program's class of that name wins, as with any
pickle; the stored definition is the fallback. Opening a stranger's bytes runs their code.
"""

from __future__ import annotations

import io
import pickle
import sys
import weakref
from typing import Any

import cloudpickle

_DEFINITIONS: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()
_DEFINED: dict[tuple[str, str], type] = {}


def dump_value(value: Any) -> bytes:
    """The bytes of `value`; raises what pickle raises."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):
        # Slower by a Python call per object, so it is only tried when it is needed.
        out = io.BytesIO()
        _Pickler(out, pickle.HIGHEST_PROTOCOL).dump(value)
        return out.getvalue()


def load_value(data: bytes | memoryview) -> Any:
    """The inverse of dump_value."""
    return pickle.loads(data)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and not _is_importable(obj):
            if obj not in _DEFINITIONS:
                _DEFINITIONS[obj] = cloudpickle.dumps(obj)
            return _class_by_name, (obj.__module__, obj.__qualname__, _DEFINITIONS[obj])
        return NotImplemented


def _is_importable(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    if found is None:
        return False
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _class_by_name(module: str, qualname: str, definition: bytes) -> type:
    running = _running_class(module, qualname)
    if running is not None:
        return running
    known = _DEFINED.get((module, qualname))
    if known is None:
        known = cloudpickle.loads(definition)
        assert isinstance(known, type)
        _DEFINED[module, qualname] = known
    return known


def _running_class(module: str, qualname: str) -> type | None:
    """The class of the running program: imported, or brought by its cloudpickle."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if isinstance(found, type):
        return found
    tracked = getattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_CLASS", {})
    for kind in list(tracked):
        if kind.__module__ == module and kind.__qualname__ == qualname:
            return kind if kind not in _DEFINED.values() else None
    return None
