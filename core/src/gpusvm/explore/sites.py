"""List the injection sites that the code of a machine has, whether an execution reaches them or not."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusvm.explore.world import World

__all__ = ["sites_of"]

_ROOMS = ("mm", "drm", "gpu", "driver")


def sites_of(world: World) -> list[str]:
    """Return the names in calls ``….inject("NAME")`` of the core's model and of the packages of the world's drivers.

    A name that is put together when it runs is not among them; the model has none.
    """
    folders = [Path(__file__).parents[1] / room for room in _ROOMS]
    for driver in world.machine.drivers:
        file = Path(inspect.getfile(type(driver)))
        folders.append(file.parent if (file.parent / "__init__.py").exists() else file)
    return sorted({site for folder in folders for site in _sites_in(folder)})


@functools.cache
def _sites_in(folder: Path) -> frozenset[str]:
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]
    return frozenset(site for file in files for site in _calls(file.read_text("utf-8")))


def _calls(source: str) -> Iterator[str]:
    if "inject(" not in source:
        return
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="inject"), args=[ast.Constant(value=str(site)), *_]):
                yield site
