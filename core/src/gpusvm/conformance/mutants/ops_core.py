"""Cores that break one rule of the ops of drm_gpusvm and drm_pagemap each: what a driver may rely on."""

from contextlib import suppress
from errno import EBUSY, ENOMEM
from typing import Any, Final

import numpy as np
from attrs import evolve

from gpusvm.conformance.mutants.mutant import gone
from gpusvm.conformance.mutants.ops_breach import another_errno, broken
from gpusvm.drm.addr import PagemapAddrs
from gpusvm.drm.evict import evict_to_ram
from gpusvm.drm.zdd import folio_zdd, page_zdd
from gpusvm.errors import KernelError
from gpusvm.mm.api import VM_FAULT_SIGBUS

__all__ = ["CORES_HALF"]

_DEVICE: Final = "gpusvm_svmdev.device:Svmdev"
_MIGRATION: Final = "gpusvm.drm.migrate:_Migration"
_GPUSVM: Final = "gpusvm.drm.gpusvm:GpuSvm"
_PAGEMAP: Final = "gpusvm.drm.pagemap:DrmPagemap"
_CACHE: Final = "gpusvm.drm.pagemap_cache:PagemapCache"
_SHRINKER: Final = "gpusvm.drm.pagemap_cache:PagemapShrinker"


def _twice(guard: Any) -> Any:
    def call(*args: Any, **named: Any) -> Any:
        guard(*args, **named)
        return guard(*args, **named)

    return call


def _odd_ones_out(guard: Any) -> Any:
    def copy_from_system(migration: Any, src: Any, dst: Any, order: Any, npages: int) -> None:
        if not npages:
            return
        guard(migration, src[::-1].copy(), dst[::-1].copy(), order[::-1].copy(), npages)

    return copy_from_system


def _no_errno(guard: Any) -> Any:
    def call(*args: Any, **named: Any) -> Any:
        with suppress(KernelError):
            return guard(*args, **named)

    return call


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


def _in_nobodys_name(guard: Any) -> Any:
    def args(**named: Any) -> Any:
        return guard(**{**named, "pgmap_owner": None})

    return args


