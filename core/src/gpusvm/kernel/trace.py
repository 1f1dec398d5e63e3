"""Record structured events as tuples; checkers, the timeline and reports read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel


class Tracer:
    """Append ``(time_ns, task name, kind, *fields)`` to ``events`` while ``on``; a caller guards with ``if
    tracer.on:``.
    """

    __slots__ = ("_kernel", "events", "on")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.on = False
        self.events: list[tuple[Any, ...]] = []

    def emit(self, kind: str, *fields: Any) -> None:
        task = self._kernel.current
        self.events.append((task.time_ns, task.name, kind, *fields))
