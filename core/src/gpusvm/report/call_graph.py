"""Record which functions of the kernel a piece of a run goes through, the way ftrace's function_graph does.

A function shows if it stands for one of Linux, by what its docstring cites; others are passed through, and what they
call shows where they are. Between the calls stand the locks that are taken and given back, the references, the time
that is charged, and what the model told (`kernel.tracer`): invalidations, copies, power states, answers to faults.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import Factory, define, frozen

from gpusvm.kernel.greenlets import profiled
from gpusvm.kernel.refs import Ledger
from gpusvm.report.kernel_symbols import function_symbol

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel, Task

__all__ = ["CallGraph", "GraphLine", "recorded_calls"]

Kind = Literal["call", "return", "lock", "unlock", "get", "put", "charge", "event"]

# Bookkeeping of the model's own: what it is for shows as lines of its own, or is no code of Linux's path.
_SILENT: Final = ("gpusvm.kernel.lockdep", "gpusvm.kernel.core", "gpusvm.kernel.locks", "gpusvm.kernel.rwsem")
_ROOMS: Final = ("gpusvm.kernel.", "gpusvm.mm.", "gpusvm.drm.", "gpusvm.gpu.", "gpusvm.driver.")


@frozen(kw_only=True)
class GraphLine:
    """Be one line of a call graph.

    `depth` counts the calls around it in its task, `text` is the kernel's name of a call, or what happened. `ours` is
    the function that was run, ``room.module.Class.function``, for calls. `ns` is what a call took, all of it, on its
    return, and what is charged. Times are virtual.
    """

    time_ns: int
    task: str
    depth: int
    kind: Kind
    text: str
    ours: str = ""
    ns: int = 0


@define
class CallGraph:
    """Hold the lines of one recording, in the order in which they happened."""

    lines: list[GraphLine] = Factory(list)


@define
class _Flow:
    """Remember of one task which calls are open, and what it held at the last look."""

    open: list[tuple[CodeType, str, str, int]] = Factory(list)
    held: list[Any] = Factory(list)


@contextmanager
def recorded_calls(kernel: "Kernel", *, packages: tuple[str, ...] = (), full: bool = False) -> Iterator[CallGraph]:
    """Record what runs inside the block, in all tasks of a timed kernel; `packages` are those of the drivers.

    `full`: all functions of the rooms that follow the kernel show, under our names where they cite none. The kernel
    has to be checked, or no locks are known.
    """
    recorder = _Recorder(kernel, packages, full=full)
    tracing, kernel.tracer.on = kernel.tracer.on, True
    try:
        with profiled(recorder):
            yield recorder.graph
    finally:
        recorder.catch_up()
        kernel.tracer.on = tracing


class _Recorder:
    """Be the profile function: it is told of every call and return, and looks at what changed in between."""

    def __init__(self, kernel: "Kernel", packages: tuple[str, ...], *, full: bool) -> None:
        self.graph = CallGraph()
        self._kernel = kernel
        self._rooms = (*_ROOMS, *(f"{package}." for package in packages))
        self._packages = packages
        self._full = full
        self._flows: dict[Task, _Flow] = {}
        self._told = len(kernel.tracer.events)
        self._names: dict[CodeType, tuple[str, str] | None] = {}
        self._charge = type(kernel).charge.__code__
        self._charge_ns = type(kernel).charge_ns.__code__

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event not in ("call", "return"):
            if getattr(arg, "__name__", "") != "append":  # `held.append` comes before the lock is the task's
                self.catch_up()
            return
        code = frame.f_code
        flow = self.catch_up()
        if event == "call":
            if code is Ledger.get.__code__ or code is Ledger.put.__code__:
                self._reference(frame, flow)
            elif code is self._charge or code is self._charge_ns:
                self._cost(frame, flow)
            named = self._named(frame)
            # A method that hands over to the function of the same name is one call.
            if named is not None and not (flow.open and flow.open[-1][1] == named[0]):
                task = self._kernel.current
                self._add("call", named[0], flow, ours=named[1])
                flow.open.append((code, *named, task.time_ns))
        elif flow.open and flow.open[-1][0] is code:
            _, symbol, ours, begun_ns = flow.open.pop()
            self._add("return", symbol, flow, ours=ours, ns=self._kernel.current.time_ns - begun_ns)

    def catch_up(self) -> _Flow:
        """Note what was told, taken and given back since the last look, and return what is known of the task."""
        kernel = self._kernel
        task = kernel.current
        flow = self._flows.get(task)
        if flow is None:
            flow = self._flows[task] = _Flow()
        events = kernel.tracer.events
        while self._told < len(events):
            _, _, kind, *fields = events[self._told]
            self._told += 1
            self._add("event", " ".join([kind, *map(_field, fields)]), flow)
        held = task.held
        if held != flow.held:
            before, flow.held = flow.held, list(held)
            for lock in before:
                if not any(lock is other for other in held):
                    self._add("unlock", _lock(lock), flow)
            for lock in held:
                if not any(lock is other for other in before):
                    self._add("lock", _lock(lock, task), flow)
        return flow

    def _add(self, kind: Kind, text: str, flow: _Flow, *, ours: str = "", ns: int = 0) -> None:
        task = self._kernel.current
        line = GraphLine(
            time_ns=task.time_ns, task=task.name, depth=len(flow.open), kind=kind, text=text, ours=ours, ns=ns
        )
        self.graph.lines.append(line)

    def _reference(self, frame: FrameType, flow: _Flow) -> None:
        at = frame.f_locals
        holder = at["holder"] if isinstance(at["holder"], str) else type(at["holder"]).__name__
        count = f" x{at['n']}" if at["n"] != 1 else ""
        self._add("get" if frame.f_code is Ledger.get.__code__ else "put", f"{at['kind']} {holder}{count}", flow)

    def _cost(self, frame: FrameType, flow: _Flow) -> None:
        at = frame.f_locals
        if "ns" in at:
            ns = at["ns"]
        else:
            ns = self._kernel._table.get(at["event"], 0) * at["n"]  # costs are read, not changed
        if ns:
            self._add("charge", at["event"], flow, ns=ns)

    def _named(self, frame: FrameType) -> tuple[str, str] | None:
        code = frame.f_code
        try:
            return self._names[code]
        except KeyError:
            named = self._names[code] = self._name(frame)
            return named

    def _name(self, frame: FrameType) -> tuple[str, str] | None:
        module: str = frame.f_globals.get("__name__", "")
        code = frame.f_code
        if not module.startswith(self._rooms) or module in _SILENT or code.co_name.startswith("<"):
            return None
        doc = code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else ""
        name = code.co_qualname.replace(".<locals>", "")
        symbol = function_symbol(module, name, doc, frame.f_globals.get("__doc__") or "")
        if symbol is None and not self._full:
            return None
        return symbol or name, f"{module}.{name}"


def _lock(lock: Any, task: "Task | None" = None) -> str:
    kind, name = getattr(lock, "kind", ""), getattr(lock, "name", "")
    if not kind:
        return str(lock.describe()).replace("'", "")
    mode = ""
    if kind == "rwsem" and task is not None:
        mode = " write" if lock.is_write_locked else " read"
    return f"{kind} {name}{mode}"


def _field(field: object) -> str:
    return hex(field) if isinstance(field, int) and field >= 4096 else str(field)
