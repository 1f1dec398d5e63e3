"""Hash the state of a machine, whoever its objects are and whenever it was reached.

Two executions that come to the same state by another order of independent steps have the same fingerprint where that
can be told cheaply. **Included** is whatever can be reached from the roots and decides what the machine can do next:

* page tables, struct pages, areas, subscriptions, device memory, queues, locks and who waits for them;
* of a number that is only compared for equality (a notifier's sequence, the sequence of a lock, the version that a page
  holds) which others it is equal to, and of a sequence whether it is odd;
* of each task but main what it waits for, the code and the instruction of every call it is in, and its local variables;
* armed timers and sleepers in the order in which they fall due.

**Left out** is what only counts or measures: the clock and every field whose name ends in ``_ns``, steps, statistics,
gauges, ledgers (they are empty at the end, or an error), traces, what lockdep has learned, the checker, accounts of
faults, which injection sites were passed, the order of the keys of a dict. So a loop that only the clock ends looks
like a cycle of states, and two states that a failure budget tells apart are two.

Page frame numbers are what they are: two tasks that take pages from the allocator in the other order come to another
state, although nobody could tell.
"""

from __future__ import annotations

import enum
import re
import sys
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache, partial
from hashlib import blake2b
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpusvm.check import Checker
from gpusvm.driver import Capabilities, DriverInfo, FaultAccounts
from gpusvm.drm import RuntimePm
from gpusvm.drm.runtime_pm import Hold
from gpusvm.explore.fields import is_in_python, slots_of
from gpusvm.explore.world import World
from gpusvm.kernel import (
    Costs,
    Gauges,
    Graveyard,
    Kernel,
    Ledger,
    Lockdep,
    LockMap,
    RwSemaphore,
    Stats,
    Task,
    Timer,
    Tracer,
    Work,
    is_freed,
)
from gpusvm.kernel.cpus import CpuScheduler
from gpusvm.kernel.explored import ExploredScheduler
from gpusvm.kernel.greenlets import IdleGreenlets
from gpusvm.kernel.inject import Injector
from gpusvm.kernel.lockdep import Chain, LockClass
from gpusvm.machine import Topology
from gpusvm.mm import Geometry
from gpusvm.mm.contents import Contents
from gpusvm.mm.filemap import AddressSpace
from gpusvm.mm.memremap import DevPagemaps
from gpusvm.mm.mmu_notifier import IntervalTree, MmuIntervalNotifier
from gpusvm.mm.page import Zone
from gpusvm.mm.page_owner import PageOwner
from gpusvm.mm.vma import VmaTree

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Fingerprint"]

_SCALARS: Final = frozenset({int, str, bool, type(None), float})

# Of these nothing is looked at but that they are there: they count, or are what they are from the start.
_OPAQUE: Final[tuple[type, ...]] = (
    Capabilities,
    Chain,
    Checker,
    Costs,
    DriverInfo,
    FaultAccounts,
    Gauges,
    Geometry,
    Graveyard,
    IdleGreenlets,
    Ledger,
    LockClass,
    LockMap,
    Lockdep,
    PageOwner,
    Stats,
    Topology,
    Tracer,
    type,
    types.ModuleType,
    types.CodeType,
)

# Fields that count, or repeat what others say.
_LEFT_OUT: Final[dict[type, frozenset[str]]] = {
    Kernel: frozenset(
        {"charged", "_table", "choices", "current", "observer", "footprint", "next_due", "costs", "on_retry"}
    ),
    ExploredScheduler: frozenset({"counter", "spawned", "heap", "tasks", "_ready", "_due", "_until", "main", "busy"}),
    CpuScheduler: frozenset({"_alone", "_offered"}),
    Injector: frozenset({"sites", "failed", "_choices"}),
    Task: frozenset({"index", "chain", "atomic_site", "_fn", "args", "greenlet", "entry", "counted"}),
    Timer: frozenset({"entry", "counted"}),
    Contents: frozenset({"reads_checked", "known", "_version", "_expected", "mismatches"}),
    IntervalTree: frozenset({"by_size", "inserted"}),
    MmuIntervalNotifier: frozenset({"order"}),
    VmaTree: frozenset({"changes"}),
    Work: frozenset({"_by"}),
    Zone: frozenset({"token", "m_token", "zdd", "m_zdd"}),
    DevPagemaps: frozenset({"_slots", "_objects", "_free_slots", "_users"}),
    RwSemaphore: frozenset({"_readers"}),
    World: frozenset({"outcomes", "scenario", "spec"}),
    AddressSpace: frozenset({"tokens"}),
    RuntimePm: frozenset({"history", "missing_outer_protection", "refs_max", "resumes", "suspends"}),
    Hold: frozenset({"refs_max"}),
}
_CLOCK: Final = re.compile(r"(^|_)(ns|now|deadline|until|steps(_max)?)$")

