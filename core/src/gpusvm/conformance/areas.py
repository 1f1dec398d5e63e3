"""Lay out memory of every kind that a process can have: a block of each, with known contents.

The kinds are those that IGT's xe_exec_system_allocator allocates (malloc, mmap, shared, file, huge, untouched), and
those that a process comes to by what it does: swapped out, shared with a child, collapsed, on the device.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE
from gpusvm.errors import ModelError
from gpusvm.machine import Process
from gpusvm.mm.api import (
    MADV_COLLAPSE,
    MADV_HUGEPAGE,
    PROT_READ,
    PROT_WRITE,
    VM_HUGETLB,
    VM_MIXEDMAP,
    VM_SHARED,
)
from gpusvm.mm.swap import swap_out

if TYPE_CHECKING:
    from gpusvm.mm import MmStruct
    from gpusvm.testing import Bench

__all__ = ["AREAS", "DEVICE_AREAS", "Lay", "brought", "fork", "huge", "inserted", "written"]

Lay = Callable[["Bench"], int]
"""Lay out one block; its address."""

_RW: Final = PROT_READ | PROT_WRITE


def written(bench: "Bench", pages: int = BLOCK_PAGES) -> int:
    """Map small anonymous pages and write them from the CPU."""
    addr = bench.map(pages * PAGE)
    bench.cpu_write(addr, pages)
    return addr


def huge(bench: "Bench") -> int:
    """Map a block, ask for a huge page and write it."""
    addr = bench.map(BLOCK)
    bench.mm.madvise(addr, BLOCK, MADV_HUGEPAGE)
    bench.cpu_write(addr, BLOCK_PAGES)
    return addr


def brought(bench: "Bench", addr: int, pages: int = BLOCK_PAGES) -> int:
    """Have the driver bring pages to the device. ModelError if it leaves one behind that nothing keeps."""
    bench.vm.populate(addr, addr + pages * PAGE)
    there = bench.device_pages(addr, pages)
    if there != pages:
        raise ModelError(f"populate brought {there} of {pages} pages to the device, with nothing in their way")
    return addr


def _untouched(bench: "Bench") -> int:
    return bench.map(BLOCK)


def _every_other(bench: "Bench") -> int:
    addr = bench.map(BLOCK)
    for page in range(0, BLOCK_PAGES, 2):
        bench.cpu_write(addr + page * PAGE)
    return addr


def _zeros(bench: "Bench") -> int:
    addr = bench.map(BLOCK)
    bench.cpu_read(addr, BLOCK_PAGES)
    return addr


def _heap(bench: "Bench") -> int:
    # What malloc returns: in the middle of an area, and at the beginning of no block.
    addr = written(bench, 3 * BLOCK_PAGES)
    return addr + BLOCK + 4 * PAGE


def _shared(bench: "Bench") -> int:
    addr = bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, _RW, flags=VM_SHARED)
    bench.cpu_write(addr, BLOCK_PAGES)
    return addr


def _file(bench: "Bench", *, shared: bool = True, copied: int = BLOCK_PAGES) -> int:
    file = bench.memory.tmpfile(BLOCK_PAGES)
    for page in range(BLOCK_PAGES):
        file.pwrite(page)
    addr = bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, _RW, flags=VM_SHARED if shared else 0, file=file)
    file.close()
    bench.cpu_write(addr, copied)
    bench.cpu_read(addr, BLOCK_PAGES)
    return addr


def _private_file(bench: "Bench") -> int:
    return _file(bench, shared=False, copied=BLOCK_PAGES // 2)


def _hugetlb(bench: "Bench") -> int:
    bench.memory.set_nr_hugepages(2)
    addr = bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, _RW, flags=VM_HUGETLB)
    bench.cpu_write(addr, BLOCK_PAGES)
    return addr


def _swapped(bench: "Bench") -> int:
    addr = written(bench)
    for page in range(BLOCK_PAGES):
        swap_out(bench.memory, bench.mm, addr + page * PAGE)
    return addr


def _forked(bench: "Bench") -> int:
    addr = written(bench)
    fork(bench)
    return addr


def _collapsed(bench: "Bench") -> int:
    addr = written(bench)
    bench.mm.madvise(addr, BLOCK, MADV_COLLAPSE)
    return addr


def inserted(bench: "Bench", *, shared: bool = True) -> int:
    """Map pages of some driver's own into an area of its kind (VM_MIXEDMAP), zeroed, and write them; nothing else holds
    them then.
    """
    memory, addr = bench.memory, bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, _RW, flags=VM_MIXEDMAP | (VM_SHARED if shared else 0))
    with bench.mm.mmap_lock.write():
        vma = bench.mm.vma_lookup(addr)
        assert vma is not None
        for page in range(addr, addr + BLOCK, PAGE):
            pfn = memory.alloc_folio(0)
            assert pfn is not None
            memory.clear_folio(pfn, 1)
            memory.vm_insert_page(vma, page, pfn)
            memory.folio_put(pfn)
    bench.cpu_write(addr, BLOCK_PAGES)
    return addr


def fork(bench: "Bench", name: str = "child") -> "MmStruct":
    """Fork the process; the child lives as long as the machine."""
    process = Process(bench.mm.fork(name))
    bench.machine.processes.append(process)
    return process.mm


AREAS: Final[Mapping[str, Lay]] = {
    "small": written,
    "huge": huge,
    "untouched": _untouched,
    "every-other": _every_other,
    "zeros": _zeros,
    "heap": _heap,
    "shared": _shared,
    "file": _file,
    "private-file": _private_file,
    "hugetlb": _hugetlb,
    "swapped": _swapped,
    "forked": _forked,
    "collapsed": _collapsed,
}
"""Blocks in system memory, or nowhere, by what they are."""


def _device(bench: "Bench") -> int:
    return brought(bench, written(bench))


def _device_huge(bench: "Bench") -> int:
    return brought(bench, huge(bench))


def _device_half(bench: "Bench") -> int:
    addr = written(bench)
    brought(bench, addr, BLOCK_PAGES // 2)
    return addr


def _device_forked(bench: "Bench") -> int:
    addr = _device(bench)
    fork(bench)
    return addr


def _device_mapped(bench: "Bench") -> int:
    addr = _device(bench)
    bench.gpu_write(addr, BLOCK_PAGES)
    return addr


DEVICE_AREAS: Final[Mapping[str, Lay]] = {
    "device": _device,
    "device-huge": _device_huge,
    "device-half": _device_half,
    "device-forked": _device_forked,
    "device-mapped": _device_mapped,
}
"""Blocks that are on the device, whole or in part; for a driver that brings memory there when asked."""
