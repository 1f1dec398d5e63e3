"""Remember the state of a booted machine and put it back in place, thousands of times a second.

An exploration boots once. Before each execution everything reachable from the machine is made again what it was, object
by object: identities stay, so whoever refers to a lock, a folio array or a driver refers to it still. What an execution
has made becomes garbage.

Out of reach is what no object of the machine refers to: attributes of classes, globals of modules, caches of functions.
The model keeps no state there.
"""

from __future__ import annotations

import enum
import functools
import gc
import mmap
import re
import types
import typing
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import repeat
from operator import setitem
from typing import Any, Final

import numpy as np

from gpusvm.check.shadow import ZoneShadow
from gpusvm.errors import ModelError
from gpusvm.explore.fields import is_frozen, is_in_python, slots_of
from gpusvm.kernel import Graveyard, LockMap, Mutex, RwSemaphore, SpinLock, Work, Workqueue
from gpusvm.kernel.greenlets import IdleGreenlets, is_greenlet, is_suspended
from gpusvm.kernel.lockdep import Chain, LockClass
from gpusvm.mm.page import Zone

__all__ = ["SETTLED", "Checkpoint"]

_ALL: Final = slice(None)

# What has no state, or none that can change, and refers to nothing that has.
_CONSTANT: Final[tuple[type, ...]] = (
    type(None),
    type(NotImplemented),
    type(Ellipsis),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    type,
    enum.Enum,
    np.generic,
    np.dtype,
    np.ufunc,
    re.Pattern,
    types.ModuleType,
    types.CodeType,
    types.GenericAlias,
    types.UnionType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    typing.TypeVar,
    IdleGreenlets,
)
_EXACTLY_CONSTANT: Final = frozenset({int, str, bool, type(None), float, bytes})

# What a class written in Python may be derived from, besides object.
_BASES: Final = (
    OrderedDict,
    defaultdict,
    dict,
    list,
    set,
    deque,
    tuple,
    frozenset,
    BaseException,
    int,
    float,
    str,
    bytes,
)


# What is declared Final in the classes of which a machine has most: written when an object is made, and never again.
SETTLED: Final[dict[type, frozenset[str]]] = {
    LockClass: frozenset({"after", "atomic", "key", "kind", "name", "ordered", "sleeps", "subclass", "tried"}),
    Chain: frozenset({"_before", "cls", "parent", "site"}),
    LockMap: frozenset({"_cls", "_kernel", "name"}),
    Mutex: frozenset({"_checked", "_cls", "_kernel"}),
    SpinLock: frozenset({"_checked", "_cls", "_kernel"}),
    RwSemaphore: frozenset({"_checked", "_cls", "_kernel", "_read", "_write"}),
    Work: frozenset({"fn"}),
    Workqueue: frozenset({"_cpu", "_kernel", "_map", "_percpu", "max_active"}),
    Zone: frozenset(Zone.__slots__) - {"used"},
    ZoneShadow: frozenset(ZoneShadow.__slots__)
    - {"first", "live_pages", "lost", "nr", "seen", "seen_first", "top", "touched", "views"},
}


