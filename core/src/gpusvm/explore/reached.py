"""Note which kernel operations an execution reaches, and where in the code; all that is counted as coverage.

A recording would say it too, and takes as long as the execution itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from sys import _getframe
from types import CodeType
from typing import TYPE_CHECKING, Any

from attrs import Factory, define

from gpusvm.kernel.place import is_mechanism, leave_out, line_of, place_of

if TYPE_CHECKING:
    from gpusvm.explore.world import World

__all__ = ["Reached", "reached"]

leave_out(__file__)


@define
class Reached:
    """Hold each operation once: its code by (operation, id of the code, instruction), as code itself hashes slowly."""

    found: dict[tuple[str, int, int], CodeType] = Factory(dict)

    @property
    def places(self) -> set[tuple[str, str]]:
        """Return the operations as a recording does: (operation, place)."""
        return {(what, _place(code, instruction)) for (what, _, instruction), code in self.found.items()}


@contextmanager
def reached(world: World) -> Iterator[Reached]:
    """Note what the tasks of an explored machine reach inside the block, after whoever goes first at a yield point."""
    kernel = world.kernel
    sched: Any = kernel.sched
    noted = Reached()
    found = noted.found
    plain_yield, plain_relax = kernel.yield_point, sched.cpu_relax

    def note(label: str) -> None:
        frame = caller = _getframe(2)
        while is_mechanism(frame.f_code):
            if frame.f_back is None:
                frame = caller  # a kworker that takes its next work is in nobody's code but the kernel's
                break
            frame = frame.f_back
        code = frame.f_code
        found[label, id(code), frame.f_lasti] = code

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


def _place(code: CodeType, instruction: int) -> str:
    return f"{place_of(code.co_filename, line_of(code, instruction))} in {code.co_name}"
