"""One svmdev device: its pagemap, and what others do with it.

`device_map` gives addresses that say which device and which of its pages: ``(number + 1) << 40 | offset``. There is no
hardware whose bus could be in the way, so every device reaches every other.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import EBUSY, ENODEV
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from attrs import evolve
from gpusvm.driver import RETRY_NS, AlwaysAwake, DeviceSpec, DriverInfo, FaultAccounts, Host
from gpusvm.drm import (
    DRM_INTERCONNECT_DRIVER,
    Devmem,
    DrmDevice,
    DrmPagemap,
    DrmQuirks,
    MigrateDetails,
    PagemapAddrs,
    PagemapCache,
    PagemapDevOps,
    PagemapShrinker,
    Peer,
    constant_u8,
    evict_to_ram,
    migrate_to_devmem,
)
from gpusvm.drm.addr import Orders, Protos
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel
from gpusvm.mm.api import (
    MEMORY_DEVICE_COHERENT,
    MEMORY_DEVICE_PRIVATE,
    DevPagemap,
    MemoryManagerApi,
    MmApi,
    Pfns,
    Words,
)

from gpusvm_svmdev.faults import SvmdevFaults
from gpusvm_svmdev.file import SvmdevFile
from gpusvm_svmdev.info import INFO
from gpusvm_svmdev.memory import SvmdevBo, SvmdevMemory

if TYPE_CHECKING:
    from gpusvm_svmdev.tunables import SvmdevQuirks, SvmdevTunables

__all__ = ["DeviceLog", "Svmdev", "device_page"]

_DEVICE_SHIFT: Final = 40
_TRIES: Final = 100  # to bring home what is in the device's memory at its end; memunmap_pages waits for what is left


def device_page(addr: int, page_shift: int) -> tuple[int, int]:
    """Return which device, and which of its pages, an address stands for."""
    return (addr >> _DEVICE_SHIFT) - 1, (addr & ((1 << _DEVICE_SHIFT) - 1)) >> page_shift


class DeviceLog(Protocol):
    """Take what happens to a device, as the recorded module writes it down."""

    def destroyed(self, device: int, serial: int, *, in_atomic: bool) -> None:
        """Note that a pagemap was destroyed, the device's `serial`-th."""


