"""Boot a machine: one kernel, its memory, its devices with a driver each, and the processes that run on it.

A topology says what hardware there is. Tearing a machine down is a check: every reference, mapping and page has to be
back, or it fails with the holder named.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from errno import ENODEV, ENOENT, EOPNOTSUPP
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Final, Literal, cast

from attrs import Factory, define, field, frozen, validators

from gpusvm.documents import structure
from gpusvm.driver import DeviceSpec, Driver, DriverSpec, FaultPolicy, Host, TiledVm, Vm, system_sleep
from gpusvm.drm import OwnerList
from gpusvm.errors import InputError, KernelError, nearest
from gpusvm.gpu import Link
from gpusvm.kernel import Choices, Costs, Kernel, Module, Mutex, SeededChoices
from gpusvm.kernel.authors import code_roots
from gpusvm.mm import Geometry, MemoryManager, MmStruct

__all__ = ["USER_SPACE_END", "Machine", "Process", "Topology", "load_topology", "topologies"]

_SUFFIX = ".toml"

# What the GPU mirrors of a process: the lower half of a 48-bit address space, as x86-64 gives it to user space.
USER_SPACE_END: Final = 1 << 47


@frozen(kw_only=True)
class _Device:
    name: str
    discrete: bool
    p2p: bool | tuple[str, ...]
    d3cold_capable: bool
    tiles: int = field(default=1, validator=validators.ge(1))
    iommu: bool = False
    late_clears: bool = False


@frozen(kw_only=True)
class Topology:
    """Describe a machine's hardware: bytes of system memory, and its devices in probe order. VRAM is set at boot.

    A device's `p2p` is a list of the devices between whose memory and its own there is a path, or true for all that do
    not say otherwise, or false.
    """

    name: str
    summary: str
    ram_bytes: int
    device: tuple[_Device, ...]

    def peers(self, index: int) -> frozenset[int]:
        """Return the places of the devices to which a path leads from one, which has a path from them as well."""
        device = self.device[index]
        return frozenset(
            place
            for place, other in enumerate(self.device)
            if place != index and _would_reach(device, other) and _would_reach(other, device)
        )


def _code_of(drivers: Sequence[DriverSpec]) -> tuple[str, ...]:
    roots = [root for spec in drivers for root in code_roots(spec.info.make)]
    return tuple(dict.fromkeys(roots))


def _would_reach(device: _Device, other: _Device) -> bool:
    return device.p2p if isinstance(device.p2p, bool) else other.name in device.p2p


def topologies() -> tuple[str, ...]:
    """List the names of the bundled topologies, sorted."""
    files = resources.files("gpusvm").joinpath("topologies").iterdir()
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX)))


def load_topology(name_or_path: str | Path) -> Topology:
    """Read a bundled topology by name, or any by the path of its TOML file. InputError says what is wrong and where."""
    if name_or_path in topologies():
        text = resources.files("gpusvm").joinpath("topologies", f"{name_or_path}{_SUFFIX}").read_text("utf-8")
    else:
        path = Path(name_or_path)
        if path.suffix != _SUFFIX and not path.exists():
            near = nearest(str(name_or_path), topologies())
            raise InputError(f"unknown topology {str(name_or_path)!r}, {near} (or the path of a {_SUFFIX} file)")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise InputError(f"{path}: expected a topology in TOML, cannot be read: {exc}") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise InputError(f"{name_or_path}: expected a topology in TOML: {exc}") from None
    topology = structure(document, Topology, source=str(name_or_path))
    names = [device.name for device in topology.device]
    if not names:
        raise InputError(f"{name_or_path}: device: expected one device or more")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"{name_or_path}: device: two are called {repeated!r}; give each a name of its own")
    problems = [problem for device in topology.device for problem in _paths_that_lead_nowhere(device, topology)]
    if problems:
        raise InputError(f"{name_or_path}: {'; '.join(problems)}")
    return topology


def _paths_that_lead_nowhere(device: _Device, topology: Topology) -> Iterator[str]:
    devices = {each.name: each for each in topology.device}
    for place, name in enumerate(() if isinstance(device.p2p, bool) else device.p2p):
        where = f"device {device.name!r}: p2p[{place}]"
        if name == device.name:
            yield f"{where}: {name!r} is the device itself; name others"
        elif name not in devices:
            yield f"{where}: unknown device {name!r}, {nearest(name, sorted(devices.keys() - {device.name}))}"
        elif not _would_reach(devices[name], device):
            yield f"{where}: {name!r} has no path back to {device.name!r}; name it in the p2p of both, or of neither"


@define(eq=False)
class Process:
    """One process: its address space, and the GPU address spaces it has opened, by device index.

    `files` are the modules that its open files hold, by device index: also of a file whose GPU address space was closed
    by itself (`Vm.close`).
    """

    mm: MmStruct
    vms: dict[int, Vm] = Factory(dict)
    files: dict[int, Module] = Factory(dict)


@define(eq=False)
class Machine:
    """Hold a booted machine. `boot` builds it; `teardown` ends it and checks that nothing is left.

    `modules` are those that are loaded, by the name of their driver: one for all devices that it drives. `removed` are
    the devices, by index, that have lost their driver.
    """

    kernel: Kernel
    memory: MemoryManager
    topology: Topology
    drivers: list[Driver]
    links: list[Link]
    processes: list[Process] = Factory(list)
    modules: dict[str, Module] = Factory(dict)
    removed: set[int] = Factory(set)
    _driver_names: list[str] = Factory(list)
    _device_locks: list[Mutex] = Factory(list)

    @classmethod
    def boot(
        cls,
        topology: Topology,
        drivers: Sequence[DriverSpec],
        *,
        vram_bytes: int,
        costs: Costs | None = None,
        choices: Choices | None = None,
        mode: Literal["timed", "explored"] = "timed",
        thp: Literal["always", "madvise", "never"] = "always",
        geometry: Geometry | None = None,
        checked: bool = True,
        cpus: int | None = None,
        preemptive: bool = True,
        policies: Mapping[int, FaultPolicy] | None = None,
        owners: OwnerList | None = None,
        authors: bool = False,
    ) -> "Machine":
        """Boot `topology` with `drivers[i]` on its device i; every device has `vram_bytes` of VRAM,
        shared evenly by its tiles.

        With `cpus`, in explored mode, CPUs count, and `preemptive` says where tasks lose theirs (`Kernel`). `policies`,
        by the number of the device, and `owners` are the what-ifs of `Host`. With `authors` an error about a driver
        names its code: for those who write one. It costs time.
        Raises InputError when there is not one driver for each device, or when the VRAM is smaller than the largest
        range, which is one PMD, or not a whole number of pages.
        """
        geometry = geometry or Geometry()
        if len(drivers) != len(topology.device):
            raise InputError(
                f"topology {topology.name!r} has {len(topology.device)} devices, got {len(drivers)} drivers; "
                "name one driver for each"
            )
        if vram_bytes < geometry.pmd_size:
            raise InputError(
                f"VRAM of {vram_bytes} bytes is smaller than one range ({geometry.pmd_size} bytes); "
                "give it at least that"
            )
        if vram_bytes % geometry.page_size:
            raise InputError(
                f"VRAM of {vram_bytes} bytes is not a multiple of the page size ({geometry.page_size} bytes)"
            )
        for device, spec in zip(topology.device, drivers, strict=True):
            if device.tiles > spec.info.tiles_max:
                raise InputError(
                    f"topology {topology.name!r}: {device.name} has {device.tiles} tiles, and {spec.info.name} knows "
                    f"{spec.info.tiles_max} at most"
                )
            if not device.discrete and not spec.info.integrated:
                raise InputError(
                    f"topology {topology.name!r}: {device.name} is integrated, and {spec.info.name} drives discrete "
                    "devices only"
                )
            if vram_bytes // device.tiles < geometry.pmd_size or vram_bytes % (device.tiles * geometry.page_size):
                raise InputError(
                    f"VRAM of {vram_bytes} bytes cannot be shared by the {device.tiles} tiles of {device.name}; give "
                    f"each {geometry.pmd_size} bytes at least, and whole pages"
                )
        kernel = Kernel(
            mode=mode,
            choices=choices or SeededChoices(0),
            costs=costs,
            checked=checked,
            cpus=cpus,
            preemptive=preemptive,
            authors=_code_of(drivers) if authors else None,
        )
        memory = MemoryManager(
            kernel,
            geometry=geometry,
            ram_pages=topology.ram_bytes // geometry.page_size,
            thp=thp,
            quirks=drivers[0].mm_quirks,
        )
        machine = cls(kernel, memory, topology, [], [])
        for index, (device, spec) in enumerate(zip(topology.device, drivers, strict=True)):
            link = Link(kernel, f"{device.name} link")
            machine.links.append(link)
            machine._device_locks.append(kernel.mutex("dev->mutex"))
            name, order = spec.info.name, spec.info.unload
            machine._driver_names.append(name)
            if name not in machine.modules:
                leave = partial(machine._remove_all, name, last_first=order == "last_first")
                machine.modules[name] = Module(kernel, name, exit=None if order == "never" else leave)
            machine.drivers.append(
                spec.info.make(
                    Host(
                        kernel=kernel,
                        memory=memory,
                        device=DeviceSpec(
                            name=device.name,
                            vram_bytes=vram_bytes,
                            index=index,
                            discrete=device.discrete,
                            p2p=topology.peers(index),
                            d3cold_capable=device.d3cold_capable,
                            tiles=device.tiles,
                            iommu=device.iommu,
                            late_clears=device.late_clears,
                        ),
                        link=link,
                        tunables=spec.tunables,
                        quirks=spec.quirks,
                        module=machine.modules[name],
                        peers=machine.drivers,
                        policy=None if policies is None else policies.get(index),
                        owners=owners,
                    )
                )
            )
            pm = machine.drivers[-1].device.pm
            link.power = pm
            if pm is not None and spec.info.awake_with_pages:
                pm.promised = True
        return machine

    def sleep(self, milliseconds: int = 0) -> None:
        """Put the system to sleep for a while of virtual time, and wake it (pm_suspend). KernelError: a device refuses.

        The caller is all of user space: nobody else may be in a system call or a CPU fault.
        """
        drivers = [driver for device, driver in enumerate(self.drivers) if device not in self.removed]
        system_sleep(self.kernel, drivers, milliseconds=milliseconds)

    def process(self, name: str) -> Process:
        """Start a process with an empty address space."""
        process = Process(self.memory.mm_alloc(name))
        self.processes.append(process)
        return process

    def open(self, process: Process, device: int = 0) -> Vm:
        """Open a device in `process`: a GPU address space that mirrors all of its user space.

        The file holds the driver's module until `close`, or the end of the process. ENODEV if that is gone.
        """
        return self.open_file(process, device, device)

    def open_file(self, process: Process, device: int, number: int) -> Vm:
        """Open a device as file `number` of `process`, which need not be the device's: of one device there can be
        several. ENODEV (drm_stub_open), or what the driver raises.
        """
        module = self.modules.get(self._driver_names[device])
        if module is None or not module.try_get("file"):
            raise KernelError(ENODEV, f"device {device} has no driver any more")
        try:
            vm = self.drivers[device].vm_create(process.mm, start=0, end=USER_SPACE_END)
        except KernelError:
            module.put("file")
            raise
        process.vms[number] = vm
        process.files[number] = module
        return vm

    def close(self, process: Process, device: int = 0) -> None:
        """Close the file of a device, and with it the GPU address space."""
        process.vms[device].close()
        self.release(process, device)

    @staticmethod
    def release(process: Process, number: int) -> None:
        """Let go of the module for a file whose GPU address space is closed (__fput)."""
        process.files.pop(number).put("file")

    def open_engines(self, process: Process) -> list[tuple[Vm, Link]]:
        """Open every device in `process`; what the engines of each tile use, in order, with their device's link."""
        engines: list[tuple[Vm, Link]] = []
        for index, device in enumerate(self.topology.device):
            vm = self.open(process, index)
            engines.append((vm, self.links[index]))
            engines += [(cast("TiledVm", vm).on_tile(tile), self.links[index]) for tile in range(1, device.tiles)]
        return engines

    def unplug(self, device: int = 0) -> None:
        """Take a device away while it is in use. Nothing if it has no driver; EOPNOTSUPP if that cannot let it go."""
        with self._device_locks[device]:
            if device not in self.removed:
                unplug = getattr(self.drivers[device], "unplug", None)
                if unplug is None:
                    raise KernelError(EOPNOTSUPP, f"{self._driver_names[device]} cannot let go of a device in use")
                unplug()

    def remove(self, device: int = 0) -> None:
        """Take the driver from a device, as writing to the driver's `unbind` in sysfs does. Twice does nothing.

        EBUSY of drivers that refuse it, which the kernel's cannot, while the device is open.
        """
        with self._device_locks[device]:
            if device not in self.removed:
                self.drivers[device].shutdown()
                self.removed.add(device)

    def unload(self, driver: str) -> None:
        """Unload the module of a driver, by the driver's name, and so remove it from all its devices (rmmod).

        EAGAIN (EWOULDBLOCK) while anybody holds the module: an open file, or a `drm_pagemap` of one of its devices, in
        which somebody has pages, or which somebody wants (`gpusvm.drm.DrmPagemap`). EBUSY if it is going already, or
        has no exit function; ENOENT if it is not loaded. It cannot be loaded again.
        """
        module = self.modules.get(driver)
        if module is None:
            raise KernelError(ENOENT, f"no module {driver!r} is loaded")
        module.unload()
        del self.modules[driver]
        for device in self._devices_of(driver):
            self.kernel.free(self.drivers[device])  # nobody can call it any more

    def _remove_all(self, name: str, *, last_first: bool) -> None:
        """Be the exit function of a driver's module."""
        devices = self._devices_of(name)
        for device in reversed(devices) if last_first else devices:
            self.remove(device)

    def _devices_of(self, name: str) -> list[int]:
        return [device for device, each in enumerate(self._driver_names) if each == name]

    def teardown(self) -> None:
        """End every process, remove every device, and check that nothing is left.

        A process goes as do_exit takes it apart: the address space first, its open files after it. Raises ModelError
        (a reference or a page that is still held, a work that is still queued, an invariant) or what the drivers raise.
        """
        for process in self.processes:
            process.mm.mmput()
            for vm in process.vms.values():
                vm.close()
            for number in list(process.files):
                self.release(process, number)
        self.kernel.settle()
        for device in reversed(range(len(self.drivers))):
            self.remove(device)
        self.kernel.settle()
        self.kernel.assert_idle()
        if self.kernel.authors is not None:
            self.kernel.authors.assert_consumed()
        self.kernel.ledger.assert_empty()

    def gauges(self) -> Mapping[str, int]:
        """Return the most objects of each kind that were alive at once."""
        return self.kernel.gauges.peak
