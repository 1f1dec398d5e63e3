"""Say what is wrong with a plugin: which one, of which distribution, where, and what to do."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from attrs import frozen

from gpusvm.errors import PluginError
from gpusvm.kernel.duties import DUTIES

__all__ = ["BrokenPluginError", "BrokenPluginsError", "Place"]


@frozen
class Place:
    """Point at a line of a file; `line` is None where only the file is known."""

    file: Path
    line: int | None = None

    @classmethod
    def of(cls, thing: object) -> "Place | None":
        """Find where a function or a class is defined; None for what has no source line."""
        try:
            target: Any = inspect.unwrap(thing) if callable(thing) else thing
            code = getattr(target, "__code__", None)
            if code is not None:
                return cls(Path(code.co_filename), code.co_firstlineno)
            return cls(Path(inspect.getfile(target)), inspect.getsourcelines(target)[1])
        except (OSError, TypeError):
            return None

    def __str__(self) -> str:
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"


class BrokenPluginError(PluginError):
    """Report one problem of one plugin.

    `plugin` is the name of its entry point, `distribution` and `version` are None for a one-file plugin.
    """

    def __init__(
        self,
        plugin: str,
        problem: str,
        *,
        distribution: str | None,
        version: str | None,
        place: Place | None,
        duty: str = "declaration",
    ) -> None:
        """Take what the message is put together from; `duty` names the rule that is broken (`gpusvm.kernel.duties`)."""
        super().__init__(plugin, problem, distribution, version, place)
        self.plugin = plugin
        self.problem = problem
        self.distribution = distribution
        self.version = version
        self.place = place
        self.duty = DUTIES[duty]

    def __str__(self) -> str:
        """Say it in one line: plugin, distribution, version, file and line, problem, where its rule is explained."""
        origin = f" ({self.distribution} {self.version})" if self.distribution else ""
        place = f"{self.place}: " if self.place else ""
        see = "" if self.duty.name == "declaration" else f"; see {self.duty.see}"
        return f"driver plugin {self.plugin!r}{origin}: {place}{self.problem}{see}"


class BrokenPluginsError(ExceptionGroup[BrokenPluginError], PluginError):
    """Report every problem of every plugin at once; ``exceptions`` holds one `BrokenPluginError` each."""

    def derive(self, excs: Sequence[BrokenPluginError], /) -> Self:  # type: ignore[override]  # typeshed: any exception
        """Build a part of this group, as `split` does."""
        return type(self)(self.message, excs)

    def __str__(self) -> str:
        """Give one line for each problem."""
        return "\n".join(str(problem) for problem in self.exceptions)
