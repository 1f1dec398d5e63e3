"""kernel/locking/lockdep.c, as of Linux 7.3.4: find a wrong lock order the first time it is used, not the first time it
hangs.

Locks of one name are one class. What a task holds, in order, is a path in a trie of classes (`Chain`); a step to a
child that exists has been checked before and costs one dict lookup, as the kernel's chain cache does. Only a step that
was never made before is checked, and only then is its place taken: a message therefore names where a lock was *first*
taken in that situation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

from gpusvm.errors import LockdepError
from gpusvm.kernel.place import Site, caller, name_site, site_of_caller

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel
    from gpusvm.kernel.task import Task


# Where the first lock was taken, where the second was then, and by which task.
_Edge = tuple[Site | None, Site | None, str]


class LockClass:
    """Be what all locks of one name have in common; ``after`` holds the classes that were taken while this one was
    held.
    """

    __slots__ = ("after", "atomic", "key", "kind", "name", "ordered", "sleeps", "subclass", "tried")

    def __init__(
        self,
        kind: str,
        name: str,
        subclass: int,
        *,
        sleeps: bool,
        atomic: bool,
        ordered: bool,
        key: LockClass | None = None,
    ) -> None:
        self.kind: Final = kind
        self.name: Final = name
        self.subclass: Final = subclass
        self.sleeps: Final = sleeps  # taking it may sleep
        self.atomic: Final = atomic  # holding it forbids to sleep
        self.ordered: Final = ordered  # it takes part in the order; contexts do not
        self.after: Final[dict[LockClass, _Edge]] = {}
        self.key: Final[LockClass] = key or self  # what a trylock orders as, once it is held
        self.tried: Final[LockClass] = (
            LockClass(kind, name, subclass, sleeps=False, atomic=atomic, ordered=True, key=self)
            if ordered and key is None
            else self
        )

    def describe(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}" + (f" (subclass {self.subclass})" if self.subclass else "")


class Chain(dict[LockClass, "Chain"]):
    """Be what a task holds: the class last taken, the site where that was first done, and the chain before it."""

    __slots__ = ("_before", "cls", "parent", "site")

    def __init__(self, parent: Chain | None, cls: LockClass | None, site: Site | None) -> None:
        super().__init__()
        self.parent: Final = parent
        self.cls: Final = cls
        self.site: Final = site
        self._before: Final[tuple[Chain, ...]] = () if parent is None else parent.path()

    @property
    def place(self) -> str:
        return name_site(self.site)

    def path(self) -> tuple[Chain, ...]:
        """Return the nodes from the first lock held to the last."""
        return self._before if self.cls is None else (*self._before, self)


class Lockdep:
    """Know every lock class, the order in which they nest, and what is forbidden where."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._classes: dict[tuple[str, str, int], LockClass] = {}
        self.root = Chain(None, None, None)
        self._notifier = LockClass("context", "mmu notifier", 0, sleeps=False, atomic=False, ordered=False)
        self.section = LockClass("context", "preempt_disable", 0, sleeps=False, atomic=True, ordered=False)
        self._forbidden: frozenset[str] = frozenset({"mmap_lock", "alloc"})

    @property
    def forbid_in_notifier(self) -> frozenset[str]:
        """Name what a task must not do inside an mmu notifier callback: lock classes, "alloc" (might_alloc), "sleep".

        By default mmap_lock and alloc (__mmu_notifier_invalidate_range_start_map and fs_reclaim in the kernel's
        lockdep).
        """
        return self._forbidden

    @forbid_in_notifier.setter
    def forbid_in_notifier(self, names: frozenset[str]) -> None:
        self._forbidden = frozenset(names)
        chains = [self.root]  # what was allowed so far has to be checked again
        for chain in chains:
            chains.extend(chain.values())
            chain.clear()

    def lock_class(
        self, kind: str, name: str, subclass: int = 0, *, sleeps: bool = False, atomic: bool = False
    ) -> LockClass:
        """Return the class of the locks of this kind and name; `subclass` tells levels of one class apart
        (mutex_lock_nested).
        """
        cls = self._classes.get((kind, name, subclass))
        if cls is None:
            cls = LockClass(kind, name, subclass, sleeps=sleeps, atomic=atomic, ordered=True)
            self._classes[kind, name, subclass] = cls
        return cls

    def subclass(self, cls: LockClass, subclass: int) -> LockClass:
        return self.lock_class(cls.kind, cls.name, subclass, sleeps=cls.sleeps, atomic=cls.atomic)

    def acquire(self, task: Task, lock: Any, cls: LockClass) -> Chain:
        """Check a step that was never made before and return its chain (validate_chain); the caller appends to
        task.held.

        `lock` is the instance. Raises LockdepError.
        """
        site = site_of_caller()
        if task.held:
            path = task.chain.path()
            waits, sleeps, notifier = cls.key is cls, cls.sleeps, self._notifier  # a trylock waits for nobody
            for node in path:
                held = node.cls
                assert held is not None
                if sleeps and held.atomic:
                    self._sleeping(task, f"taking {cls}", name_site(site))
                if (
                    held is notifier
                    and waits
                    and (cls.name in self._forbidden or (sleeps and "sleep" in self._forbidden))
                ):
                    raise LockdepError(
                        f"in an mmu notifier: task {task.name!r} takes {cls} at {name_site(site)}, "
                        f"inside a notifier callback made at {node.place}{self._kernel.blame('notifier-alloc')}"
                    )
            if waits and cls.ordered:
                self._check_order(task, lock, cls, path, site)
        node = Chain(task.chain, cls, site)
        task.chain[cls] = node
        return node

    def _check_order(self, task: Task, lock: Any, cls: LockClass, path: tuple[Chain, ...], site: Site | None) -> None:
        for node, instance in zip(path, task.held, strict=True):
            assert node.cls is not None
            if instance is lock:
                raise LockdepError(
                    f"recursive lock: task {task.name!r} takes {cls} at {name_site(site)} and holds it since "
                    f"{node.place}{self._kernel.blame('lock-order')}"
                )
            if node.cls.key is cls:
                raise LockdepError(
                    f"possible recursive locking: task {task.name!r} takes {cls} at {name_site(site)} and holds "
                    f"another of that class since {node.place}; if they nest in a known order, say so with a subclass"
                    f"{self._kernel.blame('lock-order')}"
                )
        for node in path:
            assert node.cls is not None
            before = node.cls.key
            if not before.ordered or cls in before.after:
                continue
            circle = self._find(cls, before) if cls.after else ()
            if circle:
                first = f"{before} (taken at {node.place}), then {cls} at {name_site(site)} by task {task.name!r}"
                known = "; ".join(
                    f"{a} (taken at {name_site(at)}), then {b} at {name_site(then)} by task {name!r}"
                    for a, b, (at, then, name) in circle
                )
                raise LockdepError(f"lock order: {first}; but before: {known}{self._kernel.blame('lock-order')}")
            before.after[cls] = (node.site, site, task.name)

    @staticmethod
    def _find(start: LockClass, goal: LockClass) -> list[tuple[LockClass, LockClass, _Edge]]:
        """Return the shortest known order that leads from `start` to `goal`, empty if there is none."""
        came: dict[LockClass, tuple[LockClass, _Edge]] = {}
        queue = [start]
        for cls in queue:
            for follower, edge in cls.after.items():
                if follower in came or follower is start:
                    continue
                came[follower] = (cls, edge)
                if follower is goal:
                    steps = []
                    while follower is not start:
                        before, edge = came[follower]
                        steps.append((before, follower, edge))
                        follower = before
                    return steps[::-1]
                queue.append(follower)
        return []

    def release(self, task: Task, lock: Any) -> None:
        """Take `lock` off what the task holds, in any order; raise LockdepError if it does not hold it."""
        held = task.held
        if held and held[-1] is lock:
            held.pop()
            assert task.chain.parent is not None
            task.chain = task.chain.parent
            return
        for at in range(len(held) - 1, -1, -1):
            if held[at] is lock:
                break
        else:
            raise LockdepError(
                f"task {task.name!r} releases {lock.describe()} at {caller()} and does not hold it"
                f"{self._kernel.blame('lock-order')}"
            )
        path = task.chain.path()
        chain = path[at].parent
        assert chain is not None
        for node in path[at + 1 :]:
            assert node.cls is not None
            after = chain.get(node.cls)
            if after is None:  # a part of what was checked needs no check
                after = chain[node.cls] = Chain(chain, node.cls, node.site)
            chain = after
        task.chain = chain
        del held[at]

    def notifier(self, task: Task, change: int) -> None:
        """Enter (change > 0) or leave mmu notifier callbacks."""
        for _ in range(change):
            task.chain = self.enter(task, self._notifier)
            task.held.append(self._notifier)
        for _ in range(-change):
            self.release(task, self._notifier)

    @staticmethod
    def enter(task: Task, context: LockClass) -> Chain:
        """Return the chain of `task` inside a context, such as a section with preemption disabled."""
        chain = task.chain.get(context)
        if chain is None:
            chain = task.chain[context] = Chain(task.chain, context, site_of_caller())
        return chain

    def check_sleep(self, task: Task, doing: str) -> None:
        """Raise LockdepError if the task must not sleep here (might_sleep)."""
        if task.preempt_count:
            self._sleeping(task, doing, caller())
        if task.in_notifier and "sleep" in self._forbidden:
            self._in_notifier(task, doing)

    def check_alloc(self, task: Task) -> None:
        """Raise LockdepError if the task must not allocate with reclaim here (might_alloc)."""
        if task.in_notifier and "alloc" in self._forbidden:
            self._in_notifier(task, "allocating")

    def _in_notifier(self, task: Task, doing: str) -> NoReturn:
        node = next(node for node in task.chain.path() if node.cls is self._notifier)
        raise LockdepError(
            f"in an mmu notifier: task {task.name!r} is {doing} at {caller()}, "
            f"inside a notifier callback made at {node.place}{self._kernel.blame('notifier-alloc')}"
        )

    def _sleeping(self, task: Task, doing: str, place: str) -> NoReturn:
        since = name_site(task.atomic_site)
        what = next(str(node.cls) for node in task.chain.path() if node.cls is not None and node.cls.atomic)
        raise LockdepError(
            f"sleeping while atomic: task {task.name!r} is {doing} at {place}, atomic since {since} ({what})"
            f"{self._kernel.blame('atomic')}"
        )


class LockMap:
    """Let lockdep see as a lock what is none (struct lockdep_map): a page's lock bit, a workqueue that is flushed, an
    SRCU section.
    """

    __slots__ = ("_cls", "_kernel", "name")

    def __init__(self, kernel: Kernel, kind: str, name: str, *, sleeps: bool = False) -> None:
        self.name: Final = name
        self._kernel: Final = kernel
        self._cls: Final = kernel.lockdep.lock_class(kind, name, sleeps=sleeps)

    def describe(self) -> str:
        return str(self._cls)

    def acquire(self, *, trylock: bool = False) -> None:
        """Note that the running task takes it, before it waits; a trylock is not checked against what is held
        (lock_acquire).
        """
        if self._kernel.checked:
            task = self._kernel.current
            cls = self._cls.tried if trylock else self._cls
            chain = task.chain.get(cls)
            if chain is None:
                chain = self._kernel.lockdep.acquire(task, self, cls)
            task.chain = chain
            task.held.append(self)

    def release(self) -> None:
        """Note that the running task gives it back (lock_release)."""
        if self._kernel.checked:
            self._kernel.lockdep.release(self._kernel.current, self)
