"""Where memory lies after it was asked for with nothing in the way."""

from contextlib import suppress

from gpusvm.conformance.scene import PAGE, pinned, written
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_WRITE
from gpusvm.errors import KernelError

_PAGES = 16


@check(
    "residency.mapped-in-place.populated",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="drivers/gpu/drm/xe/xe_svm.c:xe_svm_range_validate",
)
def test_mapped_in_place(lab: Lab) -> None:
    """What the GPU had to map in system memory, as somebody held it there, comes to the device when it is populated."""
    bench = lab.bench(thp="never")
    addr = written(bench, _PAGES)
    with pinned(bench, addr, _PAGES), suppress(KernelError):
        bench.fault(addr, ACCESS_WRITE)
    bench.vm.populate(addr, addr + _PAGES * PAGE)
    assert bench.device_pages(addr, _PAGES) == _PAGES
    bench.cpu_read(addr, _PAGES)


@check(
    "residency.peer.taken-directly",
    since="1.0",
    profile="multi-device",
    requires=("explicit_populate",),
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem",
)
def test_taken_directly(lab: Lab) -> None:
    """What lies on a device that another can copy from comes to that other without a way over system memory."""
    bench = lab.bench(hardware="dual-p2p", thp="never")
    one, two = bench.vms
    addr = written(bench, _PAGES)
    one.populate(addr, addr + _PAGES * PAGE)
    assert bench.device_pages(addr, _PAGES) == _PAGES
    before = bench.kernel.stats.migrated_to_ram_bytes
    two.populate(addr, addr + _PAGES * PAGE)
    assert bench.device_pages(addr, _PAGES) == _PAGES
    moved = bench.kernel.stats.migrated_to_ram_bytes - before
    assert not moved, f"{moved} bytes went home on their way"
    bench.cpu_read(addr, _PAGES)