class Svmdev:
    """Be one device (struct svmdev): its dev_pagemap and its drm_pagemap side by side, whose ops it is, and its memory.

    With ``same_owner=1`` the machine's first svmdev owns the pages of all; where the machine has one list of owners for
    all drivers (`Host.owners`), that decides. It is its own `PagemapEmbedding`.
    """

    info: DriverInfo = INFO
    destroy: Callable[[DrmPagemap, bool], None] | None
    kernel: Kernel
    memory: MemoryManagerApi
    tunables: "SvmdevTunables"
    device: DrmDevice
    vram: SvmdevMemory
    accounts: FaultAccounts
    pipeline: SvmdevFaults

    def __init__(self, host: Host) -> None:
        quirks: SvmdevQuirks = host.quirks
        self.host = host
        self.kernel = host.kernel
        self.memory = host.memory
        tunables = self.tunables = host.tunables
        self.number = host.device.index
        self.device = DrmDevice(host.kernel, host.device.name, iommu=host.device.iommu, module=host.module)
        first = next((peer for peer in host.peers if isinstance(peer, Svmdev)), self)
        self.owner: object = first if tunables.same_owner else self
        self.driver = self
        self.spec = host.device
        self.peer = Peer(self)
        if host.owners is not None:
            self.owner = host.owners.acquire_owner(self.peer, self._reaches)
        self.details = MigrateDetails(can_migrate_same_pagemap=bool(tunables.can_migrate_same_pagemap))
        self._page_shift = host.memory.geometry.page_shift
        pages = tunables.device_pages or host.device.vram_bytes >> self._page_shift
        self.vram = self.bo_mapping = SvmdevMemory(host, pages)
        self.vram.first_pfn = host.memory.request_free_mem_region(pages)
        self.pgmap = DevPagemap(
            MEMORY_DEVICE_COHERENT if tunables.coherent else MEMORY_DEVICE_PRIVATE,
            self.vram.first_pfn,
            pages,
            self.owner,
            PagemapDevOps(host.memory),
            container=self,
        )
        host.memory.memremap_pages(self.pgmap)
        self._quirks = DrmQuirks(
            hole_count=quirks.hole_count, stale_cache=quirks.stale_cache, coherent_unmap=quirks.coherent_unmap
        )
        self._serials: dict[DrmPagemap, int] = {}
        self.destroy = self._destroyed if tunables.cached else None
        # Each is assigned once: what changes a field is to be seen outside of __init__ (explore.watch).
        self.cache: PagemapCache | None = self._new_cache() if tunables.cached else None
        self.plain: DrmPagemap | None = None if tunables.cached else self._new_pagemap("driver")
        if tunables.make_room:
            self.vram.make_room = self._evict
        self.timeslice_ms = 0
        self.log: DeviceLog | None = None
        self.mapped = 0
        self.accounts = FaultAccounts()
        self.pipeline = SvmdevFaults(self)
        self.embedding = self
        self.pm = AlwaysAwake()
        self.files: dict[int, SvmdevFile] = {}
        self._opened = 0

    def __repr__(self) -> str:
        return f"<Svmdev {self.host.device.name!r}>"

    # ---- the driver ----------------------------------------------------------------------------------------------

    def pagemaps(self) -> list[DrmPagemap]:
        found = self.cache.dpagemap if self.cache is not None else self.plain
        return [] if found is None else [found]

    @property
    def dpagemap(self) -> DrmPagemap:
        """Return the one that a device without a cache has all its life."""
        assert self.plain is not None, "with cached=1 a pagemap is there only while somebody uses it"
        return self.plain

    def _new_cache(self) -> PagemapCache:
        shrinker = PagemapShrinker(self.device, quirks=self._quirks)
        self.device.devm_add_action(shrinker.fini)
        cache = PagemapCache(shrinker)
        self.device.devm_add_action(cache.fini)
        return cache

    def _new_pagemap(self, holder: object) -> DrmPagemap:
        made = DrmPagemap(
            self.memory, self.device, self.pgmap, self, container=self, quirks=self._quirks, holder=holder
        )
        self._serials[made] = len(self._serials) + 1
        return made

    def pagemap_get(self, holder: object) -> tuple[str, DrmPagemap]:
        """Return how the device's pagemap was found, and it, with a reference (drm_pagemap_util.c, "Cache lookup").

        It was "active", "revived" out of the cache, or is "new".
        """
        cache = self.cache
        if cache is None:
            self.dpagemap.get(holder)
            return "active", self.dpagemap
        found = cache.get_if_active(holder)
        if found is not None:
            return "active", found
        with cache.lookup():
            found = cache.get(holder)
            if found is not None:
                return "revived", found
            made = self._new_pagemap(holder)
            cache.set_pagemap(made)
        return "new", made

    def serial(self, dpagemap: DrmPagemap) -> int:
        """Return which of the device's pagemaps it is, counted from 1."""
        return self._serials[dpagemap]

    def populate(self, start: int, end: int, mm: MmApi) -> None:
        """Bring [start, end) into the device's memory, for `timeslice_ms` at least (drm_pagemap_populate_mm)."""
        if self.cache is None:
            self.dpagemap.populate_mm(start, end, mm, self.timeslice_ms)
            return
        _, dpagemap = self.pagemap_get("populate")
        try:
            dpagemap.populate_mm(start, end, mm, self.timeslice_ms)
        finally:
            dpagemap.put("populate")

    def unplug_command(self) -> int:
        """Let nothing new come to the device, and bring what is there home; how many allocations came (drm_dev_unplug).

        ENODEV if it is unplugged already; EBUSY if some stayed. It is a program that asks: the machine cannot take the
        device away (`Machine.unplug`), which is no hardware.
        """
        if self.device.unplugged:
            raise KernelError(ENODEV, f"{self.host.device.name} is unplugged")
        self.device.unplug()
        came = busy = 0
        while (bo := self.vram.nth(busy)) is not None:
            try:
                self._evict(bo)
                came += 1
            except KernelError:
                busy += 1
            finally:
                bo.ref.put("evict")
        if busy:
            raise KernelError(EBUSY, f"{busy} allocations are still on {self.host.device.name}")
        return came

    def _destroyed(self, dpagemap: DrmPagemap, in_atomic: bool) -> None:  # the op's form
        """Note that nobody uses a pagemap any more. As in the module its memory stays, for whoever finds it still."""
        if self.log is not None:
            self.log.destroyed(self.number, self._serials[dpagemap], in_atomic=in_atomic)

    @staticmethod
    def _evict(bo: SvmdevBo) -> None:
        assert bo.devmem is not None
        evict_to_ram(bo.devmem)

    def vm_create(self, mm: MmApi, *, start: int, end: int) -> SvmdevFile:
        """Open the device in the process of `mm` (svmdev_open)."""
        self._opened += 1
        file = SvmdevFile(self, mm, start=start, end=end, inst=self._opened)
        self.files[self._opened] = file
        return file

    def evict(self) -> None:
        """Bring what is in the device's memory home, the oldest allocation first; what is busy stays."""
        for bo in self.vram.held():
            try:
                with suppress(KernelError):
                    self._evict(bo)
            finally:
                bo.ref.put("evict")

    def shutdown(self) -> None:
        """Remove the device: what is in its memory comes home. EBUSY while a file is open.

        The recorded module cannot be removed, its pagemaps hold it.
        """
        if self.files:
            raise KernelError(EBUSY, f"{len(self.files)} files of {self.host.device.name} are open")
        for _ in range(_TRIES):
            if not self.vram.bos:
                break
            self.evict()
            if self.vram.bos:  # a CPU fault has a page of it, and may fail
                self.host.kernel.sleep_ns(RETRY_NS)
        if self.host.owners is not None:
            self.host.owners.release_owner(self.peer)
        if self.plain is not None:
            self.plain.put()
        self.device.unplugged = True
        self.device.devres_release_all()
        self.memory.memunmap_pages(self.pgmap)
        self.device.put()

    @staticmethod
    def _reaches(peer1: Peer, peer2: Peer) -> bool:
        """Tell whether there is a path between the devices of two drivers; svmdev itself needs none."""
        spec: DeviceSpec = peer1.private.driver.spec
        return spec.reaches(peer2.private.driver.spec)

    def describe(self) -> Mapping[str, Any]:
        return {
            "device": self.host.device.name,
            "device_pages": self.vram.pages,
            "pages_in_use": self.vram.pages_in_use,
            "allocations": len(self.vram.bos),
            "files": len(self.files),
        }

    # ---- where its dev_pagemap is (`gpusvm.driver.PagemapEmbedding`) ---------------------------------------------

    def container_of(self, pgmap: DevPagemap) -> "Svmdev":
        """Return the device around a dev_pagemap (page_to_dev)."""
        device: Svmdev = pgmap.container
        return device

    def dev_pagemaps(self) -> list[DevPagemap]:
        return [self.pgmap]

    def pagemap_of(self, pgmap: DevPagemap) -> DrmPagemap:
        device = self.container_of(pgmap)
        return device.plain or next(iter(device.pagemaps()))

    # ---- struct drm_pagemap_ops ----------------------------------------------------------------------------------

    def device_map(
        self, dpagemap: DrmPagemap, dev: DrmDevice, pfns: Pfns, order: Orders, direction: int
    ) -> tuple[Words, Protos]:
        """Name the device and the page, whichever device asks."""
        self.mapped += len(pfns)
        addrs = (pfns - self.vram.first_pfn << self._page_shift) | (self.number + 1 << _DEVICE_SHIFT)
        return addrs.astype(np.uint64), constant_u8(DRM_INTERCONNECT_DRIVER, len(pfns))

    def device_unmap(self, dpagemap: DrmPagemap, dev: DrmDevice, addrs: PagemapAddrs) -> None:
        """Nothing to undo but the count."""
        self.mapped -= len(addrs)

    def populate_mm(self, dpagemap: DrmPagemap, start: int, end: int, mm: MmApi, timeslice_ms: int) -> None:
        """Bring [start, end) into one new allocation, all of it or nothing. mmap_lock is held for reading.

        ENODEV after unplug, ENOMEM without room, else what migrate_to_devmem raises.
        """
        cookie = self.device.dev_enter()
        try:
            bo = self.vram.alloc((end - start) >> self._page_shift)
            bo.devmem = Devmem(self.device, mm, self.vram, dpagemap, end - start, container=bo)
            bo.ref.get("populate_mm")
            details = evolve(self.details, timeslice_ms=timeslice_ms) if timeslice_ms else self.details
            try:
                migrate_to_devmem(bo.devmem, mm, start, end, details)
            finally:
                bo.ref.put("populate_mm")
        finally:
            self.device.dev_exit(cookie)
