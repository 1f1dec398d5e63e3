"""The contract between gpusvm and a driver plugin: what is known of a driver before anything is built.

A plugin hands over one inert `DriverInfo`; `make(host)` builds the driver (`gpusvm.driver.protocols.Driver`) into a
machine.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from attrs import Factory, evolve, field, frozen

from gpusvm.driver.capabilities import Capabilities
from gpusvm.driver.refusals import Refusals
from gpusvm.driver.strategy import strategy_problems
from gpusvm.errors import InputError, nearest
from gpusvm.kernel import Kernel, Module
from gpusvm.mm.api import MemoryManagerApi

if TYPE_CHECKING:
    from gpusvm.driver.protocols import Driver, FaultPolicy
    from gpusvm.drm import OwnerList
    from gpusvm.gpu import Link

__all__ = ["ABI", "DeviceSpec", "DriverInfo", "Host"]

ABI: Final = (1, 0)
"""The version of this contract: a plugin needs the same major number and no higher minor one."""


@frozen(kw_only=True)
class DeviceSpec:
    """Describe one device of the topology: what a driver's probe would read from the hardware.

    `vram_bytes` is the usable VRAM, a multiple of the page size. `index` is its place among the machine's devices.
    A device that is not `discrete` has no memory of its own. One with several `tiles` has a share of the VRAM on each.
    """

    name: str
    vram_bytes: int
    index: int = 0
    discrete: bool = True
    p2p: frozenset[int] = frozenset()
    """The places of the devices to whose memory there is a path (pci_p2pdma_distance >= 0), and from them to its."""
    d3cold_capable: bool = True
    tiles: int = 1
    iommu: bool = False
    """An IOMMU stands between the device and system memory: what is mapped together can have consecutive addresses."""
    late_clears: bool = False
    """What clears device memory does so when it gets to it, whatever is in the memory by then; otherwise at once, and
    only its time passes.
    """

    def reaches(self, other: "DeviceSpec") -> bool:
        """Tell whether another device is this one, or there is a path between the two."""
        return self.index == other.index or other.index in self.p2p


@frozen(kw_only=True, eq=False)
class Host:
    """Give a driver what it is built into: the kernel, the memory, its device, and what the user set.

    `tunables` and `quirks` are instances of the classes that the driver's `DriverInfo` names. `link` is the bus
    between this device and system memory. `peers` are the drivers built so far into the same machine, of any kind,
    this one's own kind included: what the kernel keeps in driver-wide lists is found through them. `module` is the
    driver's, for its DrmDevice; None where nothing can be unloaded.

    What-if: `policy` decides where faults of this device migrate, in place of the driver's own rule. `owners` is one
    list for the pagemaps and address spaces of all drivers, so that one can map another's memory where it is (of
    whatever joins it, `peer.private.driver.spec` is the DeviceSpec); None as in Linux, where each driver has its own.
    """

    kernel: Kernel
    memory: MemoryManagerApi
    device: DeviceSpec
    link: "Link"
    tunables: Any
    quirks: Any
    module: Module | None = None
    peers: "list[Driver]" = Factory(list)
    policy: "FaultPolicy | None" = None
    owners: "OwnerList | None" = None
    strategies: Mapping[str, Callable[..., Any]] = Factory(dict)
    """The user's classes, by the key that `DriverInfo.strategies` has for them (`DriverInfo.variant`)."""

    def strategy(self, key: str, default: Any, *args: Any) -> Any:
        """Return what to use for `key`: the user's class built with `args` if there is one, and else `default`."""
        chosen = self.strategies.get(key)
        return default if chosen is None else chosen(*args)

    def fault_policy(self, driver: Any) -> "FaultPolicy | None":
        """Return what decides about migration in place of the driver's own rule: `policy`, or the user's class for
        `place`, built with the driver.
        """
        return self.policy or self.strategy("place", None, driver)


def _nothing_to_refuse(tunables: Any, quirks: Any) -> Sequence[str]:
    return ()


def _as_declared(info: "DriverInfo", tunables: Any, quirks: Any) -> "DriverInfo":
    return info


@frozen(kw_only=True)
class DriverInfo:
    """Describe a driver without building it.

    `abi` is the contract version that it was written for; `kernel` says which Linux it follows. `tunables` and `quirks`
    are frozen attrs classes that can be built without arguments (fields from `gpusvm.driver.tunable` and `.quirk`).
    `embedding`, `bo_mapping` and `pm` are one line each. `refuse` takes (tunables, quirks) and returns one sentence for
    every combination that cannot work, with the reason. `refusals` states the errnos that programs may get.
    Where `refusals`, `capabilities` or a promise are others with other settings, `with_settings` takes (info, tunables,
    quirks) and returns the info as they make it; what is declared here holds for the defaults.
    With `awake_with_pages` it promises that the device is awake while a page of it is in an address space.
    With `registered_only` no fault of the GPU is served: it reaches what the program has registered, and nothing else.
    `tiles_max` is how many tiles of a device it knows to tell apart (its Vms are `TiledVm` if they are several), and
    `integrated` says that it also drives devices that are not discrete. `strategies` are the keys for which a user may
    give a class of his own, each with the protocol that the class has to satisfy. `unload` says in which order the exit
    function of its module removes the devices: the last that was found first, as unregistering a driver does
    (driver_detach), the other way round, or "never": it has no exit function.
    """

    name: str
    summary: str
    kernel: str
    capabilities: Capabilities
    tunables: type[Any]
    quirks: type[Any]
    embedding: str
    bo_mapping: str
    pm: str
    make: "Callable[[Host], Driver]"
    abi: tuple[int, int] = field()
    refuse: Callable[[Any, Any], Sequence[str]] = _nothing_to_refuse
    refusals: Refusals = field(factory=Refusals)
    with_settings: "Callable[[DriverInfo, Any, Any], DriverInfo]" = _as_declared
    tiles_max: int = 1
    integrated: bool = False
    awake_with_pages: bool = False
    registered_only: bool = False
    strategies: Mapping[str, type] = Factory(dict)
    unload: Literal["last_first", "first_first", "never"] = "last_first"

    def variant(self, **classes: type) -> Self:
        """Return the driver with classes of the user's own in the place of some of its strategies, by their key.

        What ``NAME:KEY=MODULE:CLASS`` does in a spec string. InputError for a key that the driver has no place for,
        and for a class that lacks a method of the strategy's protocol or takes other arguments.
        """
        for key, chosen in classes.items():
            if key not in self.strategies:
                raise InputError(f"driver {self.name}: no strategy {key!r}; {nearest(key, sorted(self.strategies))}")
            problems = strategy_problems(chosen, self.strategies[key])
            if problems:
                raise InputError(f"driver {self.name}: {key}: {'; '.join(problems)}")
        return evolve(self, make=partial(_make_variant, self.make, classes)) if classes else self


def _make_variant(make: "Callable[[Host], Driver]", classes: Mapping[str, Callable[..., Any]], host: Host) -> "Driver":
    return make(evolve(host, strategies={**host.strategies, **classes}))
