"""Know which fields of model objects are read and written, without a word of it in the model.

While a watch is on, the classes of the mm, of drm, of the drivers and of the kernel's primitives log the fields that
their objects' users touch; afterwards they are as they were, and run as fast. A driver of somebody else needs
nothing for it. What is logged, and how exactly:

* a field that the source assigns somewhere but where its object is made: each read and each assignment; fields that
  never change are not logged;
* a list, dict, set, deque or array in a field: reading the field reads all of it; what is in it is compared at the end
  of the step, and if it has changed, the step has written it;
* struct pages (`Zone`): each element.

Not seen: a container that a function keeps in a local variable over a yield point and changes after it, and what is
in no object (a variable of a closure, of a module). The model has neither; a driver that does can say so with
``Kernel.touch``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from importlib import import_module
from inspect import isclass
from pkgutil import walk_packages
from types import MemberDescriptorType
from typing import Any, Final

import numpy as np

from gpusvm.errors import ModelError
from gpusvm.explore.watch_arrays import WatchedArray, WatchedView
from gpusvm.explore.watch_log import CONTAINERS, LOG, Log, WatchedField, array_key, nobody, unnamed
from gpusvm.explore.watch_source import assigned

__all__ = ["watching"]

_ROOMS: Final = (
    "gpusvm.mm",
    "gpusvm.drm",
    "gpusvm.gpu",
    "gpusvm.driver",
    "gpusvm.machine",
    "gpusvm.explore.world",
    "gpusvm.explore.place",
)

# The kernel's primitives. Of the readers of an rwsem and of SRCU, and of lockdep, statistics and ledgers, nothing: the
# operations on the first two say by name what they are to each other; the others count, in any order.
_PRIMITIVES: Final = {
    "gpusvm.kernel.locks": ("Mutex", "SpinLock"),
    "gpusvm.kernel.rwsem": ("RwSemaphore",),
    "gpusvm.kernel.srcu": ("Srcu",),
    "gpusvm.kernel.wait": ("Completion", "WaitQueue"),
    "gpusvm.kernel.work": ("Work", "Workqueue"),
    "gpusvm.kernel.timers": ("Timer",),
    "gpusvm.kernel.refs": ("Kref",),
    "gpusvm.kernel.task": ("Task",),
}

# Fields that say nothing about the state, by class: what is only for people, time, and order among equals.
_UNWATCHED: Final[dict[str, frozenset[str]]] = {
    "World": frozenset({"_attempts", "outcomes"}),
    "Actor": frozenset({"threads"}),
    "GpuSpace": frozenset({"users"}),
    "SpinLock": frozenset({"_free_ns"}),
    "RwSemaphore": frozenset({"_readers"}),
    "Srcu": frozenset({"_index", "_readers", "_synchronizing", "_waiters"}),
    "Timer": frozenset({"counted", "entry"}),
    "FaultAccounts": frozenset({"stage_ns", "latency_ns", "failed"}),
}

# Of a task, only these are anybody else's business.
_OF_TASK: Final = frozenset({"fatal_signal_pending", "killable"})

# A class has no field of its own of a name; a field may well be None there.
_ABSENT: Final = object()

# Classes whose arrays are watched by element.
_BY_ELEMENT: Final = frozenset({"Zone"})


class _Class:
    """Change one class so that it logs, and back."""

    def __init__(self, cls: type, changing: frozenset[str]) -> None:
        self.cls = cls
        self.changing = changing
        self.ignored = _UNWATCHED.get(cls.__name__, frozenset())
        self.by_dict = bool(cls.__dictoffset__)
        self.plain: dict[str, Any] = {}  # what was there before, or _ABSENT
        self.setattr: Callable[[Any, str, Any], None] = cls.__setattr__  # type: ignore[assignment]  # of no object yet
        self.hooked = "__setattr__" in cls.__dict__

    def install(self, *, assign: bool) -> None:
        for name in sorted(self.changing):
            self.watch(name)
        if assign:
            type.__setattr__(self.cls, "__setattr__", self._assign())

    def remove(self) -> None:
        for name, plain in self.plain.items():
            if plain is _ABSENT:
                delattr(self.cls, name)
            else:
                setattr(self.cls, name, plain)
        if "__setattr__" in self.cls.__dict__:
            if self.hooked:
                type.__setattr__(self.cls, "__setattr__", self.setattr)
            else:
                delattr(self.cls, "__setattr__")

    def watch(self, name: str) -> None:
        """Log reads of a field from now on."""
        owner = next((cls for cls in self.cls.__mro__ if name in cls.__dict__), None)
        plain = _ABSENT if owner is None else owner.__dict__[name]
        if isinstance(plain, MemberDescriptorType):
            if owner is self.cls:
                self.plain[name] = plain
                watched = WatchedField.of(plain.__get__, plain.__set__, name)
                watched.plain = plain
                setattr(self.cls, name, watched)
        elif not isinstance(plain, property) and not callable(plain) and self.cls.__dictoffset__:
            self.plain[name] = plain if owner is self.cls else _ABSENT
            setattr(self.cls, name, WatchedField.of(_from_dict(name, plain), _to_dict(name), name))

    def _assign(self) -> Callable[[Any, str, Any], None]:
        log, objects = LOG, LOG.objects
        put = self.setattr
        classes = _INSTALLED
        by_element = self.cls.__name__ in _BY_ELEMENT

        def assign(self: Any, name: str, value: Any) -> None:
            if id(self) not in objects:
                log.register(self)
            watched = classes.get(type(self))
            if watched is None:
                kind = type(self)
                raise ModelError(f"{kind.__module__}.{kind.__qualname__} is not watched: name its package")
            kind = type(value)
            if kind not in CONTAINERS and name in watched.changing:  # nearly always
                put(self, name, value)
                return
            if kind in CONTAINERS:
                if by_element and kind is np.ndarray:
                    value = WatchedArray.of(value)
                    log.register(value)
                elif by_element and isinstance(getattr(value, "obj", None), WatchedArray):
                    value = WatchedView(value)
                else:
                    if kind is np.ndarray or kind is memoryview:
                        array_key(value, (id(self), name), assigned=True)
                    if name not in watched.changing:
                        watched.grow(name)
            if (
                name not in watched.changing
                and name not in watched.ignored
                and (name in self.__dict__ if watched.by_dict else hasattr(self, name))
            ):
                message = f"{type(self).__name__}.{name} changes, which the source does not show; assign it by name"
                raise ModelError(message)
            put(self, name, value)

        return assign

    def grow(self, name: str) -> None:
        """Watch a field that turns out to hold a container."""
        for cls in self.cls.__mro__:
            if cls in _INSTALLED and name not in _INSTALLED[cls].changing:
                each = _INSTALLED[cls]
                if name not in each.ignored:
                    each.changing |= {name}
                    each.watch(name)


_INSTALLED: dict[type, _Class] = {}


def _from_dict(name: str, default: Any) -> Callable[[Any], Any]:
    def get(self: Any) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            if default is _ABSENT:
                raise AttributeError(name) from None
            return default

    return get


def _to_dict(name: str) -> Callable[[Any, Any], None]:
    def put(self: Any, value: Any) -> None:
        self.__dict__[name] = value

    return put


def _classes(packages: tuple[str, ...]) -> dict[type, frozenset[str]]:
    """Return the classes to watch, bases first, with the fields of each that change."""
    rooms = (*_ROOMS, *packages)
    for each in rooms:
        _load(each)
    own: dict[str, set[str]] = {}
    anywhere: set[str] = set()
    found: list[type] = []
    for name, module in sorted(sys.modules.items()):
        room = any(name == each or name.startswith(f"{each}.") for each in rooms)
        primitives = _PRIMITIVES.get(name)
        if not room and primitives is None:
            continue
        source = assigned(module)
        anywhere |= source.any
        for cls, names in source.own.items():
            own.setdefault(f"{name}.{cls}", set()).update(names)
        found += [
            cls
            for cls in vars(module).values()
            if isclass(cls) and cls.__module__ == name and (room or cls.__name__ in (primitives or ()))
        ]
    found = [cls for cls in dict.fromkeys(found) if _has_state(cls)]
    found.sort(key=lambda cls: len(cls.__mro__))
    return {
        cls: frozenset(
            name
            for name in anywhere.union(
                *(own.get(f"{base.__module__}.{base.__qualname__}", ()) for base in _family(cls, found))
            )
            if name not in _UNWATCHED.get(cls.__name__, ())
        )
        for cls in found
    }


def _load(name: str) -> None:
    """Import a module and, if it is a package, all that is in it: a class has to be known before its first object."""
    module = import_module(name)
    for each in walk_packages(getattr(module, "__path__", []), f"{name}."):
        import_module(each.name)


def _family(cls: type, found: list[type]) -> list[type]:
    """Return the classes whose methods may assign a field of `cls` through self: its bases and what is derived."""
    return [other for other in found if issubclass(cls, other) or issubclass(other, cls)]


def _has_state(cls: type) -> bool:
    if issubclass(cls, Enum | BaseException | tuple) or getattr(cls, "_is_protocol", False):
        return False
    return cls.__setattr__.__name__ != "_frozen_setattrs"  # attrs' way to refuse


@contextmanager
def watching(*packages: str) -> Iterator[Log]:
    """Let the model's classes log, and those of the modules and packages named (drivers).

    A machine has to be booted inside, and used up. Only one watch is on at a time.
    """
    if _INSTALLED:
        raise ModelError("a watch is on already")
    try:
        for cls, changing in _classes(packages).items():
            if cls.__name__ == "Task":
                each = _INSTALLED[cls] = _Class(cls, _OF_TASK)
                each.install(assign=False)
            else:
                each = _INSTALLED[cls] = _Class(cls, changing)
                # A class takes its base's way to assign.
                each.install(assign=not any(base in _INSTALLED for base in cls.__mro__[1:]))
        LOG.watched = frozenset(_INSTALLED)
        LOG.on = True
        yield LOG
    finally:
        for each in reversed(_INSTALLED.values()):
            each.remove()
        _INSTALLED.clear()
        LOG.clear()
        LOG.objects.clear()
        LOG.made, LOG.found = nobody, unnamed
        LOG.watched = frozenset()
