"""Name the code of drivers in errors: the op, the line of the driver's own file, and the rule that it breaks.

Core finds a breach where it shows, which is seldom where it was made. Whoever writes a driver needs the line of his own
that took what was not given back, or called what may sleep. A kernel with `Authors` notes that; one without, as every
run that is timed or explored, pays a look at an attribute.
"""

from __future__ import annotations

import gc
import inspect
import re
import sys
from enum import Enum
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from attrs import frozen

from gpusvm.errors import LedgerError, ModelError
from gpusvm.kernel.duties import DUTIES
from gpusvm.kernel.place import place_of
from gpusvm.kernel.refs import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType, FrameType, TracebackType

    from gpusvm.kernel.core import Kernel

__all__ = ["Author", "Authors", "PlacedLedger", "blames_call", "code_roots"]

_CORE: Final = str(Path(__file__).parent.parent / "_").removesuffix("_")

# Who asks a machine: below it on the stack, pytest's included, is no code of a driver.
_ASKS: Final = str(Path(__file__).parent.parent / "testing" / "bench.py")

_DUTY_OF_KIND: Final = {
    "pm": "pm-put",
    "dma": "dma-unmap",
    "iova": "dma-unmap",
    "bo": "bo-put",
    "zdd": "zdd-put",
    "range": "range-remove",
    "notifier": "range-remove",
}
_PLACES_SHOWN: Final = 4
_NOT_TAKEN: Final = re.compile(r"([\w.<>]+)\(\) (?:takes|missing|got) ")


@frozen(cache_hash=True)  # every reference that is taken looks for its own
class Author:
    """Point into a driver: `op` is the function that core called, `place` the line that it had come to."""

    op: str
    place: str

    def __str__(self) -> str:
        return f"in {self.op} at {self.place}"


class _Kind(Enum):
    """Say whose code is: a driver's, core's, or anybody else's."""

    DRIVER = "driver"
    CORE = "core"
    OTHER = "other"


def code_roots(*things: Any) -> tuple[str, ...]:
    """Return where the code of functions and classes lies: the directory of their package, or their file."""
    roots: dict[str, None] = {}
    for thing in things:
        each = thing
        while isinstance(each, partial):
            for argument in each.args:  # what a partial is given may be the user's, too: the classes of a variant
                named = argument.values() if isinstance(argument, dict) else (argument,)
                roots.update(dict.fromkeys(code_roots(*(one for one in named if callable(one)))))
            each = each.func
        each = inspect.unwrap(each) if callable(each) else each
        module = sys.modules.get(getattr(each, "__module__", None) or "")
        top = sys.modules.get(module.__name__.partition(".")[0]) if module is not None else None
        paths = list(getattr(top, "__path__", ()))
        if not paths:
            code = getattr(each, "__code__", None)
            file = code.co_filename if code is not None else getattr(module, "__file__", None)
            paths = [file] if file else []
        for path in map(Path, paths):
            folder = path.parent if path.suffix == ".py" else path
            while (folder.parent / "__init__.py").is_file():
                folder = folder.parent
            packaged = (folder / "__init__.py").is_file() or path.suffix != ".py"
            root = str(folder / "_").removesuffix("_") if packaged else str(path)
            if not root.startswith(_CORE):
                roots[root] = None
    return tuple(roots)


