"""Describe the state of a machine as lines, without identities and time, to compare two of them."""

from __future__ import annotations

from array import array
from collections import deque
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from gpusvm.kernel import Kernel, Task
from gpusvm.kernel.lockdep import Lockdep

# Time, counts of events, what is told to people, and the order of equals.
LEFT_OUT = {
    ("*", "entry"),
    ("*", "counted"),
    ("*", "lock_owner"),
    ("RwSemaphore", "_readers"),
    ("*", "_attempts"),
    ("Permissions", "_changes"),
    ("Srcu", "_readers"),
    ("World", "outcomes"),
    ("World", "checker"),
    ("World", "scenario"),
    ("Ledger", "_accounts"),
    ("Zone", "pgmap"),
}


def plain(value: Any) -> str | None:
    if value is None or isinstance(value, bool | int | str | float | bytes | np.generic):
        return repr(value)
    if isinstance(value, np.ndarray):
        return f"array {value.view(np.ndarray).tolist()}"
    if isinstance(value, array):
        return f"array {list(value)}"
    if isinstance(value, memoryview):
        return "view"
    if isinstance(value, type | FunctionType | BuiltinFunctionType | Kernel | Lockdep):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, range | slice):
        return repr(value)
    return None


def describe(root: Any) -> list[str]:
    lines: list[str] = []
    seen: dict[int, int] = {}
    keep: list[Any] = []
    todo: deque[tuple[str, Any]] = deque([("world", root)])
    while todo:
        path, value = todo.popleft()
        if type(value) is int and value > 0x7000_0000_0000:
            lines.append(f"{path} = id #{seen.get(value)}")
            continue
        text = plain(value)
        if text is not None:
            lines.append(f"{path} = {text}")
            continue
        kind = type(value)
        if kind is Task:
            lines.append(f"{path} = task {value.name} {value.done} {value.waiting_on is not None}")
            continue
        if id(value) in seen:
            lines.append(f"{path} = #{seen[id(value)]}")
            continue
        seen[id(value)] = len(seen)
        keep.append(value)
        lines.append(f"{path} = {kind.__name__} #{seen[id(value)]}")
        if isinstance(value, MethodType):
            todo.append((f"{path}.self", value.__self__))
            continue
        if isinstance(value, dict):
            todo.extend((f"{path}[{i}].key", key) for i, key in enumerate(value))
            todo.extend((f"{path}[{i}]", each) for i, each in enumerate(value.values()))
        elif isinstance(value, list | tuple | deque):
            todo.extend((f"{path}[{i}]", each) for i, each in enumerate(value))
        elif isinstance(value, set | frozenset):
            todo.extend((f"{path}[{i}]", each) for i, each in enumerate(sorted(value, key=repr)))
        names = list(getattr(value, "__dict__", ()))
        for cls in kind.__mro__:
            slots = cls.__dict__.get("__slots__", ())
            names += [slots] if isinstance(slots, str) else list(slots)
        for name in sorted(set(names)):
            if (
                name in {"__weakref__", "__dict__"}
                or (kind.__name__, name) in LEFT_OUT
                or ("*", name) in LEFT_OUT
                or name.endswith("_ns")
            ):
                continue
            try:
                each = getattr(value, name)
            except AttributeError:
                continue
            todo.append((f"{path}.{name}", each))
    return lines
