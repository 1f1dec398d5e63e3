"""What a GPU sees of a process's memory, and the process of what its GPU wrote."""

from gpusvm.conformance.scene import ELSEWHERE, PAGE, on_device, perms, written
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_WRITE
from gpusvm.gpu import WRITE
from gpusvm.mm.api import PROT_READ

_FAULT = "mm/hmm.c:hmm_range_fault"


@check("access.read.cpu-wrote", since="1.0", ref=_FAULT)
def test_read_what_the_cpu_wrote(lab: Lab) -> None:
    """What a CPU wrote before is what the GPU reads."""
    bench = lab.bench()
    addr = written(bench, 16)
    bench.gpu_read(addr, 16)
    assert bench.mapped_pages(addr, 16) == 16


@check("access.write.cpu-reads", since="1.0", ref=_FAULT)
def test_read_what_the_gpu_wrote(lab: Lab) -> None:
    """What the GPU wrote is what a CPU reads after it."""
    bench = lab.bench()
    addr = written(bench, 16)
    bench.gpu_write(addr, 16)
    bench.cpu_read(addr, 16)


@check("access.turns.both-see", since="1.0", ref=_FAULT)
def test_in_turns(lab: Lab) -> None:
    """A CPU and the GPU that write the same pages in turns each see what the other wrote last."""
    bench = lab.bench()
    addr = written(bench, 16)
    for _ in range(3):
        bench.gpu_read(addr, 16)
        bench.gpu_write(addr, 16)
        bench.cpu_read(addr, 16)
        bench.cpu_write(addr, 16)


@check("access.unmapped.refused", since="1.0", ref="mm/hmm.c:hmm_vma_walk_hole")
def test_unmapped(lab: Lab) -> None:
    """An access where nothing is mapped is not mapped."""
    bench = lab.bench()
    fault = bench.fault(ELSEWHERE, ACCESS_WRITE)
    assert fault.errno in lab.info.refusals.access.unmapped
    assert not bench.mapped_pages(ELSEWHERE, 1)


@check("access.read-only.not-written", since="1.0", ref="mm/hmm.c:hmm_vma_walk_test")
def test_read_only(lab: Lab) -> None:
    """The GPU cannot write where the process may only read."""
    bench = lab.bench()
    addr = written(bench, 16)
    bench.mm.mprotect(addr, 16 * PAGE, PROT_READ)
    assert bench.fault(addr, ACCESS_WRITE).errno in lab.info.refusals.access.forbidden
    assert not perms(bench, addr) & WRITE


@check("invalidate.munmap.gone", since="1.0", ref="mm/mmu_notifier.c:mn_itree_invalidate")
def test_munmap(lab: Lab) -> None:
    """Once memory is unmapped the GPU has none of it mapped."""
    bench = lab.bench()
    addr = written(bench, 16)
    bench.gpu_write(addr, 16)
    bench.mm.munmap(addr, 16 * PAGE)
    assert bench.mapped_pages(addr, 16) == 0
    assert bench.fault(addr, ACCESS_WRITE).errno in lab.info.refusals.access.unmapped


@check("invalidate.mprotect.write-gone", since="1.0", ref="mm/mprotect.c:change_protection")
def test_mprotect(lab: Lab) -> None:
    """Once memory is made read-only the GPU has none of it mapped for writing."""
    bench = lab.bench()
    addr = written(bench, 16)
    bench.gpu_write(addr, 16)
    bench.mm.mprotect(addr, 16 * PAGE, PROT_READ)
    assert not any(perms(bench, addr + page * PAGE) & WRITE for page in range(16))


@check(
    "populate.whole-block.on-device",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_populate_mm",
)
def test_populate(lab: Lab) -> None:
    """What is populated with nothing in the way is all in device memory, and its contents are what they were."""
    bench, addr = on_device(lab, 16)
    assert bench.device_pages(addr, 16) == 16
    bench.gpu_read(addr, 16)


@check(
    "home.cpu-touch.contents",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="mm/migrate_device.c:migrate_vma_pages",
)
def test_home(lab: Lab) -> None:
    """A CPU that touches device memory finds there what was written last, and the page is in system memory."""
    bench, addr = on_device(lab, 16)
    bench.gpu_write(addr, 16)
    bench.cpu_read(addr, 16)
    assert bench.device_pages(addr, 16) == 0


@check("atomic.served", since="1.0", profile="atomics", ref="mm/rmap.c:make_device_exclusive")
def test_atomic(lab: Lab) -> None:
    """An atomic of the GPU on private memory is done, and a CPU sees what it came to."""
    bench = lab.bench()
    addr = written(bench, 16)
    bench.gpu_atomic(addr)
    bench.cpu_read(addr)