class Authors:
    """Know which files are drivers' own (`roots`), and what drivers have begun and not ended."""

    def __init__(self, kernel: Kernel, roots: Iterable[str]) -> None:
        self.roots = tuple(roots)
        self._kernel = kernel
        self._kinds: dict[str, _Kind] = {}  # by file
        self._sites: dict[tuple[str, int, str], Author] = {}  # by file, line and op
        self._devmems: list[tuple[object, object, Author | None]] = []  # (Devmem, task, who made it)
        self._checked: dict[object, list[tuple[object, int, int, tuple[object, ...]]]] = {}
        self._exclusive: dict[tuple[object, int], int] = {}
        self._migrating: list[Any] = []
        self._folios: dict[int, dict[Author, int]] = {}
        self.guards: dict[tuple[int, str], tuple[object, object]] = {}  # (what is guarded, its guard), by identity

    @property
    def task(self) -> object:
        """Return the running task."""
        return self._kernel.current

    # ---- who -----------------------------------------------------------------------------------------------------

    def owns(self, filename: str) -> bool:
        """Tell whether a file is a driver's own."""
        return (self._kinds.get(filename) or self._kind(filename)) is _Kind.DRIVER

    def find(self, frame: FrameType | None = None) -> Author | None:
        """Return the innermost line of a driver on the stack, and the function of the driver that core called."""
        frame = frame or sys._getframe(1)
        kinds, driver = self._kinds, _Kind.DRIVER  # each reference that is taken or put asks this
        while frame is not None:
            code = frame.f_code
            file = code.co_filename
            if (kinds.get(file) or self._kind(file)) is driver:
                break
            if file == _ASKS:
                return None
            frame = frame.f_back
        else:
            return None
        op = code
        caller = frame.f_back
        while caller is not None:
            other = caller.f_code
            kind = kinds.get(other.co_filename) or self._kind(other.co_filename)
            if kind is _Kind.DRIVER:
                op = other
            elif kind is _Kind.CORE and not _is_callback(op):
                break
            caller = caller.f_back
        site = (code.co_filename, frame.f_lineno, op.co_qualname)
        author = self._sites.get(site)
        if author is None:
            author = self._sites[site] = Author(_name(op), place_of(code.co_filename, frame.f_lineno))
        return author

    def _kind(self, filename: str) -> _Kind:
        if self.roots and filename.startswith(self.roots):
            kind = _Kind.DRIVER
        else:
            kind = _Kind.CORE if filename.startswith(_CORE) else _Kind.OTHER
        self._kinds[filename] = kind
        return kind

    def of(self, function: Any) -> Author | None:
        """Return where a function or class of a driver begins; None for what is no driver's."""
        target = inspect.unwrap(getattr(function, "__func__", function))
        if isinstance(target, type):
            found = _begins(target)
            return Author(target.__qualname__, place_of(*found)) if found and self.owns(found[0]) else None
        code = getattr(target, "__code__", None)
        if code is None or not self.owns(code.co_filename):
            return None
        return Author(_name(code), place_of(code.co_filename, code.co_firstlineno))

    def says(self, duty: str, author: Author | None) -> str:
        """Return the end of a message: who, the rule, and where it is explained; nothing where nobody is known."""
        if author is None:
            return ""
        return f"\n  {author}{self.rule(duty)}"

    @staticmethod
    def rule(duty: str) -> str:
        """Return the rule, and where it is explained."""
        found = DUTIES[duty]
        return f"\n  rule {duty}: {found.text}\n  see {found.see}"

    def blames(self, duty: str, op: str) -> str:
        """Return the end of a message about an `op` that did not do what it owes: whose it is, and the rule."""
        for ops, _ in self.guards.values():
            function = getattr(type(ops), op, None)
            if callable(function):
                author = self.of(function) or self.of(type(ops))
                if author is not None:
                    return self.says(duty, author)
        return self.rule(duty)

    # ---- allocations of device memory ----------------------------------------------------------------------------

    def made(self, devmem: object) -> None:
        """Note a new Devmem, which somebody has to consume."""
        self._devmems.append((devmem, self._kernel.current, self.find()))

    def consumed(self, devmem: object) -> None:
        """Note that core has it, or that it was released."""
        self._devmems = [each for each in self._devmems if each[0] is not devmem]

    def assert_consumed(self, task: object = None) -> None:
        """Raise LedgerError for one that nobody has consumed, made by `task`, or by anybody."""
        for devmem, maker, author in self._devmems:
            if task is None or maker is task:
                self.consumed(devmem)
                raise LedgerError(
                    "ledger: a Devmem was made and neither migrated to nor released"
                    + (self.says("devmem-consumed", author) or self.rule("devmem-consumed"))
                )

    # ---- device pages --------------------------------------------------------------------------------------------

    def took_folio(self, pfn: int, frame: FrameType) -> None:
        """Note that the code of `frame` took a reference on a folio, if it is a driver's."""
        author = self.find(frame) if self.owns(frame.f_code.co_filename) else None
        if author is not None:
            takers = self._folios.setdefault(pfn, {})
            takers[author] = takers.get(author, 0) + 1

    def takers(self, pfn: int) -> dict[Author, int]:
        """Return which lines of drivers took references on a folio, and how many."""
        return self._folios.get(pfn, {})

    # ---- the GPU's page table ------------------------------------------------------------------------------------

    def unchanged(self, mm: object, start: int, end: int) -> None:
        """Note that the running task has found a sequence over [start, end) unchanged, and which locks it holds."""
        task = self._kernel.current
        held = _locks(task)
        if held:
            records = []
            for whose, first, last, locks in self._checked.get(task, ()):
                if whose is mm and first <= end and start <= last and tuple(map(id, locks)) == tuple(map(id, held)):
                    start, end = min(start, first), max(end, last)  # one record, however many small ranges there are
                elif _any_in(locks, held):
                    records.append((whose, first, last, locks))
            self._checked[task] = [*records, (mm, start, end, held)]

    def exclusive(self, mm: object, addr: int, pfn: int) -> None:
        """Note a page that one device has for itself, its lock held: nobody can take it back meanwhile."""
        self._exclusive[mm, addr] = pfn

    def migrates(self, args: Any, *, ends: bool = False) -> None:
        """Note that a migration of [args.start, args.end) has isolated and locked its pages, or that it ends."""
        if ends:
            self._migrating = [each for each in self._migrating if each is not args]
        else:
            self._migrating.append(args)

    def writes(self, mm: object, start: int, end: int, pfn: int | None) -> None:
        """Raise ModelError unless the running task may write the GPU's page table there, to `pfn` if it is one page."""
        held = _locks(self._kernel.current)
        for whose, first, last, locks in self._checked.get(self._kernel.current, ()):
            if whose is mm and first < end and last > start and _any_in(locks, held):
                return
        if pfn is not None and self._exclusive.get((mm, start)) == pfn:
            return
        if any(each.vma.mm is mm and each.start <= start and end <= each.end for each in self._migrating):
            return
        author = self.find()
        if author is None:
            return
        raise ModelError(
            f"the GPU's page table is written for [{start:#x}, {end:#x}) without a look at the sequence under a lock "
            f"that is still held{self.says('pte-recheck', author)}"
        )