# Numbers of which only is asked whether they are equal, by the family in which they are compared.
_SEQUENCE: Final = re.compile(r"(^|_)seq$")
_FAMILIES: Final = {"lock_seq": "lock", "writes": "lock", "lru_seq": "lru", "done_seq": "lru", "_seq": "work"}

# What a task has on its stack besides the model's own calls, innermost last: it is the same for all.
_SWITCHING: Final = frozenset({"gpusvm.kernel.scheduler", "gpusvm.kernel.explored"})

Token = Any  # a scalar, or a tuple of tokens: what is hashed


class Fingerprint:
    """Take fingerprints of the machine that `roots` lead to (a `World`, a `Machine`); `leave` is not looked into.

    A fingerprint may be taken at rest, and at a yield point from an observer, a footprint or the Choices. It costs
    about 2 ms for a small machine.
    """

    def __init__(self, *roots: object, leave: Iterable[object] = ()) -> None:
        self._roots = roots
        self._leave = tuple(leave)

    def take(self) -> int:
        """Return 64 bits that stand for the state."""
        walk = _Walk(self._roots, self._leave)
        return int.from_bytes(blake2b(repr(walk.found).encode(), digest_size=8).digest(), "big")

    def lines(self) -> list[str]:
        """Return what is hashed, a line for each object: where it is and what it holds. To find what differs."""
        walk = _Walk(self._roots, self._leave)
        return [f"{path}: {tokens}" for path, tokens in zip(walk.paths(), walk.found, strict=True)]


