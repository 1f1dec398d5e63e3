"""Know where an object has its state: slots of its class and its bases, a dict, or memory that no one can look into."""

import functools
import sys
import types
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any, Final

from gpusvm.explore.watch_log import WatchedField

__all__ = ["is_frozen", "is_in_python", "slots_of"]

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE


@functools.cache
def slots_of(kind: type) -> tuple[tuple[str, Any], ...]:
    """List the slots of a class and its bases, the base's first: the name as it is stored, and the descriptor."""
    return tuple(
        (name, member)
        for cls in reversed(kind.__mro__)
        if is_in_python(cls)
        for name, field in vars(cls).items()
        for member in (field.plain if isinstance(field, WatchedField) else field,)
        if isinstance(member, types.MemberDescriptorType)
    )


@functools.cache
def is_frozen(kind: type) -> bool:
    """Tell whether attributes of a class are set once: attrs' frozen, and tuples with names."""
    return issubclass(kind, tuple) or getattr(kind.__setattr__, "__name__", "") == "_frozen_setattrs"


@functools.cache
def is_in_python(kind: type) -> bool:
    """Tell whether a class was written in Python, so that its state is in slots, a dict and a known base."""
    if not kind.__flags__ & _HEAP_TYPE:
        return False
    spec = getattr(sys.modules.get(kind.__module__), "__spec__", None)
    origin = getattr(spec, "origin", None)
    return origin != "built-in" and not (origin or "").endswith(tuple(EXTENSION_SUFFIXES))
