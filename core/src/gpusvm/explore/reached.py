"""Note which kernel operations an execution reaches, and where in the code; all that is counted as coverage.

A recording would say it too, and takes as long as the execution itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from sys import _getframe
from types import CodeType
from typing import TYPE_CHECKING, Any

from attrs import Factory, define

from gpusvm.kernel.place import is_mechanism, line_of, place_of

if TYPE_CHECKING:
    from gpusvm.explore.world import World

__all__ = ["Reached", "reached"]


@define
class Reached:
    """Hold (operation, code, instruction) of each operation once."""

    found: set[tuple[str, CodeType, int]] = Factory(set)

    @property
    def places(self) -> set[tuple[str, str]]:
        """Return the operations as a recording does: (operation, place)."""
        return {(what, _place(code, instruction)) for what, code, instruction in self.found}


@contextmanager
def reached(world: World) -> Iterator[Reached]:
    """Note what the tasks of an explored machine reach inside the block, after whoever goes first at a yield point."""
    kernel = world.kernel
    sched: Any = kernel.sched
    noted = Reached()
    add = noted.found.add
    plain_yield, plain_relax = kernel.yield_point, sched.cpu_relax

    def note(label: str) -> None:
        frame = caller = _getframe(2)
        while is_mechanism(frame.f_code):
            if frame.f_back is None:
                frame = caller  # a kworker that takes its next work is in nobody's code but the kernel's
                break
            frame = frame.f_back
        add((label, frame.f_code, frame.f_lasti))

    def yield_point(label: str, what: object) -> None:
        plain_yield(label, what)
        if not kernel.closing:
            note(label)

    def cpu_relax() -> None:
        plain_relax()
        if not kernel.closing:
            note("cpu_relax")

    kernel.yield_point = sched.yield_point = yield_point
    sched.cpu_relax = cpu_relax
    try:
        yield noted
    finally:
        kernel.yield_point = plain_yield
        del sched.__dict__["yield_point"], sched.__dict__["cpu_relax"]


@cache
def _place(code: CodeType, instruction: int) -> str:
    return f"{place_of(code.co_filename, line_of(code, instruction))} in {code.co_name}"