class Checkpoint:
    """Remember everything reachable from `roots`; `restore` puts it all back in place.

    Attributes, slots, dict, list, set, deque, array, bytearray, NumPy arrays (through views of them too) and the cells
    of closures are put back; what is constant is known by its type. ModelError, with the path from a root, for what
    cannot be put back: a task under way, a generator or another iterator, an open file, an object of some library's own
    memory.

    Objects in `leave`, such as the scheduler of an exploration, are neither looked into nor put back. `objects` counts
    what is put back and `array_bytes` is what of it lies in arrays.

    A task that has not ended holds the kernel's state in its stack: end it before, for when its stack goes it unwinds
    and changes what has been put back (``Kernel.close``; a restored kernel is not closing).
    """

    def __init__(self, roots: Iterable[object], *, leave: Iterable[object] = ()) -> None:
        walk = _Walk(roots, leave)
        self.objects = walk.objects
        self.array_bytes = walk.array_bytes
        self._left = walk.left
        self._dicts = list(walk.dicts)
        self._dict_states = [dict.copy(one) for one in self._dicts]
        self._ordered = [(one, list(one.items())) for one in walk.ordered]
        self._lists = list(walk.lists)
        self._list_states = [list(one) for one in self._lists]
        self._sets = list(walk.sets)
        self._set_states = [set(one) for one in self._sets]
        self._deques = [(one, tuple(one)) for one in walk.deques]
        self._arrays = [(one, one[:]) for one in walk.arrays]
        self._buffers: list[Any] = [one.data.cast("B") for one in walk.ndarrays if one.flags.c_contiguous]
        self._buffer_states = [memoryview(view.tobytes()) for view in self._buffers]
        self._strided = [(one, one.copy()) for one in walk.ndarrays if not one.flags.c_contiguous]
        self._cells = list(walk.cells)
        self._cell_states = [one.cell_contents for one in self._cells]
        self._empty_cells = list(walk.empty_cells)
        self._attributes = [vars(one) for one in walk.instances]
        self._attribute_states = [dict(one) for one in self._attributes]
        self._attribute_counts = [len(one) for one in self._attributes]
        self._slots = walk.slots
        self._owners = [owner for owner, _, _ in self._slots]
        self._names = [name for _, name, _ in self._slots]
        self._values = [value for _, _, value in self._slots]
        self._guarded = walk.guarded
        self._unset = walk.unset
        self._graveyards = [(one, frozenset(one.graves)) for one in walk.graveyards]

    def restore(self) -> None:
        """Put everything back."""
        for graveyard, kept in self._graveyards:
            graveyard.revive(kept)  # before anything of it is written
        # One loop in C for each kind: hundreds of objects are put back before each execution.
        _run(map(setattr, self._owners, self._names, self._values))
        _run(map(dict.clear, self._dicts))
        _run(map(dict.update, self._dicts, self._dict_states))
        _run(map(setitem, self._lists, repeat(_ALL), self._list_states))
        _run(map(setitem, self._buffers, repeat(_ALL), self._buffer_states))
        _run(map(setattr, self._cells, repeat("cell_contents"), self._cell_states))
        _run(map(dict.update, self._attributes, self._attribute_states))
        if list(map(len, self._attributes)) != self._attribute_counts:
            _run(map(dict.clear, self._attributes))
            _run(map(dict.update, self._attributes, self._attribute_states))
        for one, members in zip(self._sets, self._set_states, strict=True):
            if one or members:
                one.clear()
                one.update(members)
        for queue, entries in self._deques:
            if queue or entries:
                queue.clear()
                queue.extend(entries)
        for numbers, before in self._arrays:
            numbers[:] = before
        for ndarray, copy in self._strided:
            np.copyto(ndarray, copy)
        for ordered, items in self._ordered:
            ordered.clear()
            ordered.update(items)
        for put, owner, value in self._guarded:
            put(owner, value)
        for unset, owner in self._unset:
            with suppress(AttributeError):
                unset(owner)
        for cell in self._empty_cells:
            with suppress(ValueError):
                del cell.cell_contents


_NOTHING: Final[frozenset[str]] = frozenset()
_drain = deque[object](maxlen=0)
_run = _drain.extend


