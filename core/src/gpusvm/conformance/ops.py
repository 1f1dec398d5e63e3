"""Stand at the ops that a driver supplies to drm_gpusvm and drm_pagemap, and see each call from both sides.

Whatever object of core is made inside the context, by whichever driver, has its ops watched: no driver is known by its
name. A call is remembered with what the caller held and what came of it; a check may look at the machine before and
after a call, and may have an op answer with an errno in the driver's place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from attrs import Factory, define

from gpusvm.drm import Devmem, DrmPagemap, GpuSvm
from gpusvm.errors import KernelError, errno_name
from gpusvm.kernel import RwSemaphore

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel

__all__ = ["Look", "OpCall", "OpsLog", "watched_ops"]

_OPS: Final = {
    GpuSvm: ("range_alloc", "range_free", "notifier_alloc", "notifier_free", "invalidate"),
    DrmPagemap: ("destroy", "device_map", "device_unmap", "populate_mm"),
    Devmem: ("devmem_release", "populate_devmem_pfn", "copy_to_devmem", "copy_to_ram"),
}


@define(eq=False)
class OpCall:
    """Be one call of an op, `at` its place in the order in which calls began.

    `within` is the call that was not over when it began, None at the top of the task. `held` are the locks of the task
    by name, `written` those of them that it holds for writing; `atomic` and `in_notifier` say where it was. `error` is
    what the op raised, `ended` the number of calls that had begun when it was over, and -1 before.
    """

    op: str
    args: tuple[Any, ...]
    at: int
    within: "OpCall | None"
    task: object
    held: tuple[str, ...]
    written: frozenset[str]
    atomic: bool
    in_notifier: bool
    result: Any = None
    error: BaseException | None = None
    ended: int = -1
    seen: dict[str, Any] = Factory(dict)

    def is_within(self, op: str) -> bool:
        """Tell whether it was made while a call of another op was not over."""
        outer = self.within
        while outer is not None and outer.op != op:
            outer = outer.within
        return outer is not None

    def __str__(self) -> str:
        return f"call {self.at} of {self.op}"


Look = Callable[[OpCall], "str | None"]
"""Look at the machine before or after a call; words say what is wrong, None nothing."""


@define
class _Answer:
    errno: int
    skip: int
    times: int
    done: bool


@define(eq=False)
class OpsLog:
    """Hold what was seen of the ops: all `calls` in order, and the objects of core that were made."""

    calls: list[OpCall] = Factory(list)
    problems: list[str] = Factory(list)
    gpusvms: list[GpuSvm] = Factory(list)
    pagemaps: list[DrmPagemap] = Factory(list)
    devmems: list[Devmem] = Factory(list)
    _before: dict[str, list[Look]] = Factory(dict)
    _after: dict[str, list[Look]] = Factory(dict)
    _answers: dict[str, _Answer] = Factory(dict)
    _stack: dict[object, list[OpCall]] = Factory(dict)
    _wrapped: dict[int, tuple[object, object]] = Factory(dict)

    def of(self, *ops: str) -> list[OpCall]:
        """Return the calls of some ops, in order."""
        return [call for call in self.calls if call.op in ops]

    def some(self, *ops: str) -> list[OpCall]:
        """Return them. AssertionError if there is none: the scene has to lead there."""
        found = self.of(*ops)
        assert found, f"core never called {' or '.join(ops)}"
        return found

    def one(self, op: str) -> OpCall:
        """Return the only call of an op. AssertionError if there is another number of them."""
        found = self.some(op)
        assert len(found) == 1, f"core called {op} {len(found)} times"
        return found[0]

    def before(self, *ops: str) -> Callable[[Look], Look]:
        """Have a function look before each call of some ops."""
        return self._looks(self._before, ops)

    def after(self, *ops: str) -> Callable[[Look], Look]:
        """Have a function look after each, also one that raised."""
        return self._looks(self._after, ops)

    def fail(self, op: str, errno: int, *, nth: int = 1, times: int = 1, done: bool = False) -> None:
        """Have an op answer with an errno, on its nth call from now on and the next times - 1: in the driver's place,
        or, `done`, after the driver has done what it was asked.
        """
        self._answers[op] = _Answer(errno=errno, skip=nth - 1, times=times, done=done)

    def failed(self, op: str) -> int:
        """Return how often an op did answer so."""
        return sum(call.op == op and bool(call.seen.get("made to fail")) for call in self.calls)

    def judge(self) -> None:
        """Raise AssertionError with what the looks found, if it is anything."""
        assert not self.problems, self.problems[0]

    @staticmethod
    def _looks(where: dict[str, list[Look]], ops: tuple[str, ...]) -> Callable[[Look], Look]:
        def add(look: Look) -> Look:
            for op in ops:
                where.setdefault(op, []).append(look)
            return look

        return add

    def _watch(self, of: Any, names: tuple[str, ...]) -> None:
        ops = of.ops
        if ops is None:
            return
        if id(ops) not in self._wrapped:  # who has one object for all has one behind this, too: core compares them
            self._wrapped[id(ops)] = (ops, _Watched(self, ops, names, _kernel_of(of)))
        of.ops = self._wrapped[id(ops)][1]

    def _begun(self, kernel: "Kernel", op: str, args: tuple[Any, ...]) -> OpCall:
        task = kernel.current
        stack = self._stack.setdefault(task, [])
        held = [lock for lock in task.held if hasattr(lock, "name")]
        call = OpCall(
            op=op,
            args=args,
            at=len(self.calls),
            within=stack[-1] if stack else None,
            task=task,
            held=tuple(lock.name for lock in held),
            written=frozenset(lock.name for lock in held if _is_written(lock)),
            atomic=task.preempt_count > 0,
            in_notifier=task.in_notifier > 0,
        )
        self.calls.append(call)
        stack.append(call)
        self._look(self._before, call)
        return call

    def _over(self, call: OpCall) -> None:
        call.ended = len(self.calls)
        self._stack[call.task].remove(call)
        self._look(self._after, call)

    def _look(self, where: dict[str, list[Look]], call: OpCall) -> None:
        for look in where.get(call.op, ()):
            problem = look(call)
            if problem is not None:
                self.problems.append(f"{call}: {problem}")

    def _answer(self, call: OpCall, *, done: bool) -> None:
        answer = self._answers.get(call.op)
        if answer is None or answer.done is not done:
            return
        if answer.skip:
            answer.skip -= 1
        elif answer.times:
            answer.times -= 1
            call.seen["made to fail"] = True
            raise KernelError(answer.errno, f"the check has {call.op} answer {errno_name(answer.errno)}")


class _Watched:
    """Be the ops of somebody else, each seen."""

    def __init__(self, log: OpsLog, ops: object, names: tuple[str, ...], kernel: "Kernel") -> None:
        self.__ops = ops
        for name in names:
            if getattr(ops, name, None) is not None:
                setattr(self, name, self.__seen(log, name, kernel))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__ops, name)

    def __seen(self, log: OpsLog, name: str, kernel: "Kernel") -> Callable[..., Any]:
        ops = self.__ops

        def called(*args: Any) -> Any:
            call = log._begun(kernel, name, args)
            try:
                log._answer(call, done=False)
                call.result = getattr(ops, name)(*args)
                log._answer(call, done=True)
            except BaseException as error:
                call.error = error
                raise
            finally:
                log._over(call)
            return call.result

        return called


def _is_written(lock: object) -> bool:
    return isinstance(lock, RwSemaphore) and lock.is_mine_to_write


def _kernel_of(of: Any) -> "Kernel":
    kernel: Kernel = of.drm.kernel if isinstance(of, Devmem) else of.kernel
    return kernel


@contextmanager
def watched_ops() -> Iterator[OpsLog]:
    """Watch the ops of every gpusvm, pagemap and allocation that is made inside the block, from its making on.

    At the end of the block the looks have to have found nothing (`OpsLog.judge`). What was made goes on to be watched,
    until its machine is taken down.
    """
    log = OpsLog()
    made: dict[type, list[Any]] = {GpuSvm: log.gpusvms, DrmPagemap: log.pagemaps, Devmem: log.devmems}
    kept: dict[Any, Any] = {cls: vars(cls)["__init__"] for cls in _OPS}
    try:
        for cls, names in _OPS.items():
            _have_watched(cls, names, log, made[cls])
        yield log
    finally:
        for cls, init in kept.items():
            cls.__init__ = init
    log.judge()


def _have_watched(cls: Any, names: tuple[str, ...], log: OpsLog, made: list[Any]) -> None:
    init: Callable[..., None] = cls.__init__

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        log._watch(self, names)
        made.append(self)

    cls.__init__ = make
