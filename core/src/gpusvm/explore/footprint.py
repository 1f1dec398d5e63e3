"""Know of every step of an execution what it touched, which steps are independent, and which orders are the same.

A scheduler that wants to skip equivalent orders keeps a `Footprints`::

    footprints = Footprints("gpusvm_xe")            # the driver's package, besides the model's own rooms
    with footprints.watching():                     # while machines are booted and run
        Campaign(boot, scheduler, footprints=footprints).run()
        # which calls, as do others who boot and execute:
        footprints.boot()                           # before a machine is booted
        footprints.begin(world.kernel)              # a new execution, on a machine booted or put back
        ...                                         # the kernel runs, the scheduler is asked
        footprints.end()
        footprints.steps                            # all finished steps so far, in order
        footprints.prefix_hash                      # the same for all reorderings of independent steps
        footprints.pending(task)                    # what a task goes on with: (label, reads, writes)

``steps[i].task`` names the task by its path (the ordinals of its spawns from main on), which is the same in every order
of independent steps; ``step.reads`` and ``step.writes`` are sets of small ints, one for each thing that is touched,
which mean the same in all executions of one `Footprints`. Two steps of different tasks are `independent` if neither
writes what the other touches: they may be swapped where they are adjacent, with the same state afterwards. (Steps of
one task never are.) Step i happens before j, not merely earlier, if ``footprints.happens_before(i, j)``.

Time is not among what is touched: each step moves the virtual clock by 1 us, and steps that read it (timeouts,
timeslices) may be swapped although they then read 1 us more or less. A task whose sleep or timeout ends, and a timer
that fires, is ordered after what started it only.

Without `watching` (a kernel with locks alone, no machine) only what operations name is known, and a step that names
nothing (``kernel.step()``) conflicts with every other; a lock or another object is known by its class and name then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from attrs import define

from gpusvm.errors import ModelError
from gpusvm.explore.watch import watching
from gpusvm.explore.watch_log import LOG, Key, Log
from gpusvm.kernel import EVERYTHING, RwSemaphore, Srcu, Task, Timer, peek
from gpusvm.kernel.poison import freed_class

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel

__all__ = ["Footprints", "Path", "Step", "independent"]

Path = tuple[int, ...]
"""A task: () is main, (0,) the first that main started, (0, 2) the third that this one started. A timer's is the path
of who made it with -1 - n appended, n counting what it made, and so are its firings', with their number."""

Things = frozenset[int]
Name = tuple[Any, ...]

# What operations on these are to each other, only their names say; of all other locks the fields are watched.
_BY_NAME: Final = (RwSemaphore, Srcu, Task, Timer)
_NOTHING: Final[Things] = frozenset()
_MASK: Final = (1 << 64) - 1
# Where others have the path of the task that made them: in the names of what was there before the execution, of tasks.
_BOOT: Final = -2
_TASK: Final = -3
_ARRAY: Final = -5


@define(eq=False)  # not frozen, which costs as much as all else that is done for a step
class Step:
    """One finished step. With `everything` it conflicts with all: it waited for them, or nothing is known of it."""

    task: Path
    number: int  # of the task's steps
    label: str
    reads: Things
    writes: Things
    everything: bool
    before: tuple[int, ...]
    """The steps, by position, that it comes after at once; what these come after comes before it too."""


@define(eq=False)
class _Undo:
    """Hold what the last step of each thing and task was before a step, to take the step back."""

    hash: int
    last: int  # -1: none
    fence: int
    readers: list[tuple[dict[Path, int], Path, int]]
    writers: list[tuple[int, int, dict[Path, int] | None]]


def independent(one: Step, other: Step) -> bool:
    """Tell whether two steps of different tasks may be swapped where they are adjacent."""
    return not (
        one.everything
        or other.everything
        or not one.writes.isdisjoint(other.writes)
        or not one.writes.isdisjoint(other.reads)
        or not one.reads.isdisjoint(other.writes)
    )


def _name_of(freed: object) -> object:
    try:
        return peek(freed, "name")
    except AttributeError:
        return ""


class _Aside:
    """Let an observer look at the machine without that being logged."""

    def __init__(self, observer: object, log: Log) -> None:
        self.observer = observer
        self.log = log

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.observer, name)
        log = self.log

        def call(*args: object) -> Any:
            on, log.on = log.on, False
            try:
                return method(*args)
            finally:
                log.on = on

        setattr(self, name, call)
        return call


