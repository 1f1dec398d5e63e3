"""Log what the running step touches: fields, containers and elements of arrays."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any, Final

import numpy as np

__all__ = ["CONTAINERS", "LOG", "Key", "Log", "WatchedField", "array_key", "nobody", "unnamed"]

Key = tuple[int, Any]
"""The id of an object, and the name of a field, a position, or "" for all of it."""

CONTAINERS: Final = frozenset({list, dict, set, deque, np.ndarray, memoryview, bytearray, array})
"""What a field may hold that can change without the field."""

_SCALARS: Final = frozenset({int, str, bytes, float})


class Log:
    """Collect what the running step touches, and name the objects that it makes.

    `reads` and `writes` are keys; `seen` has the containers that were looked at with what was in them then. `made` is
    called for each new object, `found` for each array with a field that it is assigned to, or that shows it first, and
    whether it was known. `objects` keeps them alive, so that an id stays one object's. While it is not `on`, objects
    are named and nothing else is logged.
    """

    __slots__ = ("found", "made", "objects", "on", "reads", "seen", "watched", "writes")

    def __init__(self) -> None:
        self.on = True
        self.reads: set[Key] = set()
        self.writes: set[Key] = set()
        self.seen: dict[Key, tuple[Any, Any]] = {}
        self.objects: dict[int, object] = {}
        self.made: Callable[[int], None] = nobody
        self.found: Callable[[int, Key, bool], None] = unnamed
        self.watched: frozenset[type] = frozenset()

    def register(self, thing: object) -> None:
        self.objects[id(thing)] = thing
        self.made(id(thing))

    def clear(self) -> None:
        """Begin a step."""
        self.reads.clear()
        self.writes.clear()
        self.seen.clear()

    def compare(self) -> None:
        """End a step: add the containers that have changed to what it wrote."""
        for key, (container, before) in self.seen.items():
            if key not in self.writes and not _same(_contents(container), before):
                self.writes.add(key)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Log nothing of what is touched meanwhile."""
        on, self.on = self.on, False
        try:
            yield
        finally:
            self.on = on


def nobody(which: int) -> None:
    """Be told of new objects while nobody names them."""


def unnamed(which: int, field: Key, known: bool) -> None:
    """Be told of arrays while nobody names them."""


LOG: Final = Log()
"""What all watched classes write to: one machine runs at a time."""


def _contents(container: Any) -> Any:
    """Return what is in a container, for `_same`; it keeps the things alive."""
    kind = type(container)
    if kind is np.ndarray:
        return container.copy()
    if kind is memoryview or kind is bytearray:
        return bytes(container)
    things = [*container, *container.values()] if kind is dict else list(container)
    return things, [_contents(thing) for thing in things if type(thing) in CONTAINERS]


def _alike(one: Any, other: Any) -> bool:
    # Equal numbers are not always one object: which are must not show.
    return one is other or (type(one) in _SCALARS and type(one) is type(other) and bool(one == other))


def _same(now: Any, before: Any) -> bool:
    if type(now) is np.ndarray:
        return now.shape == before.shape and bool((now == before).all())
    if type(now) is bytes:
        return bool(now == before)
    (things, inner), (old_things, old_inner) = now, before
    return (
        len(things) == len(old_things)
        and (all(map(is_, things, old_things)) or all(map(_alike, things, old_things)))
        and all(_same(new, old) for new, old in zip(inner, old_inner, strict=True))
    )


def array_key(container: Any, field: Key, *, assigned: bool = False) -> Key:
    """Return the key of an array's elements, whichever field shows them; `field` is one, to which it may be `assigned`
    just now.
    """
    elements: Any = container.obj if type(container) is memoryview else container
    while type(elements.base) is np.ndarray:
        elements = elements.base
    which = id(elements)
    known = which in LOG.objects
    if not known:
        LOG.objects[which] = elements
    if assigned or not known:
        LOG.found(which, field, known)
    return which, ""


class WatchedField(property):
    """Be a field whose reads and writes are logged; `plain` is the field itself (None if it is in the dict)."""

    plain: Any = None

    @classmethod
    def of(cls, get: Callable[[Any], Any], put: Callable[[Any, Any], None], name: str) -> WatchedField:
        log, reads, writes, seen = LOG, LOG.reads, LOG.writes, LOG.seen

        def read(self: Any) -> Any:
            value = get(self)
            if log.on:
                key: Key = (id(self), name)
                if key not in reads:
                    reads.add(key)
                    kind = type(value)
                    if kind in CONTAINERS:
                        if kind is np.ndarray or kind is memoryview:
                            # The field is one thing, the elements another, which several fields may show.
                            key = array_key(value, key)
                            reads.add(key)
                        if key not in seen:
                            seen[key] = value, _contents(value)
            return value

        def write(self: Any, value: Any) -> None:
            if log.on:
                key: Key = (id(self), name)
                writes.add(key)
                if type(value) in CONTAINERS:
                    reads.discard(key)  # the next read looks at this one
            put(self, value)

        return cls(read, write)
