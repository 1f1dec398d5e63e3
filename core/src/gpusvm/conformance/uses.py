"""Use each capability that a driver can declare, whether it does or not, and see whether it is there.

A driver that lacks one says so by an errno, or leaves things as they are. What else it does (another exception, a
broken invariant, contents that are lost) ends the use with an error.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from attrs import frozen

from gpusvm.conformance.lab import Lab
from gpusvm.conformance.recorder import subscriptions
from gpusvm.conformance.scene import PAGE, PMD_PAGES, close, falls_asleep, pinned, written, written_anew
from gpusvm.driver import ACCESS_PREFETCH
from gpusvm.drm import GpuSvmNotifier, PagemapDevOps
from gpusvm.errors import KernelError
from gpusvm.mm.pgtable import PmdLeaf

if TYPE_CHECKING:
    from gpusvm.driver import Vm
    from gpusvm.testing import Bench

__all__ = ["USES", "Use"]

_FEW: Final = 16
_SMALL_VRAM: Final = 8 << 20
_MORE_THAN_FITS: Final = 6


@frozen(kw_only=True)
class Use:
    """Hold what it means to have a capability, where in Linux it is seen, and what tries it: whether it is there.

    Where it is not `decisive` the same is seen of some who lack the capability, and come by it otherwise.
    """

    sentence: str
    ref: str
    try_: Callable[[Lab], bool]
    decisive: bool = True


def _bring(bench: "Bench", vm: "Vm", addr: int, pages: int) -> int:
    """Have memory come to a device by whichever way its driver has; how many pages did."""
    try:
        vm.populate(addr, addr + pages * PAGE)
    except KernelError:
        pass
    else:
        if bench.device_pages(addr, pages):
            return bench.device_pages(addr, pages)
    was, bench.vm = bench.vm, vm
    bench.gpu_write(addr, pages)
    bench.vm = was
    return bench.device_pages(addr, pages)


def _reads(bench: "Bench", addr: int) -> bool:
    """Tell whether the GPU may read memory, or is refused."""
    try:
        bench.gpu_read(addr, _FEW)
    except KernelError:
        return False
    return True


def _device_memory(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench, _FEW)
    there = _bring(bench, bench.vm, addr, _FEW)
    bench.cpu_read(addr, _FEW)
    return there > 0


def _migrate_on_fault(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench)
    bench.gpu_write(addr)
    moved = bench.where(addr) == "device"
    bench.cpu_read(addr)
    return moved


def _explicit_populate(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench, _FEW)
    try:
        bench.vm.populate(addr, addr + _FEW * PAGE)
    except KernelError:
        return False
    finally:
        bench.gpu_read(addr, _FEW)
    return bench.device_pages(addr, _FEW) == _FEW


def _atomics(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench, _FEW)
    try:
        bench.gpu_atomic(addr)
    except KernelError:
        return False
    finally:
        bench.cpu_read(addr, _FEW)
    return True


def _eviction(lab: Lab) -> bool:
    bench = lab.bench(vram_bytes=_SMALL_VRAM)
    addrs = [written(bench) for _ in range(_MORE_THAN_FITS)]
    for addr in addrs:
        _bring(bench, bench.vm, addr, PMD_PAGES)
    first, last = (bench.device_pages(addr, PMD_PAGES) for addr in (addrs[0], addrs[-1]))
    for addr in addrs:
        bench.cpu_read(addr, PMD_PAGES)
    return first == 0 < last


def _runtime_pm(lab: Lab) -> bool:
    bench = lab.bench()
    if bench.driver.device.pm is None:
        return False
    addr = written(bench, _FEW)
    bench.gpu_write(addr, _FEW)
    close(bench)
    if falls_asleep(bench):
        return True
    # A reference for the life of the process, say.
    bench.machine.processes.remove(bench.process)
    bench.mm.mmput()
    bench.kernel.settle()
    return falls_asleep(bench)


def _multi_device_p2p(lab: Lab) -> bool:
    bench = lab.bench(hardware="dual-p2p", thp="never")
    addr = written(bench, _FEW)
    there = _bring(bench, bench.vms[1], addr, _FEW)
    before = bench.kernel.stats.migrated_to_ram_bytes
    if not _reads(bench, addr):
        return False
    direct = there > 0 and bench.kernel.stats.migrated_to_ram_bytes == before
    on_device = bench.device_pages(addr, _FEW)
    bench.cpu_read(addr, _FEW)
    return direct and on_device == _FEW


def _large_folios(lab: Lab) -> bool:
    bench = lab.bench(thp="always")
    addr = written(bench)
    if _bring(bench, bench.vm, addr, PMD_PAGES):
        whole = isinstance(bench.mm.page_table.entry(addr), PmdLeaf) and bench.where(addr) == "device"
    else:
        addr = written(bench)
        whole = bench.gpu_write(addr, PMD_PAGES) == 1
    bench.cpu_read(addr, PMD_PAGES)
    return whole


def _prefetch(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench, _FEW)
    # The hardware may ask for what nobody needs yet; whatever is answered, nobody is worse off.
    bench.fault(addr, ACCESS_PREFETCH)
    bench.cpu_read(addr, _FEW)
    try:
        bench.vm.populate(addr, addr + _FEW * PAGE)
    except KernelError:
        return False
    return bench.gpu_read(addr, _FEW) == 0


def _mixed_units(lab: Lab) -> bool:
    bench = lab.bench(thp="never")
    addr = written(bench)
    _bring(bench, bench.vm, addr, PMD_PAGES)
    hole = addr + _FEW // 2 * PAGE
    written_anew(bench, hole, _FEW // 4)
    # Pinned, so that they cannot follow the others.
    with pinned(bench, hole, _FEW // 4):
        served = _reads(bench, addr)
        kept = bench.device_pages(addr, _FEW)
    bench.cpu_read(addr, _FEW)
    return served and 0 < kept < _FEW


def _unplug(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench, _FEW)
    _bring(bench, bench.vm, addr, _FEW)
    try:
        bench.machine.unplug()
    except KernelError:
        return False
    finally:
        bench.cpu_read(addr, _FEW)
    return True


def _drm_gpusvm(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench, _FEW)
    bench.gpu_write(addr, _FEW)
    intervals, _ = subscriptions(bench)
    there = any(isinstance(each.ops, GpuSvmNotifier) and each.ops.range_find(addr, addr + PAGE) for each in intervals)
    bench.cpu_read(addr, _FEW)
    return there


def _drm_pagemap(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench, _FEW)
    _bring(bench, bench.vm, addr, _FEW)
    there = bench.where(addr) == "device" and isinstance(_pagemap_ops(bench, addr), PagemapDevOps)
    bench.cpu_read(addr, _FEW)
    return there


def _pagemap_ops(bench: "Bench", addr: int) -> object:
    pgmap = bench.memory.page_pgmap(bench.mm.page_table.entry(addr).pfn)
    assert pgmap is not None
    return pgmap.ops


def _pagemap_cache(lab: Lab) -> bool:
    bench = lab.bench()
    addr = written(bench, _FEW)
    _bring(bench, bench.vm, addr, _FEW)
    bench.cpu_read(addr, _FEW)
    kept = [each for each in bench.driver.pagemaps() if each.cache is not None]
    close(bench)
    there = any(each.cache is not None and each.cache.dpagemap is each and not each.refcount for each in kept)
    bench.memory.shrinkers.shrink_slab(len(kept))
    bench.kernel.settle()
    bench.vm = bench.machine.open(bench.process)
    bench.gpu_read(addr, _FEW)
    return there


USES: Final[Mapping[str, Use]] = {
    "device_memory": Use(
        sentence="memory that is populated, or touched by the GPU, comes to the device",
        ref="include/linux/memremap.h:MEMORY_DEVICE_PRIVATE",
        try_=_device_memory,
    ),
    "migrate_on_fault": Use(
        sentence="a block that the GPU writes for the first time comes to the device",
        ref="drivers/gpu/drm/xe/xe_svm.c:__xe_svm_handle_pagefault",
        try_=_migrate_on_fault,
    ),
    "explicit_populate": Use(
        sentence="all of what is populated comes to the device",
        ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_populate_mm",
        try_=_explicit_populate,
    ),
    "atomics": Use(
        sentence="an atomic of the GPU on private memory is done",
        ref="drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_atomic_range_fault",
        try_=_atomics,
    ),
    "eviction": Use(
        sentence="what comes last has room on a full device, and what came first has made it",
        ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram",
        try_=_eviction,
    ),
    "runtime_pm": Use(
        sentence="a device that nobody uses any more falls asleep",
        ref="drivers/base/power/runtime.c:rpm_suspend",
        try_=_runtime_pm,
    ),
    "multi_device_p2p": Use(
        sentence="a GPU reads what is in another's memory with a path between them, and none of it goes through RAM",
        ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem",
        try_=_multi_device_p2p,
    ),
    "large_folios": Use(
        sentence="a huge page is one on the device as well, or is mapped by one fault where none migrates",
        ref="mm/migrate_device.c:migrate_vma_insert_huge_pmd_page",
        try_=_large_folios,
    ),
    "prefetch": Use(
        sentence="the GPU has no fault on memory that was asked for before",
        ref="drivers/gpu/drm/xe/xe_vm.c:prefetch_ranges",
        try_=_prefetch,
        decisive=False,  # a migration that was asked for may map as well, as dmirror's and nouveau's do
    ),
    "mixed_units": Use(
        sentence="pages stay on the device when the GPU reads them with pages beside them that cannot come",
        ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages",
        try_=_mixed_units,
    ),
    "unplug": Use(
        sentence="a device goes whose memory is in use, and contents stay",
        ref="drivers/gpu/drm/drm_drv.c:drm_dev_unplug",
        try_=_unplug,
    ),
    "drm_gpusvm": Use(
        sentence="what the GPU has touched is a range under a notifier of drm_gpusvm",
        ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_find_or_insert",
        try_=_drm_gpusvm,
    ),
    "drm_pagemap": Use(
        sentence="the pages that have come to the device are drm_pagemap's, which brings them home",
        ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_pagemap_ops_get",
        try_=_drm_pagemap,
    ),
    "pagemap_cache": Use(
        sentence="a pagemap that the last user has left is kept, and is made anew after it was shrunk",
        ref="drivers/gpu/drm/drm_pagemap_util.c:drm_pagemap_get_from_cache",
        try_=_pagemap_cache,
    ),
}
"""One for each capability."""