class _Walk:
    """Find everything that is reachable and can change, each object once, in a fixed order."""

    def __init__(self, roots: Iterable[object], leave: Iterable[object]) -> None:
        self.objects = 0
        self.array_bytes = 0
        self.dicts: list[dict[Any, Any]] = []
        self.ordered: list[OrderedDict[Any, Any]] = []
        self.lists: list[list[Any]] = []
        self.sets: list[set[Any]] = []
        self.deques: list[deque[Any]] = []
        self.arrays: list[Any] = []  # array.array, bytearray and mmap.mmap
        self.ndarrays: list[np.ndarray[Any, Any]] = []
        self.cells: list[types.CellType] = []
        self.empty_cells: list[types.CellType] = []
        self.instances: list[object] = []  # with attributes in a dict
        self.slots: list[tuple[object, str, object]] = []
        self.guarded: list[tuple[Callable[[object, object], None], object, object]] = []
        self.unset: list[tuple[Callable[[object], None], object]] = []
        self.graveyards: list[Graveyard] = []
        self.left = list(leave)
        # By id: the object, which so stays alive, whence it was reached, and by which step.
        self._seen: dict[int, tuple[object, object, str]] = {id(one): (one, None, "") for one in self.left}
        self._queue: deque[object] = deque()
        for at, root in enumerate(roots):
            self._see(root, None, f"roots[{at}]")
        while self._queue:
            self._enter(self._queue.popleft())

    def _see(self, what: object, parent: object, step: str) -> None:
        if type(what) in _EXACTLY_CONSTANT or id(what) in self._seen or isinstance(what, _CONSTANT):
            return
        self._seen[id(what)] = (what, parent, step)
        self._queue.append(what)

    def _path(self, what: object) -> str:
        steps = []
        while what is not None:
            _, parent, step = self._seen[id(what)]
            steps.append(step)
            what = parent
        return "".join(reversed(steps))

    def _refuse(self, what: object, why: str) -> ModelError:
        kind = type(what)
        return ModelError(
            f"checkpoint: cannot put back {self._path(what)}, a {kind.__module__}.{kind.__qualname__}: {why}"
        )

    def _enter(self, what: Any) -> None:
        kind: Any = type(what)
        enter = _ENTER.get(kind)
        if enter is not None:
            self.objects += 1
            enter(self, what)
        elif is_greenlet(what):
            if is_suspended(what):
                raise self._refuse(what, "a task that has begun and not ended holds state in its stack")
        elif is_in_python(kind) or issubclass(kind, BaseException):
            self.objects += 1
            self._enter_instance(what, kind)
        else:
            raise self._refuse(what, "its state is out of reach")

    # --- what Python has

    def _each(self, what: Sequence[object]) -> None:
        for at, each in enumerate(what):
            self._see(each, what, f"[{at}]")

    def _items(self, what: dict[object, object]) -> None:
        for key, value in what.items():
            self._see(key, what, f".key({key!r:.40})")
            self._see(value, what, f"[{key!r:.40}]")

    def _dict(self, what: dict[object, object]) -> None:
        self.dicts.append(what)
        self._items(what)

    def _defaultdict(self, what: defaultdict[object, object]) -> None:
        self._see(what.default_factory, what, ".default_factory")
        self._dict(what)

    def _ordered_dict(self, what: OrderedDict[object, object]) -> None:
        self.ordered.append(what)
        self._items(what)

    def _list(self, what: list[object]) -> None:
        self.lists.append(what)
        self._each(what)

    def _deque(self, what: deque[object]) -> None:
        self.deques.append(what)
        for at, each in enumerate(what):
            self._see(each, what, f"[{at}]")

    def _members(self, what: set[object] | frozenset[object]) -> None:
        for each in what:
            self._see(each, what, f".member({each!r:.40})")

    def _set(self, what: set[object]) -> None:
        self.sets.append(what)
        self._members(what)

    def _numbers(self, what: bytearray | array[Any] | mmap.mmap) -> None:
        self.arrays.append(what)
        self.array_bytes += memoryview(what).nbytes

    def _ndarray(self, what: np.ndarray[Any, Any]) -> None:
        if what.base is not None:
            self._see(what.base, what, ".base")
        elif what.dtype.hasobject:
            for at, each in enumerate(what.flat):
                self._see(each, what, f".flat[{at}]")
            raise self._refuse(what, "an array of objects")
        elif what.flags.writeable and what.size:
            self.ndarrays.append(what)
            self.array_bytes += what.nbytes

    def _memoryview(self, what: memoryview) -> None:
        self._see(what.obj, what, ".obj")

    def _slice(self, what: slice) -> None:
        self._each((what.start, what.stop, what.step))

    def _function(self, what: types.FunctionType) -> None:
        for name, cell in zip(what.__code__.co_freevars, what.__closure__ or (), strict=True):
            self._see(cell, what, f".<{name}>")
        self._see(what.__defaults__, what, ".__defaults__")
        self._see(what.__kwdefaults__, what, ".__kwdefaults__")
        if vars(what):
            self._see(vars(what), what, ".__dict__")

    def _cell(self, what: types.CellType) -> None:
        try:
            contents = what.cell_contents
        except ValueError:
            self.empty_cells.append(what)
            return
        self.cells.append(what)
        self._see(contents, what, "")

    def _method(self, what: Any) -> None:
        self._see(what.__self__, what, ".__self__")
        if isinstance(what, types.MethodType):
            self._see(what.__func__, what, ".__func__")

    def _partial(self, what: functools.partial[Any]) -> None:
        self._see(what.func, what, ".func")
        self._each(what.args)
        self._see(what.keywords, what, ".keywords")
        if vars(what):
            self._see(vars(what), what, ".__dict__")

    def _proxy(self, what: types.MappingProxyType[Any, Any]) -> None:
        self._each(gc.get_referents(what))

    # --- instances of classes

    def _enter_instance(self, what: Any, kind: type) -> None:
        if kind is Graveyard:
            self.graveyards.append(what)
        frozen = is_frozen(kind)
        settled = SETTLED.get(kind, _NOTHING)
        for cls in kind.__mro__:
            if cls in _ENTER:
                _ENTER[cls](self, what)
                break
            if not is_in_python(cls) and cls is not object:
                if not issubclass(cls, _BASES):
                    raise self._refuse(what, f"derived from {cls.__qualname__}, whose state is out of reach")
                break
        if isinstance(what, BaseException):
            self._each(what.args)
        setter: object = kind.__setattr__
        ordinary = setter is object.__setattr__
        for name, member in slots_of(kind):
            try:
                value = member.__get__(what, kind)
            except AttributeError:
                if not frozen:
                    self.unset.append((member.__delete__, what))
                continue
            self._see(value, what, f".{name}")
            if frozen or name in settled:
                continue
            # A private name is written as it is stored only by its descriptor; so is what a class guards.
            if ordinary and getattr(kind, name, None) is member:
                self.slots.append((what, name, value))
            else:
                self.guarded.append((member.__set__, what, value))
        attributes = getattr(what, "__dict__", None)
        if attributes is not None:
            if not frozen:
                self.instances.append(what)
            for name, value in attributes.items():
                self._see(value, what, f".{name}")


_ENTER: Final[dict[type, Callable[[_Walk, Any], None]]] = {
    dict: _Walk._dict,
    defaultdict: _Walk._defaultdict,
    OrderedDict: _Walk._ordered_dict,
    list: _Walk._list,
    tuple: _Walk._each,
    deque: _Walk._deque,
    set: _Walk._set,
    frozenset: _Walk._members,
    bytearray: _Walk._numbers,
    mmap.mmap: _Walk._numbers,
    array: _Walk._numbers,
    np.ndarray: _Walk._ndarray,
    memoryview: _Walk._memoryview,
    slice: _Walk._slice,
    types.FunctionType: _Walk._function,
    types.CellType: _Walk._cell,
    types.MethodType: _Walk._method,
    types.BuiltinFunctionType: _Walk._method,
    types.MethodWrapperType: _Walk._method,
    functools.partial: _Walk._partial,
    types.MappingProxyType: _Walk._proxy,
}
