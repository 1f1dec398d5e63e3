"""A program says where its memory should be (AMDKFD_IOC_SVM, DRM_IOCTL_XE_MADVISE): the GPU's next fault goes by it.

The calls are two of those that a driver may offer of its own (`gpusvm_operations`): `prefer_ram`, and `prefer` with the
number of a device. A driver without them follows these rules by having none, and where memory is it decides alone.
After IGT's madvise-* and its sections with flips; what each driver means by its other attributes its own tests try.
"""

from errno import EINVAL
from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import frozen

from gpusvm.conformance.agreement import agree, errno_of
from gpusvm.conformance.areas import AREAS
from gpusvm.conformance.explored import explored
from gpusvm.conformance.family import every, family
from gpusvm.conformance.scene import Operations, operations
from gpusvm.conformance.small import BLOCK_PAGES, PAGE, VRAM_PAGES, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.mm.api import PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpusvm.testing import Bench

_NEEDS: Final = ("explicit_populate",)
_REF: Final = (
    "drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_best_restore_location; "
    "drivers/gpu/drm/xe/xe_vm_madvise.c:madvise_preferred_mem_loc; "
)
_NOBODY: Final = 7


@frozen
class _Advised:
    bench: "Bench"
    addr: int
    calls: Operations

    def prefer_ram(self, page: int = 0, pages: int = BLOCK_PAGES) -> None:
        self.calls.do("prefer_ram", [0, 0, page, pages])

    def prefer(self, device: int = 0, page: int = 0, pages: int = BLOCK_PAGES) -> None:
        more = len(self.calls.parameters["prefer"]) - 5
        self.calls.do("prefer", [0, 0, page, pages, device, *[1] * more])

    def forget(self) -> None:
        """Have the GPU fault on the whole block next, of which nothing is on the device then."""
        self.bench.cpu_read(self.addr, BLOCK_PAGES)
        for rights in (PROT_READ, PROT_READ | PROT_WRITE):
            self.bench.mm.mprotect(self.addr, BLOCK_PAGES * PAGE, rights)

    def on_device(self, page: int = 0, pages: int = BLOCK_PAGES) -> int:
        return self.bench.device_pages(self.addr + page * PAGE, pages)


def _advised(lab: Lab, kind: str = "small", *, vram_pages: int = VRAM_PAGES) -> "Iterator[_Advised]":
    """Yield a machine with a block of memory, if the driver takes advice."""
    bench = small(lab, vram_pages=vram_pages)
    addr = AREAS[kind](bench)
    calls = operations(lab, bench, addr)
    if calls is not None and {"prefer", "prefer_ram"} <= calls.names:
        yield _Advised(bench, addr, calls)


@family(
    "advice.flips.{kind}",
    every(kind=("small", "huge", "heap")),
    since="1.0",
    ref=f"{_REF}IGT tests/intel/xe_exec_system_allocator.c: malloc-madvise, free-madvise",
    profile="device-memory",
    requires=_NEEDS,
)
def test_flips(lab: Lab, kind: str) -> None:
    """Memory ({kind}) is, after each fault, where the program has said last, and holds what was written last."""
    for at in _advised(lab, kind):
        for _ in range(2):
            at.prefer_ram()
            at.forget()
            at.bench.gpu_write(at.addr, BLOCK_PAGES)
            assert not at.on_device(), "RAM is preferred"
            at.prefer()
            at.forget()
            at.bench.gpu_write(at.addr, BLOCK_PAGES)
            assert at.on_device() == BLOCK_PAGES, f"{at.on_device()} pages are on the device, which is preferred"
        agree(lab, at.bench, at.addr)


@check(
    "advice.part.only-there",
    since="1.0",
    ref=f"{_REF}IGT tests/intel/xe_exec_system_allocator.c: madvise-multi-vma",
    profile="device-memory",
    requires=_NEEDS,
)
def test_part(lab: Lab) -> None:
    """What is said of the middle of a block is heeded there, and nowhere else."""
    for at in _advised(lab):
        at.prefer()
        at.prefer_ram(4, 8)
        at.forget()
        at.bench.gpu_write(at.addr, BLOCK_PAGES)
        assert [at.on_device(0, 4), at.on_device(4, 8), at.on_device(12, 4)] == [4, 0, 4]
        agree(lab, at.bench, at.addr)


