"""Drivers and cores that break one rule of the ops of drm_gpusvm and drm_pagemap each: that the checks of those ops can
fail is shown with them.

They are apart from the broken drivers that the whole suite is tried on: each is for the checks of `ops.*`.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from errno import EBUSY, EDOM, ENOMEM
from typing import Any, Final

import numpy as np
from attrs import evolve

from gpusvm.conformance.mutants.broken import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, gone
from gpusvm.drm.addr import PagemapAddrs
from gpusvm.drm.evict import evict_to_ram
from gpusvm.drm.zdd import folio_zdd, page_zdd
from gpusvm.errors import KernelError
from gpusvm.mm.api import MMU_NOTIFY_UNMAP

__all__ = ["OPS_BROKEN"]

_MEMORY: Final = "gpusvm_svmdev.memory:SvmdevMemory"
_DEVICE: Final = "gpusvm_svmdev.device:Svmdev"
_FILE: Final = "gpusvm_svmdev.file:SvmdevFile"
_MIGRATION: Final = "gpusvm.drm.migrate:_Migration"
_GPUSVM: Final = "gpusvm.drm.gpusvm:GpuSvm"
_PAGEMAP: Final = "gpusvm.drm.pagemap:DrmPagemap"
_CACHE: Final = "gpusvm.drm.pagemap_cache:PagemapCache"
_SHRINKER: Final = "gpusvm.drm.pagemap_cache:PagemapShrinker"

By = Callable[[Any], Any]


def _broken(id_: str, rule: str, driver: str, *swaps: tuple[str, By]) -> BrokenDriver:
    return BrokenDriver(id=id_, rule=rule, driver=driver, swaps=tuple(Swap(target, by) for target, by in swaps))


def _twice(guard: Any) -> Any:
    def call(*args: Any, **named: Any) -> Any:
        guard(*args, **named)
        return guard(*args, **named)

    return call


def _always_the_first(_guard: Any) -> Any:
    def populate_devmem_pfn(vram: Any, _devmem: Any, npages: int) -> Any:
        return np.arange(vram.first_pfn, vram.first_pfn + npages, dtype=np.int64)

    return populate_devmem_pfn


def _backwards_the_second_time(guard: Any) -> Any:
    asked: set[int] = set()

    def populate_devmem_pfn(vram: Any, devmem: Any, npages: int) -> Any:
        pfns = guard(vram, devmem, npages)
        again = id(devmem) in asked
        asked.add(id(devmem))
        return pfns[::-1].copy() if again else pfns

    return populate_devmem_pfn


def _odd_ones_out(guard: Any) -> Any:
    def copy_from_system(migration: Any, src: Any, dst: Any, order: Any, npages: int) -> None:
        if not npages:
            return
        guard(migration, src[::-1].copy(), dst[::-1].copy(), order[::-1].copy(), npages)

    return copy_from_system


def _sleeps(guard: Any) -> Any:
    def release(vram: Any, devmem: Any) -> None:
        vram.kernel.might_sleep()
        guard(vram, devmem)

    return release


def _with_one_address(guard: Any) -> Any:
    def device_map(*args: Any) -> Any:
        addrs, protos = guard(*args)
        return np.zeros_like(addrs), np.zeros_like(protos)

    return device_map


def _returns_something(guard: Any) -> Any:
    def populate_mm(*args: Any) -> int:
        guard(*args)
        return 1

    return populate_mm


def _needs_a_file(guard: Any) -> Any:
    def populate_mm(device: Any, dpagemap: Any, start: int, end: int, mm: Any, timeslice_ms: int) -> None:
        if not any(file.mm is mm for file in device.files.values()):
            raise KernelError(EDOM, "nobody has opened the device there")
        guard(device, dpagemap, start, end, mm, timeslice_ms)

    return populate_mm


def _another_errno(guard: Any) -> Any:
    def call(*args: Any, **named: Any) -> Any:
        try:
            return guard(*args, **named)
        except KernelError as error:
            raise KernelError(EDOM, "whatever it was") from error

    return call


def _no_errno(guard: Any) -> Any:
    def call(*args: Any, **named: Any) -> Any:
        with suppress(KernelError):
            return guard(*args, **named)

    return call


def _goes_on_refused(guard: Any) -> Any:
    def migrate(pipeline: Any, job: Any) -> bool:
        job.pagemap = pagemap = pipeline.place(job)
        if pagemap is not None:
            pagemap.populate_mm(job.unit.range.start, job.unit.range.end, job.vm.mm, 0)
        return True

    return migrate


def _removes_in_the_notifier(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        guard(file, gpusvm, notifier, mmu_range)
        for range_ in list(notifier.ranges(mmu_range.start, mmu_range.end)):
            notifier.remove(range_)

    return invalidate


def _keeps_the_mapping(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        for range_ in notifier.ranges(mmu_range.start, mmu_range.end):
            file.page_table.unmap(range_.start >> file._page_shift, range_.end >> file._page_shift)

    return invalidate


def _all_is_unmapped(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        guard(file, gpusvm, notifier, mmu_range)
        for range_ in notifier.ranges(mmu_range.start, mmu_range.end):
            range_.unmapped = mmu_range.event != MMU_NOTIFY_UNMAP

    return invalidate


def _whole_window(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        mmu_range.start, mmu_range.end = notifier.start, notifier.end
        guard(file, gpusvm, notifier, mmu_range)

    return invalidate


def _waits_anyway(_guard: Any) -> Any:
    def invalidate(notifier: Any, sub: Any, range_: Any, cur_seq: int) -> bool:
        gpusvm = notifier.gpusvm
        with gpusvm.notifier_lock.read():
            gpusvm.ops.invalidate(gpusvm, notifier, range_)
        gpusvm.memory.mmu_interval_set_seq(sub, cur_seq)
        return True

    return invalidate


def _smallest(guard: Any) -> Any:
    def chunk_size(gpusvm: Any, *_: Any) -> int:
        return int(gpusvm.chunk_sizes[-1])

    return chunk_size


def _largest(guard: Any) -> Any:
    def chunk_size(gpusvm: Any, *_: Any) -> int:
        return int(gpusvm.chunk_sizes[0])

    return chunk_size


def _all_can_migrate(guard: Any) -> Any:
    def insert(gpusvm: Any, notifier: Any, start: int, size: int, *, migrate_devmem: bool) -> Any:
        return guard(gpusvm, notifier, start, size, migrate_devmem=not migrate_devmem)

    return insert


def _leaves_its_notifier(guard: Any) -> Any:
    def remove(gpusvm: Any, range_: Any) -> None:
        range_.notifier.nr_ranges += 1
        guard(gpusvm, range_)
        range_.notifier.nr_ranges -= 1

    return remove


def _never_mixes(guard: Any) -> Any:
    def mixture(zdd: Any, pfns: Any, device: Any, ctx: Any) -> Any:
        return guard(zdd, pfns, device, evolve(ctx, allow_mixed=False, devmem_only=False))

    return mixture


def _one_more(guard: Any) -> Any:
    def scan(*args: Any) -> int:
        return (int(guard(*args)) + 1) % 6

    return scan


def _only_half(guard: Any) -> Any:
    def rows(pages: Any, pfns: Any, order: Any, device: Any, dpagemap: Any, direction: int, *sizes: int) -> None:
        del direction
        guard(pages, pfns[::-1].copy(), order, None if device is None else device[::-1], dpagemap, 2, *sizes)

    return rows


def _to_itself(_guard: Any) -> Any:
    def init(mapping: Any, dpagemap: Any, drm: Any, pfns: Any, order: Any, npages: int, direction: int) -> None:
        mapping._dpagemap, mapping._drm = dpagemap, dpagemap.drm
        addr, proto = dpagemap.ops.device_map(dpagemap, dpagemap.drm, pfns, order, direction)
        mapping.addrs = PagemapAddrs(pfns, addr, order, proto, direction, npages)

    return init


def _lets_the_cpu_map(guard: Any) -> Any:
    def copy(migration: Any, src: Any, *rest: Any) -> None:
        memory = migration._memory
        locked = [int(pfn) for pfn in src]
        for pfn in locked:
            memory.folio_unlock(pfn)
        try:
            guard(migration, src, *rest)
        finally:
            for pfn in locked:
                memory.folio_lock(pfn)

    return copy


def _release_early(guard: Any) -> Any:
    def folio_free(ops: Any, pfn: int, order: int) -> None:
        folio_zdd(ops.memory, pfn).devmem.release()
        guard(ops, pfn, order)

    return folio_free


def _one_reference_more(guard: Any) -> Any:
    def store(zdd: Any, memory: Any, pfn: Any) -> None:
        guard(zdd, memory, pfn)
        zdd.kref.get("folio")

    return store


def _never_none(guard: Any) -> Any:
    def get(cache: Any, holder: object) -> Any:
        found = cache.dpagemap
        if found is not None and found.refcount:
            cache.dpagemap = None
            return None
        return guard(cache, holder)

    return get


def _destroys_at_once(guard: Any) -> Any:
    def add(shrinker: Any, dpagemap: Any) -> None:
        dpagemap.cache.dpagemap = None
        dpagemap.destroy(in_atomic=True)

    return add


def _keeps_the_cache(guard: Any) -> Any:
    def scan(shrinker: Any, nr_to_scan: int) -> int:
        found = list(shrinker._dpagemaps)
        for dpagemap in found:
            dpagemap.destroy(in_atomic=False)
        return len(found)

    return scan


def _apart(guard: Any) -> Any:
    def acquire(owners: Any, peer: Any, _reaches: Any) -> Any:
        return guard(owners, peer, lambda *_: False)

    return acquire


def _unchecked(_guard: Any) -> Any:
    def populate_mm(dpagemap: Any, start: int, end: int, mm: Any, timeslice_ms: int) -> None:
        with mm.mmap_lock.read():
            dpagemap.ops.populate_mm(dpagemap, start, end, mm, timeslice_ms)

    return populate_mm


def _takes_the_device(_guard: Any) -> Any:
    return lambda gpusvm, _ctx: gpusvm.ops.device.owner


def _takes_another(_guard: Any) -> Any:
    return lambda gpusvm, _ctx: gpusvm.ops.vm.driver.peers[1].pagemaps()[0].pagemap.owner


def _refuses_what_is_there(guard: Any) -> Any:
    def move(migration: Any) -> int:
        needed = int(guard(migration))
        if not needed:
            raise KernelError(EBUSY, "it is there already")
        return needed

    return move


def _one_round(_guard: Any) -> Any:
    def get_pages(pipeline: Any, job: Any) -> bool:
        job.vm.svm.range_get_pages(job.unit.range, pipeline._ctx(job.scratch.flags))
        return True

    return get_pages


def _all_of_it(guard: Any) -> Any:
    def migrate_to_ram(memory: Any, vmf: Any) -> None:
        devmem = page_zdd(memory, vmf.page).devmem
        guard(memory, vmf)
        if not devmem.is_empty:
            with suppress(KernelError):
                evict_to_ram(devmem)

    return migrate_to_ram


def _no_fallback(_guard: Any) -> Any:
    def fall_back(_ram: Any, _order: int) -> None:
        raise KernelError(ENOMEM, "no folio so large")

    return fall_back


def _to_write(guard: Any) -> Any:
    def get_pages(gpusvm: Any, range_: Any, ctx: Any) -> None:
        guard(gpusvm, range_, evolve(ctx, read_only=False))

    return get_pages


def _one_by_one(_guard: Any) -> Any:
    def folios_free(ops: Any, pfns: Any) -> None:
        for pfn in pfns.tolist():
            ops.folio_free(pfn, 0)

    return folios_free


_ALL: Final = (
    # ---- the driver's half
    _broken(
        "pages-in-use",
        "it names pages that are in use",
        "svmdev",
        (f"{_MEMORY}.populate_devmem_pfn", _always_the_first),
    ),
    _broken(
        "other-pages",
        "it names its pages in another order when it is asked again",
        "svmdev",
        (f"{_MEMORY}.populate_devmem_pfn", _backwards_the_second_time),
    ),
    _broken("copies-elsewhere", "it fills nothing (copy_to_devmem)", "svmdev", (f"{_MEMORY}.copy_to_devmem", gone)),
    _broken("brings-nothing", "it brings nothing home (copy_to_ram)", "svmdev", (f"{_MEMORY}.copy_to_ram", gone)),
    _broken("release-sleeps", "it sleeps in devmem_release", "svmdev", (f"{_MEMORY}.devmem_release", _sleeps)),
    _broken(
        "one-address",
        "it gives all device pages one address, of system memory",
        "svmdev",
        (f"{_DEVICE}.device_map", _with_one_address),
    ),
    _broken(
        "populate-returns",
        "it returns something from populate_mm",
        "svmdev",
        (f"{_DEVICE}.populate_mm", _returns_something),
    ),
    _broken(
        "needs-a-file",
        "it populates for those only who have the device open",
        "svmdev",
        (f"{_DEVICE}.populate_mm", _needs_a_file),
    ),
    _broken(
        "refuses-faults",
        "it refuses a fault whose memory cannot come to the device",
        "svmdev",
        ("gpusvm_svmdev.faults:SvmdevFaults.migrate", _goes_on_refused),
    ),
    _broken(
        "own-errno",
        "it answers a request with an errno that it does not state",
        "svmdev",
        ("gpusvm_svmdev.commands:SvmdevCommands.populate", _another_errno),
    ),
    _broken(
        "removes-in-notifier",
        "it removes a range in a notifier",
        "svmdev",
        (f"{_FILE}.invalidate", _removes_in_the_notifier),
    ),
    _broken(
        "keeps-mapping",
        "it keeps what is mapped for DMA when that is invalidated",
        "svmdev",
        (f"{_FILE}.invalidate", _keeps_the_mapping),
    ),
    _broken(
        "marks-wrongly",
        "it marks ranges as unmapped that are not, and others not",
        "svmdev",
        (f"{_FILE}.invalidate", _all_is_unmapped),
    ),
    _broken(
        "whole-window", "it invalidates all of a notifier's window", "svmdev", (f"{_FILE}.invalidate", _whole_window)
    ),
    _broken(
        "no-collector", "it does not remove ranges whose memory was unmapped", "svmdev", (f"{_FILE}.collect", gone)
    ),
    _broken("no-driver-lock", "it names no lock for its ranges", "svmdev", (f"{_GPUSVM}.driver_set_lock", gone)),
    _broken(
        "unplug-unseen",
        "it answers a populate of a device that is gone with an errno of its own",
        "xe",
        ("gpusvm.drm.device:DrmDevice.dev_enter", _another_errno),
    ),
    # ---- core's half
    _broken(
        "asks-twice",
        "core asks for the pages of an allocation twice",
        "svmdev",
        (f"{_MIGRATION}._populate_pfns", _twice),
    ),
    _broken(
        "backwards",
        "core has pages copied from the last to the first, and no copy for holes",
        "svmdev",
        (f"{_MIGRATION}._copy_from_system", _odd_ones_out),
    ),
    _broken(
        "unlocked-copy",
        "core has pages copied that are not locked",
        "svmdev",
        (f"{_MIGRATION}._copy_from_system", _lets_the_cpu_map),
    ),
    _broken(
        "left-mapped",
        "core leaves pages mapped for DMA that it has had copied",
        "svmdev",
        ("gpusvm.drm.mapping:CopyMapping.unmap", gone),
    ),
    _broken(
        "no-fence",
        "core does not say what a copy has to wait for",
        "xe",
        ("gpusvm.drm.migrate:pre_migrate_fence", gone),
    ),
    _broken(
        "one-attempt", "core gives up an eviction after one attempt", "svmdev", ("gpusvm.drm.evict:_evict_once", gone)
    ),
    _broken(
        "no-sigbus",
        "core tells no CPU that its page cannot come home",
        "svmdev",
        ("gpusvm.drm.pagemap:migrate_to_ram", _no_errno),
    ),
    _broken(
        "any-allocation",
        "core takes home what is beside the allocation",
        "svmdev",
        ("gpusvm.drm.zdd:Zdd.covers", lambda _: lambda _zdd, pfns: np.ones(len(pfns), np.bool_)),
    ),
    _broken(
        "released-twice",
        "core releases an allocation with every page of it",
        "svmdev",
        ("gpusvm.drm.pagemap:PagemapDevOps.folio_free", _release_early),
        ("gpusvm.drm.pagemap:PagemapDevOps.folios_free", _one_by_one),
    ),
    _broken(
        "zdd-leaks",
        "core takes a reference too many on a zdd",
        "svmdev",
        ("gpusvm.drm.zdd:Zdd.store", _one_reference_more),
    ),
    _broken(
        "no-timeslice",
        "core lets CPUs take pages home whenever they like",
        "svmdev",
        ("gpusvm.drm.cpu_fault:timeslice_lasts", lambda _: lambda *_: False),
    ),
    _broken(
        "no-errno", "core does not tell that a populate has failed", "svmdev", (f"{_PAGEMAP}.populate_mm", _no_errno)
    ),
    _broken(
        "find-errno-changed",
        "core answers the lookup of a range with an errno of its own",
        "svmdev",
        (f"{_GPUSVM}.range_find_or_insert", _another_errno),
    ),
    _broken(
        "waits-anyway",
        "core invalidates under the notifier lock for reading, whoever may wait",
        "svmdev",
        ("gpusvm.drm.notifier:GpuSvmNotifier.invalidate", _waits_anyway),
    ),
    _broken(
        "smallest-chunks", "core makes ranges of the smallest chunk", "svmdev", (f"{_GPUSVM}._chunk_size", _smallest)
    ),
    _broken("largest-chunks", "core makes ranges of the largest chunk", "svmdev", (f"{_GPUSVM}._chunk_size", _largest)),
    _broken(
        "migrates-the-rest",
        "core lets those ranges migrate that must not, and no others",
        "svmdev",
        (f"{_GPUSVM}._range_insert", _all_can_migrate),
    ),
    _broken(
        "notifier-stays",
        "core keeps the notifier of a window without ranges",
        "svmdev",
        (f"{_GPUSVM}.range_remove", _leaves_its_notifier),
    ),
    _broken(
        "allows-mixtures",
        "core gets pages of any places together",
        "svmdev",
        ("gpusvm.drm.pages:_mixture", lambda _: lambda *_: None),
    ),
    _broken(
        "allows-no-mixture",
        "core gets no mixture of pages, and any system pages",
        "svmdev",
        ("gpusvm.drm.pages:_mixture", _never_mixes),
    ),
    _broken(
        "backwards-rows",
        "core maps a range from its last page to its first, from the device",
        "svmdev",
        ("gpusvm.drm.pages:_map_rows", _only_half),
    ),
    _broken(
        "get-errno-changed",
        "core answers get_pages with an errno of its own",
        "svmdev",
        (f"{_GPUSVM}.range_get_pages", _another_errno),
    ),
    _broken(
        "evict-errno-changed",
        "core answers range_evict with an errno of its own",
        "svmdev",
        (f"{_GPUSVM}.range_evict", _another_errno),
    ),
    _broken("evict-nothing", "core brings nothing home for range_evict", "svmdev", (f"{_GPUSVM}.range_evict", gone)),
    _broken(
        "scan-wrong",
        "core says wrongly where the memory of a range is",
        "svmdev",
        ("gpusvm.drm.gpusvm:scan_mm", _one_more),
    ),
    _broken(
        "anybodys-pages",
        "core gets device pages for those who take none",
        "svmdev",
        ("gpusvm.drm.pages:page_owner", _takes_the_device),
    ),
    _broken(
        "others-pages",
        "core gets pages of a device that there is no path to",
        "xe",
        ("gpusvm.drm.pages:page_owner", _takes_another),
    ),
    _broken(
        "direction-in",
        "core has sources mapped for both directions",
        "svmdev",
        ("gpusvm.drm.migrate:DMA_TO_DEVICE", lambda _: 0),
    ),
    _broken(
        "direction-out",
        "core has new pages mapped for both directions",
        "svmdev",
        ("gpusvm.drm.ram:DMA_FROM_DEVICE", lambda _: 0),
    ),
    _broken(
        "counts-nothing",
        "core counts nothing as moved",
        "svmdev",
        (f"{_MIGRATION}._count_moved", lambda _: lambda *_: 0),
    ),
    _broken(
        "refuses-there",
        "core refuses to populate what is there already",
        "svmdev",
        (f"{_MIGRATION}._move_entries", _refuses_what_is_there),
    ),
    _broken(
        "one-round",
        "it refuses a fault whose pages it does not get at once",
        "svmdev",
        ("gpusvm_svmdev.faults:SvmdevFaults.get_pages", _one_round),
    ),
    _broken(
        "all-of-it",
        "core takes all of an allocation home, whatever the area",
        "svmdev",
        ("gpusvm.drm.pagemap:migrate_to_ram", _all_of_it),
    ),
    _broken(
        "no-order-fallback",
        "core brings no large folio home without another as large",
        "svmdev",
        ("gpusvm.drm.ram:RamPages._fall_back", _no_fallback),
    ),
    _broken("always-writes", "core gets all pages for writing", "svmdev", (f"{_GPUSVM}.range_get_pages", _to_write)),
    _broken(
        "unmaps-nothing",
        "core does not have device pages unmapped",
        "svmdev",
        (f"{_DEVICE}.device_unmap", gone),
        ("gpusvm.drm.pages:GpuSvmPages.unmap", gone),
    ),
    _broken(
        "peer-maps-for-itself",
        "core has the target map its pages for itself, not for who copies",
        "svmdev",
        ("gpusvm.drm.mapping:PeerMapping.__init__", _to_itself),
    ),
    _broken(
        "owners-apart",
        "core gives every pagemap an owner of its own",
        "xe",
        ("gpusvm.drm.owner:OwnerList.acquire_owner", _apart),
    ),
    _broken("cache-makes-new", "core does not find a pagemap that is in use", "xe", (f"{_CACHE}.get", _never_none)),
    _broken(
        "cache-keeps-nothing",
        "core destroys a pagemap with its last reference",
        "xe",
        (f"{_SHRINKER}.add", _destroys_at_once),
    ),
    _broken(
        "shrinker-keeps",
        "core leaves what the shrinker has destroyed in the cache, and on the list",
        "xe",
        (f"{_SHRINKER}.scan_objects", _keeps_the_cache),
    ),
    _broken(
        "pagemap-unheld",
        "core does not hold the pagemap for its pages",
        "xe",
        ("gpusvm.drm.zdd:hold_dpagemap", gone),
        ("gpusvm.drm.zdd:drop_dpagemap", gone),
    ),
    _broken("destroys-twice", "core destroys a pagemap twice", "xe", (f"{_PAGEMAP}.destroy", _twice)),
    _broken(
        "mm-unchecked", "core populates for a process that has ended", "svmdev", (f"{_PAGEMAP}.populate_mm", _unchecked)
    ),
)


OPS_BROKEN: Final[Mapping[str, BrokenDriver]] = {broken.id: broken for broken in _ALL}
"""By id."""
