"""Record an execution step by step: what each task did, where in the code, who waited, what failed, what was told.

A recording costs several times what the execution does, so it is made when somebody reads it: when a finding is
explained, and for the few executions that are run twice and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from linecache import getline
from sys import _getframe, exc_info
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import Factory, define, field, frozen

from gpusvm.errors import CpuSignal, KernelError, ModelError
from gpusvm.kernel import describe
from gpusvm.kernel.place import leave_out, outside, place_of
from gpusvm.kernel.task import Waitable

if TYPE_CHECKING:
    from gpusvm.explore.scenario import Operation
    from gpusvm.explore.world import World
    from gpusvm.kernel import Task

__all__ = ["Entry", "Recording", "described", "first_difference", "recorded"]

leave_out(__file__)


Kind = Literal["step", "wait", "fail", "event", "begin", "end"]


@frozen
class Entry:
    """Be one line of a recording.

    `kind` is "step" (the task did the operation `what` on `on`), "wait" (it waits for `on`), "fail" (the injection
    site `what` failed), "event" (the model told `what` with the fields `on`), "begin" (the scenario's operation `what`)
    or "end" (of `what`, with the outcome `on`). `number` counts the steps of the
    execution, `place` is ``file:line in function``, `task` a name; two tasks may have the same one after each other.
    """

    number: int
    task: str
    kind: Kind
    what: str
    on: str
    place: str
    code: str = field(default="", eq=False)
    """The line of code at `place`."""

    def __str__(self) -> str:
        """Say it in one line, the same in every run of the same execution."""
        return " ".join(filter(None, (self.task, self.kind, self.what, self.on, self.place and f"at {self.place}")))


@define
class Recording:
    """Hold the entries of one execution in the order in which they happened."""

    entries: list[Entry] = Factory(list)
    broken_at: int | None = None
    """Index of the step that was under way when a rule broke; None if none did, or in no step."""
    _last_of: dict[Task, int] = Factory(dict)

    @property
    def places(self) -> set[tuple[str, str]]:
        """Return the kernel operations that were reached: (operation, place)."""
        return {(entry.what, entry.place) for entry in self.entries if entry.kind == "step"}

    def last_step(self) -> int | None:
        """Return the index of the last step of any task, None if there is none."""
        return max(self._last_of.values(), default=None)

    def lines(self) -> list[str]:
        """Return the entries as text, to be compared with those of another run."""
        return [str(entry) for entry in self.entries]


def described(what: object) -> str:
    """Name what a step touches, by kind and name and never by identity."""
    match what:
        case None:
            return ""
        case str():
            return what
        case Waitable():
            return describe(what)
        case (thing, str(field)):
            return f"{type(thing).__name__}.{field}"
        case (thing, int(number)):
            return f"{type(thing).__name__} {number:#x}"
    return type(what).__name__


@contextmanager
def recorded(world: World) -> Iterator[Recording]:
    """Record what the tasks of an explored machine do inside the block.

    An operation is recorded when it begins, that is after whoever else goes first at its yield point.
    """
    kernel, contents = world.kernel, world.machine.memory.contents
    recording = Recording()
    sched: Any = kernel.sched
    begun = sched.steps
    entries, last_of, events = recording.entries, recording._last_of, kernel.tracer.events
    told = len(events)
    failed = len(kernel.injector.failed)

    def catch_up() -> None:
        # What the model told since the last entry came before this one, and so did failures.
        nonlocal told, failed
        for _, task, kind, *fields in events[told:]:
            told += 1
            entries.append(Entry(sched.steps - begun, task, "event", kind, _fields(fields), ""))
        for site in kernel.injector.failed[failed:]:
            failed += 1
            entries.append(Entry(sched.steps - begun, kernel.current.name, "fail", site, "", ""))
        # A rule may break well before anybody is told: while its error goes up through the callers, locks are given
        # back; a read of stale contents is only counted.
        if recording.broken_at is None and (
            contents.mismatch_count or isinstance(exc_info()[1], ModelError | AssertionError)
        ):
            recording.broken_at = last_of.get(kernel.current)

    def note(kind: Kind, what: str, on: object) -> None:
        catch_up()
        task = kernel.current
        if kind == "step":
            last_of[task] = len(entries)
        place, code = _place(_getframe(2)) if kind in {"step", "wait"} else ("", "")
        entries.append(Entry(sched.steps - begun, task.name, kind, what, described(on), place, code))

    plain_yield: Callable[..., None] = kernel.yield_point
    plain_relax, plain_block, plain_finish = sched.cpu_relax, sched.block, sched._finish

    def yield_point(label: str, what: object, *rest: object) -> None:
        catch_up()
        plain_yield(label, what, *rest)
        if not kernel.closing:
            note("step", label, what)

    def cpu_relax() -> None:
        catch_up()
        plain_relax()
        if not kernel.closing:
            note("step", "cpu_relax", None)

    def block(on: Waitable, **how: Any) -> bool:
        if not kernel.closing:
            note("wait", "waits for", on)
        return bool(plain_block(on, **how))

    def do(operation: Operation) -> None:
        note("begin", str(operation), None)
        try:
            plain_do(operation)
        except (KernelError, CpuSignal) as error:
            note("end", str(operation), str(error))
            raise
        note("end", str(operation), "ok")

    def finish(task: Task) -> Task:
        catch_up()
        if task.exception is not None and recording.broken_at is None and not kernel.closing:
            recording.broken_at = last_of.get(task)
        following: Task = plain_finish(task)
        if sched.main.interrupt is not None and recording.broken_at is None and not kernel.closing:
            recording.broken_at = last_of.get(task)  # a rule that is looked at when a task leaves
        return following

    plain_do = world.do
    tracing, kernel.tracer.on = kernel.tracer.on, True
    kernel.yield_point = sched.yield_point = yield_point
    sched.cpu_relax, sched.block, sched._finish = cpu_relax, block, finish
    world.do = do  # type: ignore[method-assign]  # for this execution
    try:
        yield recording
    finally:
        catch_up()
        kernel.tracer.on = tracing
        kernel.yield_point = plain_yield
        del world.do
        for name in _WRAPPED:
            del sched.__dict__[name]


def _place(frame: FrameType) -> tuple[str, str]:
    """Return where the code is that uses the kernel, and what it says there."""
    user = outside(frame)
    # A kworker that takes its next work is in nobody's code but the kernel's.
    shown = frame if user is None else user
    file, line = shown.f_code.co_filename, shown.f_lineno
    place = f"{place_of(file, line)} in {shown.f_code.co_name}"
    return place, "" if user is None else getline(file, line).strip()


_WRAPPED: Final = ("yield_point", "cpu_relax", "block", "_finish")


def _fields(fields: list[Any]) -> str:
    return " ".join(hex(field) if isinstance(field, int) and field >= 4096 else str(field) for field in fields)


def first_difference(lines: list[str], again: list[str]) -> str | None:
    """Say in which line two recordings of one execution differ first, None if they are the same."""
    for at, (one, other) in enumerate(zip_longest(lines, again, fillvalue="the end")):
        if one != other:
            before = f", after {lines[at - 1]!r}" if at else ""
            return f"line {at + 1} of its trace was {one!r} and is {other!r}{before}"
    return None