@check(
    "advice.again.keeps-mappings",
    since="1.0",
    ref=f"{_REF}IGT tests/intel/xe_exec_system_allocator.c: madvise-no-range-invalidate-same-attr",
    profile="device-memory",
    requires=_NEEDS,
)
def test_again(lab: Lab) -> None:
    """What is said once more, as it was, takes nothing away that the GPU has mapped."""
    for at in _advised(lab):
        at.prefer_ram()
        at.forget()
        at.bench.gpu_write(at.addr, BLOCK_PAGES)
        at.prefer_ram()
        mapped = at.bench.mapped_pages(at.addr, BLOCK_PAGES)
        assert mapped == BLOCK_PAGES, f"{mapped} pages are mapped still"
        faults = at.bench.gpu_write(at.addr, BLOCK_PAGES)
        assert not faults, f"{faults} faults, and nothing has changed"


@check(
    "advice.mapped.same-contents",
    since="1.0",
    ref=f"{_REF}IGT tests/intel/xe_exec_system_allocator.c: madvise-split-vma-with-mapping",
    profile="device-memory",
    requires=_NEEDS,
)
def test_mapped(lab: Lab) -> None:
    """What is said of a part of what the GPU has mapped changes no contents, and nobody's rights."""
    for at in _advised(lab):
        at.prefer()
        at.forget()
        at.bench.gpu_write(at.addr, BLOCK_PAGES)
        at.prefer_ram(0, BLOCK_PAGES // 2)
        agree(lab, at.bench, at.addr)


@check("advice.populate.goes-first", since="1.0", ref=_REF.removesuffix("; "), profile="device-memory", requires=_NEEDS)
def test_populate(lab: Lab) -> None:
    """What is brought to the device though RAM is preferred is there, and the same to all."""
    for at in _advised(lab):
        at.prefer_ram()
        at.bench.vm.populate(at.addr, at.addr + BLOCK_PAGES * PAGE)
        assert at.on_device() == BLOCK_PAGES
        at.bench.cpu_read(at.addr, 2)
        agree(lab, at.bench, at.addr)


@check(
    "advice.unknown-device.refused",
    since="1.0",
    ref="drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_check_attr; "
    "drivers/gpu/drm/xe/xe_vm_madvise.c:xe_madvise_details_init",
    profile="device-memory",
    requires=_NEEDS,
)
def test_unknown(lab: Lab) -> None:
    """A device that there is not is refused, and nothing at all with EINVAL; what was said before holds."""
    for at in _advised(lab):
        at.prefer_ram()
        assert errno_of(partial(at.prefer, _NOBODY)), "memory is to be on a device that there is not"
        assert errno_of(partial(at.prefer_ram, 0, 0)) == EINVAL
        at.forget()
        at.bench.gpu_write(at.addr, BLOCK_PAGES)
        assert not at.on_device(), "RAM is preferred"


@check(
    "advice.device.without-room",
    since="1.0",
    ref=f"{_REF}drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram",
    profile="device-memory",
    requires=_NEEDS,
)
def test_without_room(lab: Lab) -> None:
    """More memory than fits is preferred on the device: the GPU is served, and all of it is what was written."""
    for at in _advised(lab, "untouched", vram_pages=4 * BLOCK_PAGES):
        at.prefer()
        addrs = [at.addr, *(AREAS["small"](at.bench) for _ in range(6))]
        for addr in addrs:
            at.bench.gpu_write(addr, BLOCK_PAGES)
        at.bench.gpu_write(at.addr, BLOCK_PAGES)
        for addr in addrs:
            at.bench.cpu_read(addr, BLOCK_PAGES)


@check(
    "advice.together.all-get-on",
    since="1.0",
    ref=f"{_REF}mm/mmu_notifier.c:mmu_interval_read_retry",
    profile="device-memory",
    requires=_NEEDS,
)
def test_together(lab: Lab) -> None:
    """A GPU and a CPU that write memory while the program says again and again where it should be all get on."""
    for _ in _advised(lab):
        explored(
            lab,
            {
                "gpu": "gpu_write 0 2; gpu_write 1 2",
                "hand": "ioctl prefer_ram 0 4; populate 0 4",
                "cpu": "cpu_write 1 2",
            },
            schedules=6,
        )
