"""mm/slub.c:kfree and lib/debugobjects.c, as of Linux 7.3.4: what is freed is poisoned, so that its next use is found.

A freed object gets the class ``Freed<X>``, made once for each class X, on which every attribute raises. Its fields are
not touched: `peek` reads them, and whoever restores a machine to an earlier state only gives the class back. Where one
object of ours stands for a structure of the kernel and for what a program has of it (a file descriptor, a handle),
``outlives`` of its class names the attributes that stay.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn
from weakref import WeakSet

from gpusvm.errors import LateWorkError, LockdepError, UseAfterFreeError
from gpusvm.kernel.locks import Mutex, SpinLock
from gpusvm.kernel.place import Site, caller, name_site
from gpusvm.kernel.rwsem import RwSemaphore
from gpusvm.kernel.task import Waitable
from gpusvm.kernel.timers import Timer
from gpusvm.kernel.work import Work

if TYPE_CHECKING:
    from types import FrameType

    from gpusvm.kernel.core import Kernel
    from gpusvm.kernel.task import Task

__all__ = ["Grave", "Graveyard", "describe", "freed_class", "is_freed", "peek"]

_POISONED: Final[dict[type, type]] = {}  # class -> its freed class
_LIVING: Final[dict[type, type]] = {}  # freed class -> class
_GRAVEYARDS: Final[WeakSet[Graveyard]] = WeakSet()
_SET: Final = object.__setattr__
_RUNS: Final = (Work, Timer)
_LOCKS: Final = (Mutex, SpinLock, RwSemaphore)


class Grave:
    """Say who freed an object, with the parts that are embedded in it, and where."""

    __slots__ = ("_site", "task", "whole")

    def __init__(self, whole: object, task: str, site: Site) -> None:
        self.whole = whole
        self.task = task
        self._site = site

    @property
    def place(self) -> str:
        """Return where it was freed."""
        return name_site(self._site)

    def describe(self, obj: object) -> str:
        """Name the object or a part of it, and then what it was a part of."""
        return describe(obj) if obj is self.whole else f"{describe(obj)} of {describe(self.whole)}"


class Graveyard:
    """Hold what one kernel has freed, by id, so that no new object takes its place in memory."""

    __slots__ = ("__weakref__", "graves", "kernel")

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.graves: dict[int, tuple[object, Grave]] = {}
        _GRAVEYARDS.add(self)

    def revive(self, kept: frozenset[int]) -> None:
        """Give the objects that were freed since back their lives, `kept` being the keys of `graves` then."""
        for key, (obj, _) in self.graves.items():
            if key not in kept:
                _SET(obj, "__class__", _LIVING[type(obj)])

    def bury(self, obj: object, parts: tuple[object, ...]) -> None:
        """Poison `obj` and `parts`, which are embedded in it.

        LateWorkError: a work or timer among the parts is queued, armed or running. LockdepError: a lock is held.
        UseAfterFreeError: a task waits for a part, or the object has been freed before.
        """
        task = self.kernel.current
        frame: FrameType = sys._getframe(2)
        grave = Grave(obj, task.name, (frame.f_code, frame.f_lasti))
        if type(obj) in _LIVING:
            self._poison(obj, grave)  # its parts are freed, too, but it is what is freed twice
        if parts:
            self._check(parts, obj, task)
        self._poison(obj, grave)
        for part in parts:
            if part is not None:
                self._poison(part, grave)

    def _poison(self, obj: object, grave: Grave) -> None:
        poisoned = _POISONED.get(type(obj))
        if poisoned is None:
            entry = self.graves.get(id(obj))
            if entry is not None:
                before = entry[1]
                raise UseAfterFreeError(
                    f"double free: task {grave.task!r} frees {before.describe(obj)} at {grave.place}; "
                    f"task {before.task!r} freed it at {before.place}"
                )
            poisoned = _poisoned(type(obj))
        _SET(obj, "__class__", poisoned)
        self.graves[id(obj)] = (obj, grave)

    def _check(self, parts: tuple[object, ...], whole: object, task: Task) -> None:
        # A work that runs late may hold a lock: the work is what is wrong.
        for part in parts:
            if isinstance(part, _RUNS):
                self._check_idle(part, whole, task)
                if isinstance(part, Timer):
                    self.kernel.sched.forget_timer(part)
        waited = {
            id(other.waiting_on): other for other in self.kernel.sched.tasks.values() if other.waiting_on is not None
        }
        for part in parts:
            if isinstance(part, _LOCKS):
                self._check_unlocked(part, whole, task)
            other = waited.get(id(part))
            if other is not None:
                raise UseAfterFreeError(
                    f"use after free: task {other.name!r} waits for {describe(part)} when {_frees(task, whole)}"
                )

    @staticmethod
    def _check_idle(part: Work | Timer, whole: object, task: Task) -> None:
        state = part.activity(task)
        if state:
            raise LateWorkError(f"late work: {_frees(task, whole)}, while its {part.describe()} {state}")

    @staticmethod
    def _check_unlocked(part: Mutex | SpinLock | RwSemaphore, whole: object, task: Task) -> None:
        holders = part.holders(task)
        if holders:
            names = ", ".join(f"task {holder.name!r}" for holder in holders)
            held = f"{names} {'holds' if len(holders) == 1 else 'hold'} its {part.describe()}"
            raise LockdepError(f"held lock freed: {_frees(task, whole)}, while {held}")


def _frees(task: Task, whole: object) -> str:
    return f"task {task.name!r} frees {describe(whole)} at {caller()}"


def _poisoned(cls: type) -> type:
    outlives = frozenset(getattr(cls, "outlives", ()))

    def use(self: object, name: str, doing: str) -> NoReturn:
        grave, kernel = _find(self)
        if grave is None:
            raise UseAfterFreeError(f"use after free: {doing} .{name} of a freed {cls.__name__}")
        raise UseAfterFreeError(
            f"use after free: task {kernel.current.name!r} {doing} .{name} of {grave.describe(self)} at {caller()}; "
            f"task {grave.task!r} freed it at {grave.place}"
        )

    def getattribute(self: object, name: str) -> Any:
        if name.startswith("__") or name in outlives:
            return object.__getattribute__(self, name)
        use(self, name, "reads")

    def setattr_(self: object, name: str, value: object) -> None:
        if name == "__class__":  # whoever restores an earlier state gives it its life back
            _SET(self, name, value)
            return
        use(self, name, "writes")

    def delattr_(self: object, name: str) -> None:
        use(self, name, "deletes")

    poisoned = type(
        f"Freed{cls.__name__}",
        (cls,),
        {
            "__slots__": (),
            "__module__": cls.__module__,
            "__getattribute__": getattribute,
            "__setattr__": setattr_,
            "__delattr__": delattr_,
            "__repr__": lambda self: f"<freed {describe(self)}>",
            "__bool__": lambda _: True,  # `if obj:` asks whether there is a pointer
        },
    )
    _POISONED[cls] = poisoned
    _LIVING[poisoned] = cls
    return poisoned


def _find(obj: object) -> tuple[Grave | None, Kernel]:
    for graveyard in list(_GRAVEYARDS):
        entry = graveyard.graves.get(id(obj))
        if entry is not None:
            return entry[1], graveyard.kernel
    return None, None  # type: ignore[return-value]  # no kernel without a grave


def is_freed(obj: object) -> bool:
    """Tell whether a modelled object was freed."""
    return type(obj) in _LIVING


def freed_class(cls: type) -> type | None:
    """Return the class that objects of the freed class `cls` had before; None if `cls` is no freed class."""
    return _LIVING.get(cls)


def peek(obj: object, name: str) -> Any:
    """Read a field of an object that may be freed: for messages, ledgers and tests."""
    return object.__getattribute__(obj, name)


def describe(obj: object) -> str:
    """Name a modelled object for a message, freed or not; the same in every run."""
    poisoned = type(obj)
    cls = _LIVING.get(poisoned, poisoned)
    if poisoned is not cls:
        _SET(obj, "__class__", cls)
    try:
        if isinstance(obj, Waitable):
            return obj.describe()
        if vars(object)["__repr__"] is not cls.__repr__ and not hasattr(cls, "__attrs_attrs__"):
            return repr(obj)
        name = getattr(obj, "name", None)
        return f"{cls.__name__} {name!r}" if isinstance(name, str) else cls.__name__
    except UseAfterFreeError:  # it tells of something that is freed itself
        return cls.__name__
    finally:
        if poisoned is not cls:
            _SET(obj, "__class__", poisoned)