class _Walk:
    """Visit each object once, breadth first, and write down what it holds; others are named by their number."""

    def __init__(self, roots: tuple[object, ...], leave: tuple[object, ...]) -> None:
        self.found: list[Token] = []
        self._numbers: dict[int, int] = {id(one): -1 for one in leave}
        self._queue: list[Any] = []  # in the order of their numbers
        self._steps: list[tuple[int, str]] = []  # whence each was reached: the number, the step
        self._symbols: dict[tuple[str, int], int] = {}
        self._at = -1
        self.found.append([self._ref(root, f"roots[{at}]") for at, root in enumerate(roots)])
        for what in self._queue:  # it grows
            self._at += 1
            self.found.append(self._enter(what))

    def paths(self) -> list[str]:
        """Return the path to each object."""
        found: list[str] = []
        for number, step in self._steps:
            found.append(step if number < 0 else found[number] + step)
        return ["roots", *found]

    def _ref(self, what: Any, step: str) -> Token:
        kind: Any = type(what)
        if kind in _SCALARS:
            return what
        if kind is tuple:
            return tuple([self._ref(each, step) for each in what])
        number = self._numbers.get(id(what))
        if number is None:
            if isinstance(what, _OPAQUE):
                return kind.__name__
            if isinstance(what, enum.Enum):
                return f"{what}"
            if isinstance(what, np.generic):
                return what.item()
            if kind is types.MethodType:
                return what.__func__.__qualname__, self._ref(what.__self__, f"{step}.__self__")
            number = self._numbers[id(what)] = len(self._queue)
            self._queue.append(what)
            self._steps.append((self._at, step))
        return f"#{number}"

    def _symbol(self, family: str, value: int) -> Token:
        # Which others it is equal to: the same number for the same value, in the order in which they are met.
        if value <= 0:
            return value
        key = (family, value)
        number = self._symbols.get(key)
        if number is None:
            number = self._symbols[key] = len(self._symbols)
        return f"={number}", value & 1 if family == "notifier" else 0

    def _enter(self, what: Any) -> Token:
        if is_freed(what):  # nobody can tell what is in it
            return type(what).__name__
        enter = _ENTER.get(type(what))
        if enter is not None:
            return enter(self, what)
        kind: Any = type(what)
        if not is_in_python(kind):
            return kind.__name__
        tokens: list[Token] = [kind.__name__]
        for name, family in _plan(kind):
            try:
                value = getattr(what, name)
            except AttributeError:
                continue
            tokens.append(self._field(name, family, value))
        attributes = getattr(what, "__dict__", None)
        if attributes:
            left_out = _left_out(kind)
            for name in sorted(attributes.keys() - left_out):
                compared = _family(name)
                if compared is not None:
                    tokens += (name, self._field(name, compared, attributes[name]))
        tokens += [more(self, what) for more in _more(kind)]
        return tokens

    def _field(self, name: str, family: str, value: Any) -> Token:
        if family and type(value) is int:
            return self._symbol(family, value)
        return self._ref(value, f".{name}")

    # --- what Python has

    def _dict(self, what: dict[Any, Any]) -> Token:
        keys: Iterable[Any] = what
        if all(type(key) is int for key in what) or all(type(key) is str for key in what):
            keys = sorted(what)
        return [(self._ref(key, f".key({key!r:.30})"), self._ref(what[key], f"[{key!r:.30}]")) for key in keys]

    def _list(self, what: Iterable[Any]) -> Token:
        return [self._ref(each, f"[{at}]") for at, each in enumerate(what)]

    def _set(self, what: Iterable[Any]) -> Token:
        # A set has no order in which its members could be met first: those that nobody else refers to have no number.
        return sorted(
            repr(each) if type(each) in _SCALARS else f"{self._numbers.get(id(each), type(each).__name__)}"
            for each in what
        )

    def _bytes(self, what: Any) -> Token:
        return blake2b(what, digest_size=8).hexdigest()

    def _array(self, what: np.ndarray[Any, Any]) -> Token:
        return what.dtype.str, what.shape, self._bytes(what if what.flags.c_contiguous else what.tobytes())

    def _memoryview(self, what: memoryview) -> Token:
        return self._ref(what.obj, ".obj")

    def _function(self, what: types.FunctionType) -> Token:
        return what.__qualname__, [self._ref(cell, "()") for cell in what.__closure__ or ()]

    def _cell(self, what: types.CellType) -> Token:
        try:
            return self._ref(what.cell_contents, "")
        except ValueError:
            return "empty"

    def _partial(self, what: partial[Any]) -> Token:
        return self._ref(what.func, ".func"), self._ref(what.args, ".args"), self._ref(what.keywords, ".keywords")

    # --- what the model has

    def _scheduler(self, what: ExploredScheduler) -> Token:
        due = sorted((at, counter) for at, counter, each in what.heap if each.entry == counter)
        armed = {counter: each for _, counter, each in what.heap}
        tasks = sorted(what.tasks.values(), key=attrgetter("name", "index"))
        return [
            [self._ref(armed[counter], f".heap[{at}]") for at, (_, counter) in enumerate(due)],
            [self._ref(timer, ".due") for _, timer in what._due],
            [self._ref(task, ".until") for _, task in what._until],
            [(self._ref(task, f".tasks[{task.name}]"), self._stack(task)) for task in tasks if task is not what.main],
        ]

    def _stack(self, task: Task) -> Token:
        if task.greenlet is None:
            return self._ref(task._fn, ".fn"), self._ref(task.args, ".args")
        calls: list[Token] = []
        for frame in _calls(task):
            variables = []
            for name, value in sorted(frame.f_locals.items()):
                family = _family(name)
                if family is not None:
                    variables.append((name, self._field(name, family, value)))
            calls.append((frame.f_code.co_qualname, frame.f_lasti, variables))
        return calls

    def _rwsem(self, what: RwSemaphore) -> Token:
        return sorted((task.name, task.index) for task in what._readers)

    def _zone(self, what: Zone) -> Token:
        return self._tokens(what.token[: what.used])

    def _handles(self, what: DevPagemaps) -> Token:
        # zone_device_data is a slot of the handle table. Which one depends on who was there first, so it is followed.
        found = []
        for zone in what.pages.zones:
            words = zone.zdd[: zone.used]
            at = np.flatnonzero(words)
            for i, word in zip(at.tolist(), words[at].tolist(), strict=True):
                found.append((zone.base + i, word & 1, self._ref(what._objects[word >> 1], f".zdd[{zone.base + i}]")))
        return found

    def _tokens(self, tokens: np.ndarray[Any, Any]) -> Token:
        # Versions are compared for equality only; below 0 they say what kind of poison there is.
        at = np.flatnonzero(tokens)
        return at.tolist(), [self._symbol("version", token) for token in tokens[at].tolist()]

    def _contents(self, what: Contents) -> Token:
        return [
            (self._ref(mm, ".mm"), number, self._tokens(windows[number]))
            for mm, windows in what._expected.items()
            for number in sorted(windows)
        ]

    def _file(self, what: AddressSpace) -> Token:
        return self._tokens(what.tokens)

    def _tree(self, what: IntervalTree) -> Token:
        return [self._ref(entry[2], f"[{size}]") for size in sorted(what.by_size) for entry in what.by_size[size]]