CORES_HALF: Final = (
    broken(
        "no-owner-named",
        "core migrates in nobody's name",
        "svmdev",
        ("gpusvm.drm.migrate:MigrateVma", _in_nobodys_name),
    ),
    broken(
        "home-sigbus",
        "core answers a CPU that wants a page home with SIGBUS",
        "svmdev",
        ("gpusvm.drm.pagemap:PagemapDevOps.migrate_to_ram", lambda _: lambda *_: VM_FAULT_SIGBUS),
    ),
    broken(
        "asks-twice",
        "core asks for the pages of an allocation twice",
        "svmdev",
        (f"{_MIGRATION}._populate_pfns", _twice),
    ),
    broken(
        "backwards",
        "core has pages copied from the last to the first, and no copy for holes",
        "svmdev",
        (f"{_MIGRATION}._copy_from_system", _odd_ones_out),
    ),
    broken(
        "unlocked-copy",
        "core has pages copied that are not locked",
        "svmdev",
        (f"{_MIGRATION}._copy_from_system", _lets_the_cpu_map),
    ),
    broken(
        "left-mapped",
        "core leaves pages mapped for DMA that it has had copied",
        "svmdev",
        ("gpusvm.drm.mapping:CopyMapping.unmap", gone),
    ),
    broken(
        "no-fence",
        "core does not say what a copy has to wait for",
        "xe",
        ("gpusvm.drm.migrate:pre_migrate_fence", gone),
    ),
    broken(
        "one-attempt", "core gives up an eviction after one attempt", "svmdev", ("gpusvm.drm.evict:_evict_once", gone)
    ),
    broken(
        "no-sigbus",
        "core tells no CPU that its page cannot come home",
        "svmdev",
        ("gpusvm.drm.pagemap:migrate_to_ram", _no_errno),
    ),
    broken(
        "any-allocation",
        "core takes home what is beside the allocation",
        "svmdev",
        ("gpusvm.drm.zdd:Zdd.covers", lambda _: lambda _zdd, pfns: np.ones(len(pfns), np.bool_)),
    ),
    broken(
        "released-twice",
        "core releases an allocation with every page of it",
        "svmdev",
        ("gpusvm.drm.pagemap:PagemapDevOps.folio_free", _release_early),
        ("gpusvm.drm.pagemap:PagemapDevOps.folios_free", _one_by_one),
    ),
    broken(
        "zdd-leaks",
        "core takes a reference too many on a zdd",
        "svmdev",
        ("gpusvm.drm.zdd:Zdd.store", _one_reference_more),
    ),
    broken(
        "no-timeslice",
        "core lets CPUs take pages home whenever they like",
        "svmdev",
        ("gpusvm.drm.cpu_fault:timeslice_lasts", lambda _: lambda *_: False),
    ),
    broken(
        "no-errno", "core does not tell that a populate has failed", "svmdev", (f"{_PAGEMAP}.populate_mm", _no_errno)
    ),
    broken(
        "find-errno-changed",
        "core answers the lookup of a range with an errno of its own",
        "svmdev",
        (f"{_GPUSVM}.range_find_or_insert", another_errno),
    ),
    broken(
        "waits-anyway",
        "core invalidates under the notifier lock for reading, whoever may wait",
        "svmdev",
        ("gpusvm.drm.notifier:GpuSvmNotifier.invalidate", _waits_anyway),
    ),
    broken(
        "smallest-chunks", "core makes ranges of the smallest chunk", "svmdev", (f"{_GPUSVM}._chunk_size", _smallest)
    ),
    broken("largest-chunks", "core makes ranges of the largest chunk", "svmdev", (f"{_GPUSVM}._chunk_size", _largest)),
    broken(
        "migrates-the-rest",
        "core lets those ranges migrate that must not, and no others",
        "svmdev",
        (f"{_GPUSVM}._range_insert", _all_can_migrate),
    ),
    broken(
        "notifier-stays",
        "core keeps the notifier of a window without ranges",
        "svmdev",
        (f"{_GPUSVM}.range_remove", _leaves_its_notifier),
    ),
    broken(
        "allows-mixtures",
        "core gets pages of any places together",
        "svmdev",
        ("gpusvm.drm.pages:_mixture", lambda _: lambda *_: None),
    ),
    broken(
        "allows-no-mixture",
        "core gets no mixture of pages, and any system pages",
        "svmdev",
        ("gpusvm.drm.pages:_mixture", _never_mixes),
    ),
    broken(
        "backwards-rows",
        "core maps a range from its last page to its first, from the device",
        "svmdev",
        ("gpusvm.drm.pages:_map_rows", _only_half),
    ),
    broken(
        "get-errno-changed",
        "core answers get_pages with an errno of its own",
        "svmdev",
        (f"{_GPUSVM}.range_get_pages", another_errno),
    ),
    broken(
        "evict-errno-changed",
        "core answers range_evict with an errno of its own",
        "svmdev",
        (f"{_GPUSVM}.range_evict", another_errno),
    ),
    broken("evict-nothing", "core brings nothing home for range_evict", "svmdev", (f"{_GPUSVM}.range_evict", gone)),
    broken(
        "scan-wrong",
        "core says wrongly where the memory of a range is",
        "svmdev",
        ("gpusvm.drm.gpusvm:scan_mm", _one_more),
    ),
    broken(
        "anybodys-pages",
        "core gets device pages for those who take none",
        "svmdev",
        ("gpusvm.drm.pages:page_owner", _takes_the_device),
    ),
    broken(
        "others-pages",
        "core gets pages of a device that there is no path to",
        "xe",
        ("gpusvm.drm.pages:page_owner", _takes_another),
    ),
    broken(
        "direction-in",
        "core has sources mapped for both directions",
        "svmdev",
        ("gpusvm.drm.migrate:DMA_TO_DEVICE", lambda _: 0),
    ),
    broken(
        "direction-out",
        "core has new pages mapped for both directions",
        "svmdev",
        ("gpusvm.drm.ram:DMA_FROM_DEVICE", lambda _: 0),
    ),
    broken(
        "counts-nothing",
        "core counts nothing as moved",
        "svmdev",
        (f"{_MIGRATION}._count_moved", lambda _: lambda *_: 0),
    ),
    broken(
        "refuses-there",
        "core refuses to populate what is there already",
        "svmdev",
        (f"{_MIGRATION}._move_entries", _refuses_what_is_there),
    ),
    broken(
        "one-round",
        "it refuses a fault whose pages it does not get at once",
        "svmdev",
        ("gpusvm_svmdev.faults:SvmdevFaults.get_pages", _one_round),
    ),
    broken(
        "all-of-it",
        "core takes all of an allocation home, whatever the area",
        "svmdev",
        ("gpusvm.drm.pagemap:migrate_to_ram", _all_of_it),
    ),
    broken(
        "no-order-fallback",
        "core brings no large folio home without another as large",
        "svmdev",
        ("gpusvm.drm.ram:RamPages._fall_back", _no_fallback),
    ),
    broken("always-writes", "core gets all pages for writing", "svmdev", (f"{_GPUSVM}.range_get_pages", _to_write)),
    broken(
        "unmaps-nothing",
        "core does not have device pages unmapped",
        "svmdev",
        (f"{_DEVICE}.device_unmap", gone),
        ("gpusvm.drm.pages:GpuSvmPages.unmap", gone),
    ),
    broken(
        "peer-maps-for-itself",
        "core has the target map its pages for itself, not for who copies",
        "svmdev",
        ("gpusvm.drm.mapping:PeerMapping.__init__", _to_itself),
    ),
    broken(
        "owners-apart",
        "core gives every pagemap an owner of its own",
        "xe",
        ("gpusvm.drm.owner:OwnerList.acquire_owner", _apart),
    ),
    broken("cache-makes-new", "core does not find a pagemap that is in use", "xe", (f"{_CACHE}.get", _never_none)),
    broken(
        "cache-keeps-nothing",
        "core destroys a pagemap with its last reference",
        "xe",
        (f"{_SHRINKER}.add", _destroys_at_once),
    ),
    broken(
        "shrinker-keeps",
        "core leaves what the shrinker has destroyed in the cache, and on the list",
        "xe",
        (f"{_SHRINKER}.scan_objects", _keeps_the_cache),
    ),
    broken(
        "pagemap-unheld",
        "core does not hold the pagemap for its pages",
        "xe",
        ("gpusvm.drm.zdd:hold_dpagemap", gone),
        ("gpusvm.drm.zdd:drop_dpagemap", gone),
    ),
    broken("destroys-twice", "core destroys a pagemap twice", "xe", (f"{_PAGEMAP}.destroy", _twice)),
    broken(
        "mm-unchecked", "core populates for a process that has ended", "svmdev", (f"{_PAGEMAP}.populate_mm", _unchecked)
    ),
)
