"""Mistakes with what memory holds and where it is: on the way to a device, there, and on the way home."""

import errno
from typing import Any, Final

import numpy as np

from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, gone, instead
from gpusvm.errors import KernelError

__all__ = ["MEMORY"]

_IN: Final = "gpusvm_svmdev.memory:SvmdevMemory.copy_to_devmem"
_HOME: Final = "gpusvm_svmdev.memory:SvmdevMemory.copy_to_ram"
_POPULATE: Final = "gpusvm_svmdev.device:Svmdev.populate_mm"


def _copied(memory: Any, to: Any, source: Any, orders: Any) -> None:
    from gpusvm.drm import copy_contents

    copy_contents(memory, to, source, orders, int(np.left_shift(1, orders.astype(np.int64)).sum()))


def _first_in(vram: Any, device_pfns: Any, addrs: Any, _fence: Any) -> None:
    _copied(vram.memory, device_pfns[:1], addrs.pfns[:1], addrs.order[:1])


def _first_home(vram: Any, device_pfns: Any, addrs: Any, _fence: Any) -> None:
    _copied(vram.memory, addrs.pfns[:1], device_pfns[:1], addrs.order[:1])


def _shifted_in(vram: Any, device_pfns: Any, addrs: Any, _fence: Any) -> None:
    # The next page's contents in each.
    source = addrs.pfns if addrs.order.any() else np.roll(addrs.pfns, 1)
    _copied(vram.memory, device_pfns, source, addrs.order)


def _densely_in(vram: Any, device_pfns: Any, addrs: Any, _fence: Any) -> None:
    # The place on the device counted by source page, and not by address: right where there are no holes.
    first = int(device_pfns[0]) if len(device_pfns) else 0
    places = first + np.concatenate([[0], np.cumsum(np.left_shift(1, addrs.order[:-1].astype(np.int64)))])
    _copied(vram.memory, places.astype(np.int64), addrs.pfns, addrs.order)


