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


def _sites_in(folder: Path) -> frozenset[str]:
    return _found_in(folder)[0]


def _yields_in(folder: Path) -> frozenset[str]:
    return _found_in(folder)[1]


@functools.cache
def _found_in(folder: Path) -> tuple[frozenset[str], frozenset[str]]:
    sites: set[str] = set()
    yields: set[str] = set()
    for file in _files(folder):
        for node, function in _telling(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.With):
                lines = [item.context_expr.lineno for item in node.items if _holds(item.context_expr)]
            else:
                sites.update(_site_of(node))
                lines = [node.lineno] if _is_yield(node) else []
            yields.update(f"{place_of(str(file), line)} in {function}" for line in lines)
    return frozenset(sites), frozenset(yields)


def _telling(tree: ast.Module) -> Iterator[tuple[ast.With | ast.Call, str]]:
    """Return each `with` and each call of a module, with the name of the function that it is in."""
    left: list[tuple[ast.AST, str]] = [(tree, "<module>")]
    while left:
        node, function = left.pop()
        if isinstance(node, ast.FunctionDef):
            function = node.name
        elif isinstance(node, ast.Lambda):
            function = "<lambda>"
        elif isinstance(node, ast.With | ast.Call):
            yield node, function
        for name in node._fields:
            value = getattr(node, name)
            if isinstance(value, list):
                left += [(each, function) for each in value if isinstance(each, ast.AST)]
            elif isinstance(value, ast.AST) and value._fields:  # Load and the like have none
                left.append((value, function))


def _site_of(call: ast.Call) -> tuple[str, ...]:
    match call:
        case ast.Call(func=ast.Attribute(attr="inject"), args=[ast.Constant(value=str(site)), *_]):
            return (site,)
    return ()


def _is_yield(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(attr="wait" | "flush" | "drain" as name, value=waited) if not call.args:
            return _WAITED[name].search(_name(waited)) is not None
        case ast.Attribute() | ast.Name() as func:
            return _name(func) in _YIELDING
    return False


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
