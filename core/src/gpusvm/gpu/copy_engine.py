"""A copy engine: one in-order queue, and two ways of moving memory that is in many pieces."""

from collections import deque
from collections.abc import Callable
from typing import Final, Literal

from gpusvm.errors import DriverError
from gpusvm.gpu.link import D2H, H2D, Link
from gpusvm.kernel import Kernel, Work

__all__ = ["D2D", "CopyEngine", "Direction", "Shape"]

D2D: Final = "d2d"

Direction = Literal["h2d", "d2h", "d2d"]
Shape = Literal["gather", "per_piece"]


class CopyEngine:
    """Run copies and clears one after the other, each for as long as the cost profile says.

    `shape` says what a copy of scattered pages is: "gather", one command over many entries (xe's blit), or "per_piece",
    a command for each piece (nouveau's copy class). Nothing sleeps in `copy` and `clear`: they return the time in ns at
    which the engine will be through, and `wait` sleeps up to one. For a device that sleeps either is a DriverError, as
    the command would never run. The engine's time is accounted under the constants that it rests on (`Kernel.account`).
    What the pages hold is moved by whoever knows the pages (`MemoryManagerApi.copy_pages`), not here; when the engine
    gets to a command, `later` tells.
    """

    def __init__(self, kernel: Kernel, link: Link, *, shape: Shape, name: str = "copy") -> None:
        self.kernel = kernel
        self.link = link
        self.shape = shape
        self.name = name
        self._events = {direction: f"copy_{shape}_{direction}" for direction in (H2D, D2H, D2D)}
        self.busy_until_ns = 0
        self.busy_ns = 0
        self._later: deque[Callable[[], None]] = deque()
        self._work = Work(self._catch_up, f"{name} engine")
        self._workqueue = kernel.workqueue(f"{name} engine")

    def copy(self, direction: Direction, nbytes: int, pieces: int, *, after_ns: int = 0, chained: bool = False) -> int:
        """Queue one copy of `nbytes` in `pieces`, not before `after_ns`; the time in ns at which it is done.

        The base cost of a copy is of one that is waited for. A `chained` command follows another at once, and costs
        what one more piece costs an engine that copies piece by piece, in place of the base.
        """
        if self._later:
            self._catch_up()
        self._check_power(direction)
        kernel = self.kernel
        costs = kernel.costs
        ns = costs.copy_ns(self.shape, direction, nbytes, pieces) if costs is not None else 0
        if chained and ns:
            assert costs is not None
            ns += costs.copies["per_piece", direction].per_piece_ns - costs.copies[self.shape, direction].base_ns
        kernel.account(self._events[direction], ns)
        kernel.stats.copies += 1
        if direction != D2D:
            # The command occupies the link from when the engine can take it.
            start = max(kernel.current.time_ns, self.busy_until_ns, after_ns)
            through = self.link.occupy_from(direction, start, ns)
        else:
            through = max(kernel.now_ns, self.busy_until_ns, after_ns) + ns
        self.busy_until_ns = through
        self.busy_ns += ns
        tracer = kernel.tracer
        if tracer.on:
            tracer.emit("copy", self.name, direction, nbytes, pieces, through)
        return through

    def clear(self, nbytes: int, pieces: int = 1) -> int:
        """Queue clears of `nbytes` of device memory in all, a command a piece; the time in ns at which they are done.

        The base cost is of one that is waited for. Those that follow it at once cost what one more piece costs an
        engine that copies piece by piece.
        """
        self._check_power("clear")
        kernel = self.kernel
        costs = kernel.costs
        ns = 0
        if costs is not None:
            base_ns = costs.bo_clear_base + (pieces - 1) * costs.copies["per_piece", H2D].per_piece_ns
            ns = base_ns + costs.bo_clear_ns(nbytes) - costs.bo_clear_base
            kernel.account("bo_clear_base", base_ns)
            kernel.account("bo_clear_per_byte", ns - base_ns)
        self.busy_until_ns = max(kernel.now_ns, self.busy_until_ns) + ns
        self.busy_ns += ns
        return self.busy_until_ns

    def _check_power(self, command: str) -> None:
        power = self.link.power
        if power is not None and power.is_out:
            raise DriverError(
                "copy engine",
                f"a {command} is queued on {power.name}, which is in {power.state}: take a runtime PM reference before "
                "(RuntimePm.get), and put it when the engine is through",
            )

    def later(self, effect: Callable[[], None]) -> None:
        """Do `effect` when the engine gets to the command queued last: at some later step of an explored kernel, and
        not after what it is given next. It does not sleep.
        """
        self._later.append(effect)
        self._workqueue.queue(self._work)

    def _catch_up(self) -> None:
        while self._later:
            self._later.popleft()()

    def wait(self, until_ns: int) -> None:
        """Sleep until `until_ns`, if that is still to come."""
        now = self.kernel.now_ns
        if until_ns > now:
            self.kernel.sleep_ns(until_ns - now)