class Footprints:
    """Record what each step of an execution touches; see the module. It is the kernel's `Footprint`.

    `packages` are the drivers' modules or packages, by name. With `checks` what the kernel's observer (the invariants)
    looks at counts as read by the step that it looks at, so that every state is seen that an invariant can tell apart.
    """

    def __init__(self, *packages: str, checks: bool = False) -> None:
        self.packages = packages
        self.checks = checks
        self.steps: list[Step] = []
        self.prefix_hash = 0
        self._kernel: Kernel | None = None
        self._watched = False
        self._things: dict[object, int] = {}  # what is touched, by canonical name: the same in all executions
        self._known: dict[Key, int] = {}  # the same by key, for the objects of this execution
        self._names: dict[int, Name] = {}  # of objects, by id
        self._booted = 0  # how many objects were made before executions began
        self._run_objects: list[int] = []
        self._run_keys: list[Key] = []
        self._keep = 0
        self._forget(0)

    def _forget(self, keep: int) -> None:
        if keep:
            while len(self.steps) > keep:
                self._take_back()
        else:  # whoever has the steps of the last execution keeps them
            self.steps = []
            self.prefix_hash = 0
            self._hashes: list[int] = []
            self._undo: list[_Undo] = []
            self._last: dict[Path, int] = {}  # step by task
            self._writer: dict[int, int] = {}  # last step that wrote a thing
            self._readers: dict[int, dict[Path, int]] = {}  # steps that have read it since, by task
            self._fence = -1  # the last step that touched everything
        self._at = 0
        self._kept = keep
        self._everything = False
        self._chosen = 0
        self._paths: dict[Task | Timer, Path] = {}
        self._children: dict[Path, int] = {}
        self._made: dict[Name, int] = {}
        self._pending: dict[Task, tuple[str, object, bool]] = {}

    # ---- what a scheduler asks

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the model's classes: boot and run machines inside."""
        with watching(*self.packages):
            self._watched = True
            self.boot()
            try:
                yield
            finally:
                self._watched = False

    def boot(self) -> None:
        """Begin to boot a machine: what is made from now on has the same names as at the boot before."""
        LOG.clear()
        LOG.objects.clear()
        LOG.on = False
        LOG.made = self._made_at_boot
        LOG.found = self._found_at_boot
        self._names.clear()
        self._known.clear()
        self._run_objects.clear()
        self._run_keys.clear()
        self._booted = 0

    def keep(self, steps: int) -> None:
        """Say that the next execution begins with as many steps of the last one: it has the same answers until then.

        These are not watched again, which is most of what watching costs a search.
        """
        self._keep = steps

    def begin(self, kernel: Kernel) -> None:
        """Begin an execution on a machine that was just booted, or put back to the state after its boot."""
        for which in self._run_objects:
            LOG.objects.pop(which, None)
            del self._names[which]
        for key in self._run_keys:
            del self._known[key]
        self._run_objects.clear()
        self._run_keys.clear()
        self._forget(self._keep)
        self._keep = 0
        self._kernel = kernel
        kernel.footprint = self
        if self._watched and not self.checks and kernel.observer is not None:
            if not isinstance(kernel.observer, _Aside):
                kernel.observer = _Aside(kernel.observer, LOG)
        LOG.made = self._made_in_run
        LOG.found = self._found_in_run
        LOG.clear()
        LOG.on = not self._kept
        for task in kernel.tasks:
            main = task is kernel.sched.main
            self._found(task, () if main else (-1, task.index))
            self._pending[task] = ("begins", None, False)

    def end(self) -> None:
        """Record no more of the execution; what was recorded stays until the next begins."""
        if self._kernel is not None:
            if self._kernel.current in self._pending:
                self._finish(self._kernel.current)
            self._kernel.footprint = None
            LOG.on = False
            if isinstance(self._kernel.observer, _Aside):
                self._kernel.observer = self._kernel.observer.observer
            self._kernel = None

    def path(self, task: Task | Timer) -> Path:
        """Return the path of a candidate."""
        path = self._paths.get(task)
        if path is None:
            path = self._paths[task] = self._timer_path(task)
        return path

    def children(self, path: Path) -> int:
        """Return how many tasks a task has started, or how often a timer has fired."""
        return self._children.get(path, 0)

    def running(self) -> Path:
        """Return the path of the running task."""
        assert self._kernel is not None
        return self._paths[self._kernel.current]

    def number(self, path: Path) -> int:
        """Return how many steps of a task are finished."""
        return sum(step.task == path for step in self.steps[: self._at])

    def pending(self, task: Task) -> tuple[str, Things, Things, bool]:
        """Return the operation that a task goes on with: label, what it is known to read and write, and whether it
        touches everything. What it touches besides is known when it has run.
        """
        label, what, write = self._pending[task]
        reads, writes = self._named(task, label, what, write)
        return label, reads, writes, self._unknown(label, what)

    def happens_before(self, first: int, second: int) -> bool:
        """Tell whether step `first` comes before step `second` in all equivalent orders, by position in `steps`."""
        before, todo = set(), [second]
        while todo:
            more = [each for each in self.steps[todo.pop()].before if each >= first and each not in before]
            before.update(more)
            todo += more
        return first in before

    def chose(self, choice: int) -> None:
        """Note a choice of data or a failure in the running step: executions that differ in it are no reorderings."""
        self._chosen = self._chosen * 31 + choice + 1 & _MASK

    # ---- what the kernel says

    def spawned(self, task: Task, by: Task | Timer) -> None:
        above = self.path(by)
        n = self._children.get(above, 0)
        self._children[above] = n + 1
        self._found(task, (*above, n))
        if isinstance(by, Task):
            self.touch(task, True)
        self._pending[task] = ("starts", by, True)

    def step(self, task: Task, label: str, what: object, write: bool) -> None:
        self._finish(task)
        self._pending[task] = (label, what, write)

    def touch(self, what: object, write: bool) -> None:
        if not LOG.on:
            return
        if what is EVERYTHING:
            self._everything = True
        elif what is not None:
            key = self._thing(what)
            (LOG.writes if write else LOG.reads).add((-1, key))

    def aside(self) -> AbstractContextManager[None]:
        return LOG.paused()

    def ended(self, task: Task) -> None:
        self._finish(task)
        del self._pending[task]

    # ---- parts

    def _found(self, task: Task, path: Path) -> None:
        self._paths[task] = path
        LOG.objects[id(task)] = task
        self._names[id(task)] = (_TASK, *path)
        self._run_objects.append(id(task))

    def _finish(self, task: Task) -> None:
        at = self._at
        self._at = at + 1
        if at < self._kept:
            self._chosen = 0
            step = self.steps[at]
            if step.task != self._paths[task] or step.label != self._pending[task][0]:
                raise ModelError(
                    f"nondeterminism: step {at} is {task.name}: {self._pending[task][0]}, and with the same answers "
                    f"before it was {step.label} of task {step.task}"
                )
            LOG.on = self._at == self._kept
            return
        if self._watched:
            LOG.compare()
        label, what, write = self._pending[task]
        known, translate = self._known, self._translate
        wrote = {known[key] if key in known else translate(key) for key in LOG.writes}
        read = {known[key] if key in known else translate(key) for key in LOG.reads}
        LOG.clear()
        reads, writes = self._named(task, label, what, write)
        wrote |= writes
        read |= reads
        read -= wrote
        everything = self._everything or self._unknown(label, what)
        self._everything = False
        self._append(self._paths[task], label, frozenset(read), frozenset(wrote), everything)

    def _named(self, task: Task, label: str, what: object, write: bool) -> tuple[Things, Things]:
        """Return what an operation says that it reads, and writes."""
        if label == "starts":
            return _NOTHING, frozenset(
                self._thing(each) for each in (task, what) if each is task or type(each) is Timer
            )
        things = _NOTHING
        if what is not None and what is not EVERYTHING and not self._fields_tell(what):
            things = frozenset((self._thing(what),))
        if label == "woken":
            return _NOTHING, things | {self._thing(task)}
        return (_NOTHING, things) if write else (things, _NOTHING)

    def _unknown(self, label: str, what: object) -> bool:
        """Tell whether an operation may touch anything."""
        return what is EVERYTHING or (what is None and not self._watched and label not in {"slept", "begins"})

    def _append(self, path: Path, label: str, reads: Things, writes: Things, everything: bool) -> None:
        me = len(self.steps)
        last = self._last.get(path, -1)
        undo = _Undo(self.prefix_hash, last, self._fence, [], [])
        before: set[int] = set()
        if everything:
            before.update(self._last.values())
        else:
            writer, readers = self._writer, self._readers
            for thing in reads:
                if thing in writer:
                    before.add(writer[thing])
                those = readers.get(thing)
                if those is None:
                    those = readers[thing] = {}
                undo.readers.append((those, path, those.get(path, -1)))
                those[path] = me
            for thing in writes:
                written = writer.get(thing, -1)
                if written >= 0:
                    before.add(written)
                writer[thing] = me
                popped = readers.pop(thing, None)
                if popped:
                    before.update(popped.values())
                undo.writers.append((thing, written, popped))
            if last >= 0:
                before.add(last)
            if self._fence >= 0:
                before.add(self._fence)
            before.discard(me)
        number = 0 if last < 0 else self.steps[last].number + 1
        self._last[path] = me
        if everything:
            self._fence = me
        self.steps.append(
            Step(
                task=path,
                number=number,
                label=label,
                reads=reads,
                writes=writes,
                everything=everything,
                before=tuple(before),
            )
        )
        # A hash of ints is the same in every run of Python.
        hashes = self._hashes
        own = hash((path, number, self._chosen, *sorted([hashes[each] for each in before]))) & _MASK
        self._chosen = 0
        hashes.append(own)
        self._undo.append(undo)
        self.prefix_hash = (self.prefix_hash + own) & _MASK

    def _take_back(self) -> None:
        """Forget the last step."""
        path = self.steps.pop().task
        self._hashes.pop()
        undo = self._undo.pop()
        self.prefix_hash = undo.hash
        self._fence = undo.fence
        if undo.last < 0:
            del self._last[path]
        else:
            self._last[path] = undo.last
        for thing, written, popped in undo.writers:
            if written < 0:
                del self._writer[thing]
            else:
                self._writer[thing] = written
            if popped is not None:
                self._readers[thing] = popped
        for those, reader, read in undo.readers:
            if read < 0:
                del those[reader]
            else:
                those[reader] = read

    def _fields_tell(self, what: object) -> bool:
        # Whether the watched fields say what an operation on this touches.
        if isinstance(what, tuple):
            what = what[0]
        return type(what) in LOG.watched and not isinstance(what, _BY_NAME)

    def _translate(self, key: Key) -> int:
        which, part = key
        if which == -1:
            return int(part)  # a thing already
        thing = self._known[key] = self._number((self._names[which], part))
        if self._names[which][0] != _BOOT:
            self._run_keys.append(key)
        return thing

    def _number(self, name: object) -> int:
        return self._things.setdefault(name, len(self._things))

    def _thing(self, what: object) -> int:
        return self._number(tuple(map(self._name, what)) if isinstance(what, tuple) else self._name(what))

    def _name(self, what: object) -> object:
        """Name an object as in every order of independent steps."""
        if isinstance(what, str | int | bytes):
            return what
        name = self._names.get(id(what))
        if name is not None and LOG.objects.get(id(what)) is what:
            return name
        freed = freed_class(type(what))
        if freed is not None:  # by the step itself, perhaps, which has the name that it had before
            return freed.__name__, _name_of(what)
        return type(what).__name__, getattr(what, "name", "")

    def _timer_path(self, timer: Task | Timer) -> Path:
        name = self._names.get(id(timer))
        if name is None:
            return -1, -1 - len(self._paths)
        return (*name[:-1], -1 - name[-1])

    def _made_at_boot(self, which: int) -> None:
        self._names[which] = (_BOOT, self._booted)
        self._booted += 1

    def _made_in_run(self, which: int) -> None:
        kernel = self._kernel
        path = self._paths[kernel.current] if kernel is not None else (-4,)
        n = self._made.get(path, 0)
        self._made[path] = n + 1
        self._names[which] = (*path, n)
        self._run_objects.append(which)

    def _found_at_boot(self, which: int, field: Key, known: bool) -> None:
        if not known:
            self._made_at_boot(which)

    def _found_in_run(self, which: int, field: Key, known: bool) -> None:
        # An array need not be new, as a function may keep its results: whoever asks first in this order did not make
        # it, and names of what that task makes must not depend on it.
        owner = field[0]
        name = (_ARRAY, self._names[owner], field[1])
        n = self._made.get(name, 0)
        self._made[name] = n + 1
        if not known:
            self._names[which] = (*name, n)
            self._run_objects.append(which)