def _half(guard: Any) -> Any:
    def populate(device: Any, dpagemap: Any, start: int, end: int, mm: Any, timeslice_ms: int) -> None:
        page = device.memory.geometry.page_size
        middle = max(start + page, (start + end) // 2 & -page)
        guard(device, dpagemap, start, middle, mm, timeslice_ms)

    return populate


def _fails_when_done(guard: Any) -> Any:
    def populate(device: Any, dpagemap: Any, start: int, end: int, mm: Any, timeslice_ms: int) -> None:
        guard(device, dpagemap, start, end, mm, timeslice_ms)
        raise KernelError(errno.EIO, "the count of what moved is taken for an error")

    return populate


def _wrong_errno(guard: Any) -> Any:
    def populate(device: Any, dpagemap: Any, start: int, end: int, mm: Any, timeslice_ms: int) -> None:
        try:
            guard(device, dpagemap, start, end, mm, timeslice_ms)
        except KernelError as error:
            raise KernelError(errno.EPIPE, str(error)) from error

    return populate


def _small_only(guard: Any) -> Any:
    def alloc(pool: Any, order: int) -> Any:
        return None if order else guard(pool, order)

    return alloc


def _not_asked_for(_flag: int) -> int:
    return 0


def _nobodys(_gpusvm: Any, _ctx: Any) -> None:
    return None


def _held_or_not(memory: Any, src: int, dst: int, is_fault: bool) -> int:
    zone = memory.pages.zone(src)
    others = int(zone.m_refcount[src - zone.base]) - int(zone.m_mapcount[src - zone.base]) - 1 - is_fault
    if others > 0:
        memory.folios_put(np.full(others, src, np.int64))
    return 0


def _home_on_close(guard: Any) -> Any:
    # What the file's memory is taken for ends with the file, whoever has it mapped.
    def close(file: Any) -> None:
        guard(file)
        for bo in file.device.vram.bos:
            first = file.device.vram.first_pfn + bo.first
            file.memory.clear_pages(np.arange(first, first + bo.npages))

    return close


def _asks_for_all_or_none(guard: Any) -> Any:
    def populate(commands: Any, start: int, end: int) -> int:
        before = commands.device.kernel.stats.migrated_to_device_bytes
        commands.populate(start, (end - start) >> 12)
        return int(commands.device.kernel.stats.migrated_to_device_bytes - before)

    return populate


def _whole_allocations(guard: Any) -> Any:
    # A page that comes home takes the contents of all that came with it to zero: there is one allocation.
    def copy_to_ram(vram: Any, device_pfns: Any, addrs: Any, fence: Any) -> None:
        guard(vram, device_pfns, addrs, fence)
        bo = vram.bo_of(int(device_pfns[0]))
        first = vram.first_pfn + bo.first
        vram.memory.clear_pages(np.arange(first, first + bo.npages))

    return copy_to_ram


MEMORY: Final = (
    BrokenDriver(
        id="copies-nothing-in",
        rule="it brings pages to the device without what they hold",
        driver="svmdev",
        swaps=(Swap(_IN, gone),),
    ),
    BrokenDriver(
        id="copies-first-in",
        rule="it copies the first page of what goes to the device",
        driver="svmdev",
        swaps=(Swap(_IN, instead(_first_in)),),
    ),
    BrokenDriver(
        id="copies-first-home",
        rule="it copies the first page of what comes home",
        driver="svmdev",
        swaps=(Swap(_HOME, instead(_first_home)),),
    ),
    BrokenDriver(
        id="copies-shifted",
        rule="it copies small pages to the device into the place of their neighbours",
        driver="svmdev",
        swaps=(Swap(_IN, instead(_shifted_in)),),
    ),
    BrokenDriver(
        id="copies-densely",
        rule="it counts the places on the device by the pages that there are, and forgets holes",
        driver="svmdev",
        swaps=(Swap(_IN, instead(_densely_in)),),
    ),
    BrokenDriver(
        id="frees-by-allocation",
        rule="it takes an allocation for free when a page of it has come home",
        driver="svmdev",
        swaps=(Swap(_HOME, _whole_allocations),),
    ),
    BrokenDriver(
        id="frees-on-close",
        rule="it clears its memory when a file is closed, whoever has pages there",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.file:SvmdevFile.close", _home_on_close),),
    ),
    BrokenDriver(
        id="populates-half",
        rule="it brings the first half of what it is asked for",
        driver="svmdev",
        swaps=(Swap(_POPULATE, _half),),
    ),
    BrokenDriver(
        id="populate-fails-when-done",
        rule="it answers a populate that is done with an error",
        driver="svmdev",
        swaps=(Swap(_POPULATE, _fails_when_done),),
    ),
    BrokenDriver(
        id="populate-wrong-errno",
        rule="it answers every populate that cannot be done with one errno, which it does not state",
        driver="svmdev",
        swaps=(Swap(_POPULATE, _wrong_errno),),
    ),
    BrokenDriver(
        id="populates-all-or-nothing",
        rule="it refuses a populate of which a part cannot be done",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.commands:SvmdevCommands.populate_blocks", _asks_for_all_or_none),),
    ),
    BrokenDriver(
        id="no-large-folios",
        rule="it declares large folios, and has none on the device",
        driver="nouveau",
        swaps=(Swap("gpusvm.driver.chunk:ChunkPool.alloc", _small_only),),
    ),
    BrokenDriver(
        id="splits-huge-pages",
        rule="it declares large folios, and brings them to the device in small pages",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.dmem:MIGRATE_VMA_SELECT_COMPOUND", _not_asked_for),),
    ),
    BrokenDriver(
        id="forgets-holes",
        rule="it gives a page that was not there what the page on the device held before",
        driver="nouveau",
        swaps=(Swap("gpusvm.mm.memory_manager:MemoryManager.clear_pages", gone),),
    ),
    BrokenDriver(
        id="keeps-free-pages",
        rule="it does not take pages of device memory back",
        driver="nouveau",
        swaps=(
            Swap("gpusvm_nouveau.dmem:NouveauDmem.folio_free", gone),
            Swap("gpusvm_nouveau.dmem:NouveauDmem.folios_free", gone),
        ),
    ),
    BrokenDriver(
        id="owner-of-nothing",
        rule="it names no owner when it gets pages, so that its own come home",
        driver="svmdev",
        swaps=(Swap("gpusvm.drm.pages:page_owner", instead(_nobodys)),),
    ),
    BrokenDriver(
        id="takes-what-is-held",
        rule="it moves pages that others hold",
        driver="nouveau",
        swaps=(Swap("gpusvm.mm.migrate_device:folio_migrate_mapping", instead(_held_or_not)),),
    ),
)
"""Drivers that lose or misplace memory."""
