"""List the injection sites and yield points that the code of a machine has, whether executions reach them or not."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gpusvm.kernel.place import place_of

if TYPE_CHECKING:
    from gpusvm.explore.world import World

__all__ = ["sites_of", "yield_points_of"]

_ROOMS: Final = ("mm", "drm", "gpu", "driver")
_YIELDING: Final = frozenset({
    "arm", "cancel", "cancel_sync", "cond_resched", "disable_sync", "complete_all", "lock", "trylock", "unlock",
    "down_read", "down_read_killable", "down_read_trylock", "up_read", "down_write", "down_write_trylock", "up_write",
    "downgrade_write", "queue", "queue_delayed", "queue_on", "read_lock", "read_once", "read_unlock", "step",
    "synchronize", "wait_event", "wait_event_killable", "wait_event_timeout_ns", "wake_up", "wake_up_all", "write_once",
})  # fmt: skip
_LOCK: Final = re.compile(r"(lock|mutex|resv)$")
_WAITED: Final = {"wait": re.compile(r"(done|completion)$"), "flush": re.compile(r"(queue|_wq|work)$")}
_WAITED["drain"] = _WAITED["flush"]  # other things are waited for, flushed and drained too


def sites_of(world: World) -> frozenset[str]:
    """Return the names in calls ``….inject("NAME")`` of the core's model and of the packages of the world's drivers.

    A name that is put together when it runs is not among them; the model has none.
    """
    return frozenset[str]().union(*(_sites_in(folder) for folder in _folders(world)))


def yield_points_of(world: World) -> frozenset[str]:
    """Return the places, ``file:line in function``, of the same code that call what yields: locks, queues, `step`, ….

    They are told by the names of what is called, so a place that yields by another name is missing.
    """
    return frozenset[str]().union(*(_yields_in(folder) for folder in _folders(world)))


def _folders(world: World) -> Iterator[Path]:
    for room in _ROOMS:
        yield Path(__file__).parents[1] / room
    for driver in world.machine.drivers:
        file = Path(inspect.getfile(type(driver)))
        yield file.parent if (file.parent / "__init__.py").exists() else file


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]


@functools.cache
def _sites_in(folder: Path) -> frozenset[str]:
    return frozenset(site for file in _files(folder) for site in _calls(file.read_text("utf-8")))


def _calls(source: str) -> Iterator[str]:
    if "inject(" not in source:
        return
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="inject"), args=[ast.Constant(value=str(site)), *_]):
                yield site


@functools.cache
def _yields_in(folder: Path) -> frozenset[str]:
    return frozenset(
        f"{place_of(str(file), line)} in {function}"
        for file in _files(folder)
        for line, function in _yields(ast.parse(file.read_text("utf-8")), "<module>")
    )


def _yields(node: ast.AST, function: str) -> Iterator[tuple[int, str]]:
    match node:
        case ast.FunctionDef(name=name):
            function = name
        case ast.Lambda():
            function = "<lambda>"
        case ast.With(items=items):
            yield from ((item.context_expr.lineno, function) for item in items if _holds(item.context_expr))
        case ast.Call(func=func, args=arguments):
            match func:
                case ast.Attribute(attr="wait" | "flush" | "drain" as name, value=waited) if not arguments:
                    if _WAITED[name].search(_name(waited)):
                        yield node.lineno, function
                case ast.Attribute() | ast.Name() if _name(func) in _YIELDING:
                    yield node.lineno, function
    for child in ast.iter_child_nodes(node):
        yield from _yields(child, function)


def _holds(context: ast.expr) -> bool:
    """Say whether a with block holds a lock: ``with mutex``, ``with rwsem.read()``."""
    match context:
        case ast.Call(func=ast.Attribute(attr="read" | "write"), args=[], keywords=[]):
            return True
    return _LOCK.search(_name(context)) is not None


def _name(node: ast.expr) -> str:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""