def blames_call(error: BaseException) -> str:
    """Return the end of a message about an op that core could not call as the contract writes it: the op, its line, the
    rule; nothing for any other error.
    """
    found = _NOT_TAKEN.match(str(error)) if isinstance(error, TypeError) else None
    if found is None or not _caller(error.__traceback__).startswith(_CORE):
        return ""
    # Python names the function and does not hand it out; an error may take its time.
    functions = [each for each in gc.get_objects() if isinstance(each, FunctionType) and each.__qualname__ == found[1]]
    codes = {each.__code__ for each in functions if not each.__code__.co_filename.startswith(_CORE)}
    if not codes:
        return ""
    authors = {str(Author(_name(code), place_of(code.co_filename, code.co_firstlineno))) for code in codes}
    return f"\n  {', or '.join(sorted(authors))}{Authors.rule('signature')}"


def _caller(traceback: TracebackType | None) -> str:
    return [frame.f_code.co_filename for frame, _ in walk_tb(traceback)][-1]


# By class: Python finds the line of one by reading its whole file anew, which takes as long as ten GPU faults.
_BEGINNINGS: Final[WeakKeyDictionary[type, tuple[str, int] | None]] = WeakKeyDictionary()


def _begins(cls: type) -> tuple[str, int] | None:
    """Return the file and the line that a class begins at; None if it has no source."""
    if cls not in _BEGINNINGS:
        try:
            _BEGINNINGS[cls] = inspect.getfile(cls), inspect.getsourcelines(cls)[1]
        except (OSError, TypeError):
            _BEGINNINGS[cls] = None
    return _BEGINNINGS[cls]


def _locks(task: Any) -> tuple[object, ...]:
    # Contexts are classes; and no invalidation waits for the mmap_lock.
    return tuple(lock for lock in task.held if getattr(lock, "name", "mmap_lock") != "mmap_lock")


def _any_in(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    return any(one is other for one in some for other in others)


def _is_callback(code: CodeType) -> bool:
    """Tell whether a function was written inside of another, to be handed to core: the op is that other one."""
    return code.co_name == "<lambda>" or ("<locals>" in code.co_qualname and "." not in _name(code))


def _name(code: CodeType) -> str:
    return code.co_qualname.rpartition("<locals>.")[2]


class PlacedLedger(Ledger):
    """Be a ledger that also knows from which lines of drivers references were taken and given back."""

    __slots__ = ("_authors", "_sites")

    def __init__(self, authors: Authors) -> None:
        super().__init__(checked=True)
        self._authors = authors
        # (kind, key of the holder) -> (taken, given back), each {author: how many}
        self._sites: dict[object, tuple[dict[Author, int], dict[Author, int]]] = {}

    def get(self, kind: str, holder: object, n: int = 1) -> None:
        super().get(kind, holder, n)
        self._note(kind, holder, n, 0)

    def put(self, kind: str, holder: object, n: int = 1) -> None:
        try:
            super().put(kind, holder, n)
        except LedgerError as error:
            raise LedgerError(f"{error}{self._authors.says(_duty(kind), self._authors.find())}") from None
        self._note(kind, holder, n, 1)
        if self._key(kind, holder) not in self._accounts:
            self._sites.pop(self._key(kind, holder), None)

    def assert_empty(self) -> None:
        """Raise LedgerError as any ledger does; it also says which lines of drivers took what was not given back."""
        if not self._accounts:
            return
        lines = ["ledger: not given back"]
        duties: dict[str, None] = {}
        for key, (kind, holder, count) in zip(self._accounts, self.entries(), strict=True):
            lines.append(f"  {kind!r} held by {holder}: {count}")
            taken, given = self._sites.get(key, ({}, {}))
            lines += [f"    {n} taken {author}" for author, n in list(taken.items())[:_PLACES_SHOWN]]
            lines += [f"    {n} given back {author}" for author, n in list(given.items())[:_PLACES_SHOWN]]
            if taken:
                duties[_duty(kind)] = None
        raise LedgerError("\n".join(lines) + "".join(self._authors.rule(duty) for duty in duties))

    @staticmethod
    def _key(kind: str, holder: object) -> object:
        return (kind, holder if type(holder) is str else id(holder))

    def _note(self, kind: str, holder: object, n: int, side: int) -> None:
        author = self._authors.find()
        if author is not None:
            sites = self._sites.setdefault(self._key(kind, holder), ({}, {}))[side]
            sites[author] = sites.get(author, 0) + n


def _duty(kind: str) -> str:
    return _DUTY_OF_KIND.get(kind, "reference-put")
