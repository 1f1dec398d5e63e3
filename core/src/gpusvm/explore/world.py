"""Be the machine that a scenario runs on: its processes, its devices, and who is doing what at the moment.

A world is booted once for a scenario and a driver and set up. Pages are numbered from 0 in one stretch of address
space, which begins at a PMD boundary. An operation that its caller may fail (a signal, an errno) ends with that as its
outcome, which `world.outcomes` records, if there was a reason for it (`gpusvm.explore.verdict`).
"""

from __future__ import annotations

import errno as _errno
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import evolve

from gpusvm.check import Checker
from gpusvm.driver import CallerFaults, read_spec, split_spec, system_sleep
from gpusvm.driver.operations import OperationHost, PageWords
from gpusvm.drm import RuntimePm
from gpusvm.drm.zdd import Zdd
from gpusvm.errors import CpuSignal, InputError, KernelError, errno_name
from gpusvm.explore.attempt import Attempt
from gpusvm.explore.operation import MAIN_PROCESS, Operation, Step, bind
from gpusvm.explore.permissions import Permissions
from gpusvm.explore.place import Actor, GpuSpace, Place
from gpusvm.explore.scaling import scaled
from gpusvm.explore.verdict import OutcomeError, judge
from gpusvm.kernel import FirstChoice
from gpusvm.machine import Machine, Process, load_topology
from gpusvm.mm import Geometry
from gpusvm.mm.page import GUP_PIN_COUNTING_BIAS
from gpusvm.mm.pgtable import PmdKind, PteKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from gpusvm.driver import Driver, DriverInfo, DriverSpec
    from gpusvm.driver.operations import OperationTarget
    from gpusvm.explore.scenario import Scenario
    from gpusvm.kernel import Kernel, Module
    from gpusvm.mm import MmStruct

__all__ = ["Outcome", "World"]

_BASE: Final = 1 << 44
_PRIVATE: Final = frozenset({PteKind.PRIVATE, PmdKind.PRIVATE})

OPERATION_STEPS_MAX: Final = 20_000
"""Steps of all tasks, from the begin of an eviction, an ioctl or a system call, within which it has to be done."""

Outcome = tuple[str, str, str]
"""The task, the operation as text, and "ok", "skipped" or the name of its errno or signal."""


