"""Memory of every kind, reached by the GPU in every way: IGT's allocations times how it comes to them.

xe_exec_system_allocator has 75 sections of that, with malloc, mmap, shared, file, huge and untouched memory. What they
compare is one word of each; here every page is read and written by both sides.
"""

from typing import TYPE_CHECKING

from gpusvm.conformance.agreement import agree, errno_of
from gpusvm.conformance.areas import AREAS, DEVICE_AREAS
from gpusvm.conformance.family import every, family
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_READ
from gpusvm.errors import errno_name
from gpusvm.testing import Fault

if TYPE_CHECKING:
    from gpusvm.testing import Bench


def _one_by_one(bench: "Bench", addr: int) -> None:
    bench.gpu_read(addr, BLOCK_PAGES)


def _backwards(bench: "Bench", addr: int) -> None:
    for page in reversed(range(BLOCK_PAGES)):
        bench.gpu_write(addr + page * PAGE)


def _at_once(bench: "Bench", addr: int) -> None:
    now = bench.kernel.now_ns
    faults = [Fault(addr + page * PAGE, ACCESS_READ, time_ns=now, sm=page) for page in range(BLOCK_PAGES)]
    errnos = {fault.errno for fault in bench.faults(faults)}
    assert errnos == {0}, f"faults raised together were answered with {errnos}, and the process may read all of it"


def _strides(bench: "Bench", addr: int) -> None:
    for first in range(4):
        for page in range(first, BLOCK_PAGES, 4):
            bench.gpu_write(addr + page * PAGE)


WAYS = {"read": _one_by_one, "write-backwards": _backwards, "read-at-once": _at_once, "write-strided": _strides}


@family(
    "allocation.reach.{kind}.{way}",
    every(kind=AREAS, way=("read-at-once", "write-strided")),
    since="1.0",
    ref="tools/testing/selftests/mm/hmm-tests.c; drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages",
)
def test_reach(lab: Lab, kind: str, way: str) -> None:
    """Whatever memory a process has, its GPU can read and write, and both sides see what was written last."""
    bench = small(lab)
    addr = AREAS[kind](bench)
    WAYS[way](bench, addr)
    agree(lab, bench, addr)


@family(
    "allocation.atomic.{kind}",
    every(kind=AREAS),
    since="1.0",
    profile="atomics",
    ref="mm/rmap.c:make_device_exclusive; drivers/gpu/drm/xe/xe_svm.c:__xe_svm_handle_pagefault",
)
def test_atomic(lab: Lab, kind: str) -> None:
    """An atomic on memory of any kind is done, and both sides see it, or refused, and nothing has changed."""
    bench = small(lab)
    addr = AREAS[kind](bench)
    stated = lab.info.refusals.atomic.unfit if kind in MAY_BE_REFUSED else frozenset()
    for page in range(addr, addr + BLOCK, 5 * PAGE):
        errno = bench.fault(page, ACCESS_ATOMIC).errno
        if errno:
            assert errno in stated, f"an atomic on memory of kind {kind} was refused with {errno_name(errno)}"
        else:
            bench.gpu_atomic(page)
        bench.cpu_read(page)
    agree(lab, bench, addr)


MAY_BE_REFUSED = frozenset({"shared", "file", "private-file", "hugetlb"})
"""Neither device-exclusive entries nor device memory are for pages that are not anonymous (make_device_exclusive)."""


@family(
    "allocation.populate.{kind}",
    every(kind=AREAS),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem; mm/migrate_device.c:migrate_vma_setup",
)
def test_populate(lab: Lab, kind: str) -> None:
    """Whatever a program asks to have brought, nothing of it is lost; what cannot move is used where it is."""
    bench = small(lab)
    addr = AREAS[kind](bench)
    errno = errno_of(lambda: bench.vm.populate(addr, addr + BLOCK))
    moved = bench.device_pages(addr, BLOCK_PAGES)
    if kind in STAYS:
        assert not moved, f"{moved} pages of kind {kind} came to the device, where there is no place for such pages"
    assert not errno or not moved, f"the call was refused with errno {errno}, and has moved {moved} pages"
    bench.gpu_read(addr, BLOCK_PAGES)
    agree(lab, bench, addr)


STAYS = frozenset({"shared", "file", "hugetlb"})
"""What is not private, or in huge pages of a pool, has no device pages (migrate_vma_collect, migrate_vma_setup)."""


@family(
    "allocation.reach.{kind}.{way}",
    every(kind=DEVICE_AREAS, way=WAYS),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages; mm/hmm.c:hmm_vma_handle_pte",
)
def test_reach_device(lab: Lab, kind: str, way: str) -> None:
    """Memory that is on the device, or partly there, is the same memory to both sides as if it had never moved."""
    bench = small(lab)
    addr = DEVICE_AREAS[kind](bench)
    WAYS[way](bench, addr)
    agree(lab, bench, addr)
