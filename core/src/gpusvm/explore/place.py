"""Give an operation what it acts on: one process, one device, and the pages that its arguments name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from attrs import Factory, define

from gpusvm.errors import KernelError
from gpusvm.explore.permissions import ALL_STATES
from gpusvm.explore.verdict import check_change, check_success
from gpusvm.mm.api import PROT_NONE, PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from gpusvm.driver import Driver, Vm
    from gpusvm.explore.attempt import Attempt
    from gpusvm.explore.operation import Step
    from gpusvm.explore.operations.accesses import WaitingFault
    from gpusvm.explore.permissions import Permissions
    from gpusvm.explore.world import World
    from gpusvm.kernel import Kernel
    from gpusvm.machine import Process
    from gpusvm.mm import MemoryManager, MmStruct

__all__ = ["Actor", "GpuSpace", "Place"]

_PROT: Final = {"rw": PROT_READ | PROT_WRITE, "ro": PROT_READ, "none": PROT_NONE}


@define(eq=False)
class GpuSpace:
    """Hold one GPU address space, behind file `number` of a process: `waiting` are the faults that nobody has answered.

    `users` counts who keeps the file open: the process, until it closes it, and every ioctl that is under way; the last
    releases it. `closing` says that this began, `closed` that the hardware context is gone. With `synchronous` the
    device's accesses are ioctls themselves.
    """

    process: Process
    number: int
    vm: Vm
    synchronous: bool
    users: int = 1
    open: bool = True
    waiting: list[WaitingFault] = Factory(list)
    closing: bool = False
    closed: bool = False


@define(eq=False)
class Actor:
    """Hold one process of a scenario.

    `threads` counts who keeps its memory: the process itself, until `exiting`, and every operation that a thread of it
    is in. The last tears the memory down and then closes the files, as do_exit does. `gone` says that this is over.
    `held` are references of `hold` and pins of `pin`, by the page they were taken at.
    """

    name: str
    process: Process
    permissions: Permissions
    spaces: dict[int, GpuSpace] = Factory(dict)
    threads: int = 1
    exiting: bool = False
    killed: bool = False
    gone: bool = False
    held: dict[int, list[tuple[int, bool]]] = Factory(dict)
    commands: Any = None


@define(eq=False)
class Place:
    """Be where one step happens; operations take it as their first argument."""

    world: World
    step: Step
    actor: Actor
    attempt: Attempt

    def wait_for_power(self) -> None:
        """Let the GPU stand still while its device is powered off with the system."""
        pm = self.world.power(self.step.file)
        if pm is not None and pm.powered_off:
            pm.wait_for_power()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Keep the step's device from falling asleep by itself."""
        pm = self.world.power(self.step.file)
        if pm is None or not pm.enabled:
            yield
        else:
            with pm.awake("access"):
                yield

    @property
    def kernel(self) -> Kernel:
        return self.world.kernel

    @property
    def memory(self) -> MemoryManager:
        return self.world.machine.memory

    @property
    def mm(self) -> MmStruct:
        return self.actor.process.mm

    @property
    def driver(self) -> Driver:
        return self.world.driver(self.step.file)

    @property
    def space(self) -> GpuSpace:
        """The process's address space on the step's device; ENODEV where it has opened none."""
        return self.world.space(self.actor, self.step.file)

    def address(self, page: int) -> int:
        return self.world.base + page * self.world.page_size

    def length(self, pages: int) -> int:
        return pages * self.world.page_size

    def prot(self, word: str) -> int:
        return _PROT[word]

    def look(self, page: int, reach: range | None = None) -> None:
        """Begin an access of one page, which is judged by what happens from now on, to it and to `reach`."""
        self.world.look(self.attempt, page, range(page, page + 1) if reach is None else reach)

    def succeeded(self, how: str) -> None:
        """Tell that the access that `look` began was done; OutcomeError if nothing ever allowed it."""
        check_success(self.attempt, how)

    @contextmanager
    def changing(self, during: Mapping[int, Collection[str]], *, to: Collection[str] = ALL_STATES) -> Iterator[None]:
        """Surround a change of what pages are: `during` says how each may appear meanwhile, `to` what all are then."""
        with self.actor.permissions.changing(during):
            yield
        self.world.heed(self.attempt)
        check_change(self.attempt, self.actor, during, to)

    def refuse(self, errno: int, why: str) -> KernelError:
        """Return the error with which the machine itself, and no driver, turns an operation down."""
        return KernelError(errno, f"{self.step}: {why}")