class World:
    """Run one scenario's operations on one driver."""

    def __init__(
        self,
        scenario: Scenario,
        spec: str,
        *,
        drivers: Mapping[str, DriverInfo],
        quirks: Literal["as_written", "fixed"] = "fixed",
        checked: bool = True,
        beside: Sequence[DriverSpec] = (),
    ) -> None:
        """Boot the scenario's machine with the driver of a spec string on each device, but for those behind the first
        that `beside` has others for, attach the checker, run the setup.

        What the scenario sets for the driver holds where the spec says nothing. InputError for a spec, or an operation,
        that there is not, and for a driver that the scenario is not for.
        """
        self.scenario = scenario
        self.spec = spec
        geometry = Geometry(pmd_order=scenario.pmd_order)
        self.page_size = geometry.page_size
        self.base = _BASE
        name, options = split_spec(spec)
        settings = dict(part.split("=", 1) for part in scenario.settings.get(name, "").split(",") if part)
        merged = ",".join(f"{key}={value}" for key, value in {**settings, **options}.items())
        found = read_spec(f"{name}:{merged}" if merged else name, dict(drivers), quirks=quirks)
        reason = scenario.refuses(found.info)
        if reason:
            raise InputError(f"scenario {scenario.name!r} is not for driver {name!r}: {reason}")
        self.info = found.info
        others = [scaled(each, geometry, {}) for each in beside]
        self._infos = [found.info, *(each.info for each in others)]
        self._target = _operation_target(drivers, name)
        single = load_topology("single")
        one = evolve(single.device[0], iommu=scenario.iommu, late_clears=scenario.late_clears)
        devices = [evolve(one, name=f"gpu{index}") for index in range(scenario.devices)]
        topology = evolve(single, ram_bytes=scenario.ram_pages * geometry.page_size, device=tuple(devices))
        driver = scaled(found, geometry, {**settings, **options})
        self._steps = {operation: bind(operation) for operation in scenario.operations}
        self.machine = Machine.boot(
            topology,
            [driver, *others, *[driver] * (scenario.devices - len(others) - 1)],
            vram_bytes=scenario.vram_pages * geometry.page_size,
            thp=scenario.thp,
            geometry=geometry,
            choices=FirstChoice(),
            mode="explored",
            checked=True,
            cpus=scenario.cpus or None,
            preemptive=scenario.preemptive,
        )
        self._powers = [driver.device.pm for driver in self.machine.drivers]
        self.outcomes: list[Outcome] = []
        self.actors: dict[str, Actor] = {}
        self._attempts: list[Attempt] = []
        self._unplugged: set[int] = set()
        self._unbound: set[int] = set()
        self._frozen = False
        self._freezer = self.kernel.waitqueue("freezer")
        main = self.start(MAIN_PROCESS)
        for index in range(scenario.devices * scenario.files):
            self.open(main, index)
        self.checker = Checker(self.machine.memory).attach() if checked else None
        for operation in scenario.setup:
            try:
                self.do(operation)
            except (KernelError, CpuSignal) as error:
                raise InputError(f"scenario {scenario.name!r}: setup: {operation}: {error}") from error
        self.kernel.settle()

    @property
    def kernel(self) -> Kernel:
        return self.machine.kernel

    # ---- tasks

    def run_task(self, operations: Sequence[Operation]) -> None:
        """Do the operations of one task, and record the outcome of each. OutcomeError for one without a reason."""
        task = self.kernel.current
        for operation in operations:
            if self._is_skipped(self._steps[operation]):
                outcome = "skipped"
            else:
                try:
                    self.do(operation)
                    outcome = "ok"
                except KernelError as error:
                    outcome = errno_name(error.errno)
                except CpuSignal as signal:
                    outcome = str(signal).split(maxsplit=1)[0]
            self.outcomes.append((task.name, str(operation), outcome))
            self.kernel.exit_to_user_mode()

    def do(self, operation: Operation) -> None:
        """Do one operation. KernelError, CpuSignal: what its caller is told; OutcomeError if there was no reason."""
        step = self._steps[operation]
        actor = self.actors[step.process]
        if self._frozen and self._is_by_thread(step, actor):
            self._freezer.wait_event(lambda: not self._frozen)
        attempt = Attempt(self.kernel.current, step, actor.permissions)
        self.kernel.touch((self, attempt.task.name))
        for other in self._attempts:
            other.met.append(attempt)
        span = step.args[:2] if [each.name for each in step.kind.parameters[:2]] == ["first", "pages"] else (0, 0)
        self._attempts.append(attempt)
        self.look(attempt, -1, range(span[0], span[0] + span[1]))
        by_thread = self._is_by_thread(step, actor)
        if by_thread:
            actor.threads += 1
        held = self._hold_file(step, actor)
        limited = step.kind.by != "gpu"  # an access of a GPU is bounded by its faults
        if limited:
            self.kernel.sched.limit(attempt, OPERATION_STEPS_MAX)  # type: ignore[attr-defined]  # an explored kernel's
        try:
            step.kind.run(Place(self, step, actor, attempt), *step.args)
        except (KernelError, CpuSignal) as error:
            judge(self, actor, attempt, error)
            raise
        finally:
            self.kernel.touch((self, attempt.task.name))
            self._attempts.remove(attempt)
            if limited:
                self.kernel.sched.unlimit(attempt)  # type: ignore[attr-defined]  # as above
            if self._frozen:
                self._freezer.wake_up_all()
            if held is not None:
                self._put_file(held)
            if by_thread:
                self._leave(actor)

    def heed(self, attempt: Attempt) -> None:
        """Note that an outcome is judged by what others did at the same time: when they began and ended matters now."""
        for name in self.scenario.tasks:
            if name != attempt.task.name:
                self.kernel.touch((self, name), write=False)

    def _is_skipped(self, step: Step) -> bool:
        """Tell whether there is nobody to do a step: its process was not started, as fork failed, or it has ended."""
        actor = self.actors.get(step.process)
        return actor is None or (actor.exiting and self._is_by_thread(step, actor))

    def _is_by_thread(self, step: Step, actor: Actor) -> bool:
        """Tell whether a thread of the process does a step, as it does the accesses of a device without hardware."""
        if step.kind.by == "gpu":
            space = actor.spaces.get(step.file)
            return space is not None and space.synchronous
        return step.kind.by == "thread"

    def look(self, attempt: Attempt, page: int, reach: range) -> None:
        """Let an attempt begin anew with an access of `page`; what a GPU reaches beyond `reach` is the driver's."""
        if attempt.step.kind.by == "gpu":
            reach = self.reach(reach.start, len(reach), file=attempt.step.file)
        failures = len(self.kernel.injector.failed)
        attempt.look(reach, page=page, failures=failures, others=self._attempts)

    # ---- processes

    def start(self, name: str, mm: MmStruct | None = None) -> Actor:
        """Begin a process: with an empty address space, or with one that fork made."""
        if name in self.actors:
            raise InputError(f"scenario {self.scenario.name!r}: there are two processes {name!r}")
        if mm is None:
            process = self.machine.process(name)
        else:
            process = Process(mm)
            self.machine.processes.append(process)
        actor = Actor(name, process, Permissions(process.mm, self.base, self._attempts))
        self.actors[name] = actor
        return actor

    def open(self, actor: Actor, file: int) -> None:
        """Open a device in a process, as file number `file`. KernelError of the driver's."""
        if file in actor.spaces:
            raise InputError(f"scenario {self.scenario.name!r}: process {actor.name!r} opens file {file} twice")
        vm = self.machine.open_file(actor.process, file % self.scenario.devices, file)
        actor.spaces[file] = GpuSpace(actor.process, file, vm, isinstance(vm.faults, CallerFaults))

    def space(self, actor: Actor, file: int) -> GpuSpace:
        """Return the GPU address space behind a file of a process; ENXIO if it was not, or could not be, opened."""
        space = actor.spaces.get(file)
        if space is None:
            raise KernelError(_errno.ENXIO, f"process {actor.name!r} has no file {file}")
        return space

    def close(self, actor: Actor, file: int) -> None:
        """Close a process's file; ioctls that are under way keep it open until they end. Twice does nothing."""
        space = self.space(actor, file)
        if space.open:
            space.open = False
            self._put_file(space)

    def destroy(self, space: GpuSpace) -> None:
        """End a GPU address space; what waits in the hardware context ends with it."""
        if space.closing:
            return
        space.closing = True
        space.vm.close()
        space.closed = True
        for fault in list(space.waiting):
            fault.cancel()

    def _hold_file(self, step: Step, actor: Actor) -> GpuSpace | None:
        """Keep the file open that an ioctl goes through; None if it is none, or the file is closed."""
        space = actor.spaces.get(step.file)
        if space is None or not space.open:
            return None
        if not step.kind.through_file and not (step.kind.by == "gpu" and space.synchronous):
            return None
        space.users += 1
        return space

    def _put_file(self, space: GpuSpace) -> None:
        space.users -= 1
        if not space.open:
            # Who is last matters now.
            self.kernel.touch((space, "users"))
        if not space.users:
            self.destroy(space)
            self.machine.release(space.process, space.number)

    def exit(self, actor: Actor) -> None:
        """Let a process end as soon as no thread of it is in an operation (the caller's own included)."""
        if not actor.exiting:
            actor.exiting = True
            self._leave(actor)

    def oom_kill(self, actor: Actor) -> None:
        """Send SIGKILL to all threads of a process, let it end, and reap it next to that (oom_kill_process)."""
        if actor.exiting:
            return
        kernel, memory, mm = self.kernel, self.machine.memory, actor.process.mm
        actor.killed = True
        for attempt in self._attempts:
            if attempt.permissions is actor.permissions and attempt.step.kind.by == "thread":
                attempt.task.kill()
        mm.mmgrab()
        victim = kernel.spawn(self.exit, actor, name=f"{actor.name} exit")
        memory.oom_reap(mm)
        victim.join()
        mm.mmdrop()

    def _leave(self, actor: Actor) -> None:
        actor.threads -= 1
        if actor.exiting:
            # Who is last matters now.
            self.kernel.touch((actor, "threads"))
        if actor.threads:
            return
        # do_exit: exit_mm, then exit_files
        actor.process.mm.mmput()
        for file in list(actor.spaces):
            self.close(actor, file)
        actor.gone = True
        self.machine.processes.remove(actor.process)

    # ---- devices

    def driver(self, file: int) -> Driver:
        """Return the driver of the device that a file is of."""
        return self.machine.drivers[file % self.scenario.devices]

    def power(self, file: int) -> RuntimePm | None:
        """Return the runtime PM of the device that a file is of, whether it still has its driver or not."""
        return self._powers[file % self.scenario.devices]

    def info_of(self, file: int) -> DriverInfo:
        """Return what the driver of the device that a file is of says of itself."""
        device = file % self.scenario.devices
        return self._infos[device] if device < len(self._infos) else self.info

    def reach(self, first: int, pages: int, *, file: int = 0) -> range:
        """Return the pages that matter to a file's driver when the GPU touches some, or they are to be moved."""
        refusals, block = self.info_of(file).refusals, 1 << self.scenario.pmd_order
        end = first + pages - 1 + refusals.reach_ahead_pages
        if refusals.reach_block:
            return range(first & -block, (end + block - 1) & -block)
        return range(first, end)

    @property
    def is_crowded(self) -> bool:
        """Tell whether more memory is mapped than there is room for on a device."""
        mapped = sum(vma.end - vma.start for mm in self.machine.memory.mms for vma in mm.vma_tree.vmas)
        return mapped > self.scenario.vram_pages * self.page_size

    def is_unplugged(self, file: int) -> bool:
        return file % self.scenario.devices in self._unplugged

    def is_peer_unplugged(self, file: int) -> bool:
        """Tell whether a device that the file is not of went away, or its driver goes or went."""
        return bool((self._unplugged | self._unbound) - {file % self.scenario.devices})

    def is_in_use(self, file: int) -> bool:
        """Tell whether any process has the device of a file open."""
        device, devices = file % self.scenario.devices, self.scenario.devices
        return any(
            number % devices == device and not space.closed
            for actor in self.actors.values()
            for number, space in actor.spaces.items()
        )

    def unplug(self, file: int) -> None:
        self._unplugged.add(file % self.scenario.devices)
        self.machine.unplug(file % self.scenario.devices)

    def evict(self, file: int) -> None:
        if file % self.scenario.devices not in self.machine.removed:
            self.driver(file).evict()  # type: ignore[attr-defined]  # a scenario with it says for which drivers it is

    def sleep(self, milliseconds: int) -> None:
        """Put the system to sleep; no thread of a process is in an operation meanwhile, and none begins one."""
        drivers = [driver for index, driver in enumerate(self.machine.drivers) if index not in self.machine.removed]
        system_sleep(self.kernel, drivers, milliseconds=milliseconds, freeze=self._freeze, thaw=self._thaw)

    def _freeze(self) -> None:
        # freeze_processes: a thread freezes where it leaves the kernel; what a GPU does goes on.
        self._frozen = True
        self.kernel.touch((self, "frozen"))
        self._freezer.wait_event(
            lambda: not any(self._is_by_thread(each.step, self.actors[each.step.process]) for each in self._attempts)
        )

    def _thaw(self) -> None:
        self._frozen = False
        self.kernel.touch((self, "frozen"))
        self._freezer.wake_up_all()

    def shutdown(self, file: int) -> None:
        """Remove the driver; the teardown leaves it alone then."""
        self._unbound.add(file % self.scenario.devices)
        self.machine.remove(file % self.scenario.devices)

    @property
    def is_unloaded(self) -> bool:
        """Tell whether the driver's module is gone, or going."""
        module = self._module
        return module is None or module.state != "live"

    @property
    def _module(self) -> Module | None:
        return self.machine.modules.get(self.info.name)

    @property
    def is_open(self) -> bool:
        """Tell whether a file of any device is open, or is just being released."""
        spaces = (space for actor in self.actors.values() for space in actor.spaces.values())
        return any(space.users or (space.closing and not space.closed) for space in spaces)

    @property
    def is_module_held(self) -> bool:
        """Tell whether somebody may have a reason to hold the driver's module: an open file, a page on one of its
        devices, a work that may give one back.
        """
        if self.is_open or any(queue.busy for queue in self.kernel.workqueues):
            return True
        present = [index for index in range(len(self.machine.drivers)) if index not in self.machine.removed]
        return any(pgmap.ref > 1 for index in present for pgmap in self.machine.drivers[index].dev_pagemaps())

    def unload(self) -> None:
        """Unload the driver's module; OutcomeError if it goes though a file is open, or a process has pages of a
        drm_pagemap.
        """
        name = self.info.name
        was_open, had_pages = self.is_open, self._has_pages
        self.machine.unload(name)
        if was_open:
            raise OutcomeError(f"the module of {name} was unloaded though a file of it was open")
        if had_pages:
            raise OutcomeError(f"the module of {name} was unloaded though a process had pages of its drm_pagemap")

    @property
    def _has_pages(self) -> bool:
        """Tell whether a process has a page in device memory that belongs to a drm_pagemap."""
        memory, size = self.machine.memory, self.page_size
        for mm in memory.mms:
            for vma in mm.vma_tree.vmas:
                for address in range(vma.start, vma.end, size):
                    entry = mm.page_table.entry(address)
                    if entry.kind in _PRIVATE and isinstance(
                        memory.zone_device_data(memory.folio_head(entry.pfn)), Zdd
                    ):
                        return True
        return False

    def command(self, actor: Actor, file: int, name: str, numbers: Sequence[int]) -> None:
        """Do an operation that the plugin offers, in the name of a process; KernelError of the driver's."""
        target = self._target
        if target is None or name not in target.operations:
            raise InputError(f"scenario {self.scenario.name!r}: {self.info.name} offers no operation {name!r}")
        if actor.commands is None:
            actor.commands = target.start(
                OperationHost(
                    memory=self.machine.memory,
                    mm=actor.process.mm,
                    drivers=self.machine.drivers,
                    vms=[space.vm for _, space in sorted(actor.spaces.items())],
                    words=PageWords(self.machine.memory),
                    address=lambda _, page: self.base + page * self.page_size,
                )
            )
        filled = {"dev": file, "slot": 0}
        rest = iter(numbers)
        try:
            actor.commands.execute(
                name, [filled[each] if each in filled else next(rest) for each in target.operations[name]]
            )
        finally:
            actor.commands.take_events()

    # ---- holders of pages

    @property
    def holds_pages(self) -> bool:
        return any(actor.held for actor in self.actors.values())

    def holders(self) -> dict[int, int]:
        """Return the references that third parties have, by the folio's head, as `check_quiescent` takes them."""
        pages = self.machine.memory.pages
        held: dict[int, int] = {}
        for actor in self.actors.values():
            for pfn, pinned in (each for taken in actor.held.values() for each in taken):
                head = pages.folio_head(pfn)
                one = GUP_PIN_COUNTING_BIAS if pinned and not pages.folio_order(head) else 1
                held[head] = held.get(head, 0) + one
        return held

    def drop(self, actor: Actor, page: int) -> None:
        """Give back what was taken at a page."""
        memory = self.machine.memory
        for pfn, pinned in actor.held.pop(page, []):
            if pinned:
                memory.unpin_user_pages(np.array([pfn], np.int64))
            else:
                memory.folio_put(memory.folio_head(pfn))

    # ---- the end

    def teardown(self) -> None:
        """Drop what third parties hold, end every process and remove every device; all accounts have to be empty."""
        for actor in self.actors.values():
            for page in list(actor.held):
                self.drop(actor, page)
        for actor in self.actors.values():
            for space in actor.spaces.values():
                space.open, space.closing = False, True
        self.machine.teardown()


def _operation_target(drivers: Mapping[str, DriverInfo], name: str) -> OperationTarget | None:
    from gpusvm.plugins import Registry

    return drivers.find(name).operations if isinstance(drivers, Registry) else None
