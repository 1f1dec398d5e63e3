"""Find plugins: entry points of installed distributions, and one-file plugins named by ``GPUSVM_DRIVERS``."""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Final

from attrs import frozen

from gpusvm.errors import InputError
from gpusvm.plugins.hookspecs import ENTRY_POINT_GROUP

__all__ = ["VARIABLE", "Source", "find_sources"]

VARIABLE: Final = "GPUSVM_DRIVERS"


@frozen(kw_only=True)
class Source:
    """Name one plugin that can be loaded: `value` is the module (or file) that `load` imports."""

    name: str
    value: str
    distribution: str | None
    version: str | None
    load: Callable[[], object]


def find_sources(path: Sequence[str] | None = None) -> list[Source]:
    """List the plugins in the order they are loaded: by name, then by distribution.

    Distributions are looked for in the directories of `path`, by default in those of ``sys.path``.
    ``GPUSVM_DRIVERS`` is a list separated by commas: ``none`` leaves the installed plugins out, ``NAME=FILE.py`` adds a
    one-file plugin. Raises InputError for anything else in it.
    """
    words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
    sources = [] if "none" in words else _installed(path)
    for word in words:
        if word == "none":
            continue
        name, equals, file = word.partition("=")
        if not (name and equals and file.endswith(".py")):
            raise InputError(f"{VARIABLE}: expected 'none' or NAME=FILE.py, got {word!r}")
        at = Path(file).absolute()
        if not at.is_file():
            raise InputError(f"{VARIABLE}: {file}: no such file")
        sources.append(Source(name=name, value=str(at), distribution=None, version=None, load=_file_loader(name, at)))
    return sorted(sources, key=lambda source: (source.name, source.distribution or ""))


def _installed(path: Sequence[str] | None) -> list[Source]:
    # A distribution that is on the path twice (a checkout inside its own environment) lists its entry points twice.
    found: dict[tuple[str, str, str], Source] = {}
    if path is None:
        points = list(metadata.entry_points(group=ENTRY_POINT_GROUP))
    else:
        inside = metadata.distributions(path=list(path))
        points = [point for each in inside for point in each.entry_points if point.group == ENTRY_POINT_GROUP]
    for point in points:
        distribution = point.dist.name if point.dist else None
        version = point.dist.version if point.dist else None
        key = (point.name, point.value, distribution or "")
        found.setdefault(
            key, Source(name=point.name, value=point.value, distribution=distribution, version=version, load=point.load)
        )
    return list(found.values())


def _file_loader(name: str, path: Path) -> Callable[[], ModuleType]:
    def load() -> ModuleType:
        module_name = f"gpusvm_one_file_plugin_{name}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # before it runs: attrs and typing look a class's module up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
        return module

    return load