def _calls(task: Task) -> list[FrameType]:
    """List the model's own calls that a task is in, the innermost first."""
    frame = task.greenlet.gr_frame if task.greenlet is not None else None
    running = frame is None and task.kernel.current is task
    if running:
        frame = sys._getframe()
    calls: list[FrameType] = []
    while frame is not None:
        if frame.f_globals.get("__name__") not in _SWITCHING:
            calls.append(frame)
        elif running:
            # What the yield point has called, to observe it, is no part of the task.
            calls.clear()
            running = False
        frame = frame.f_back
    return calls


@cache
def _more(kind: type) -> tuple[Callable[[_Walk, Any], Token], ...]:
    return tuple((_ENTER | _MORE)[cls] for cls in kind.__mro__ if cls in _ENTER or cls in _MORE)


@cache
def _left_out(kind: type) -> frozenset[str]:
    return frozenset[str]().union(*(names for cls, names in _LEFT_OUT.items() if issubclass(kind, cls)))


@cache
def _family(name: str) -> str | None:
    """Return in which family a number of this name is compared; "" for one that is what it is, None for a clock."""
    if _CLOCK.search(name):
        return None
    if name in _FAMILIES:
        return _FAMILIES[name]
    return "notifier" if _SEQUENCE.search(name) else ""


@cache
def _plan(kind: type) -> tuple[tuple[str, str], ...]:
    """List the slots of a class that are looked at, by name, each with its family."""
    left_out = _left_out(kind)
    families = {name: _family(name) for name, _ in slots_of(kind) if name not in left_out}
    return tuple((name, family) for name, family in sorted(families.items()) if family is not None)


_ENTER: Final[dict[type, Callable[[_Walk, Any], Token]]] = {
    dict: _Walk._dict,
    list: _Walk._list,
    deque: _Walk._list,
    set: _Walk._set,
    frozenset: _Walk._set,
    bytes: _Walk._bytes,
    bytearray: _Walk._bytes,
    array: _Walk._bytes,
    np.ndarray: _Walk._array,
    memoryview: _Walk._memoryview,
    types.FunctionType: _Walk._function,
    types.CellType: _Walk._cell,
    partial: _Walk._partial,
}
# Beside their fields.
_MORE: Final[dict[type, Callable[[_Walk, Any], Token]]] = {
    DevPagemaps: _Walk._handles,
    RwSemaphore: _Walk._rwsem,
    ExploredScheduler: _Walk._scheduler,
    Zone: _Walk._zone,
    Contents: _Walk._contents,
    AddressSpace: _Walk._file,
    IntervalTree: _Walk._tree,
}
