"""Two devices in one machine: what one has, the other and the CPUs find, whether there is a path between them or not.

That they can fail: nouveau as written uses what closing a file has freed (its `conformance.toml`).
"""

import numpy as np

from gpusvm.conformance.explored import explored
from gpusvm.conformance.scene import PAGE, written
from gpusvm.conformance.suite import Lab, check
from gpusvm.testing import Bench

_FEW = 16
_OWNER = "mm/hmm.c:hmm_vma_handle_pte"
_MIGRATE = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem"
_NEEDS = ("explicit_populate",)
_SETUP = "map 0 4; cpu_write 0 4"


def _on_second(lab: Lab, hardware: str) -> tuple[Bench, int]:
    bench = lab.bench(hardware=hardware, thp="never")
    addr = written(bench, _FEW)
    bench.vms[1].populate(addr, addr + _FEW * PAGE)
    pgmap = bench.memory.page_pgmap(bench.mm.page_table.entry(addr).pfn)
    assert pgmap in bench.machine.drivers[1].dev_pagemaps(), "it was brought to a device, and not to the one asked"
    bench.vm = bench.vms[1]
    bench.gpu_write(addr, _FEW)
    bench.vm = bench.vms[0]
    return bench, addr


def _keep_apart(bench: Bench, addr: int) -> None:
    """Look at what the devices, with no path between them, have mapped: none has another's memory. AssertionError."""
    memory, first = bench.memory, addr // PAGE
    for vm, driver in zip(bench.vms, bench.machine.drivers, strict=True):
        table = vm.page_table
        for page in np.flatnonzero(table.perms(first, first + _FEW)).tolist():
            pfn = int(table.pfns(first + page, first + page + 1)[0])
            pgmap = memory.page_pgmap(pfn) if memory.is_device_private(pfn) else None
            mine = pgmap is None or pgmap in driver.dev_pagemaps()
            assert mine, f"{driver.device.name} has page {page} mapped, which is in another device's memory"


@check("devices.write.in-turns", since="1.0", ref="mm/mmu_notifier.c:mn_itree_invalidate")
def test_in_turns(lab: Lab) -> None:
    """Two devices and a CPU that write the same pages in turns each see what the others wrote."""
    bench = lab.bench(hardware="dual", thp="never")
    addr = written(bench, _FEW)
    for _ in range(2):
        for vm in bench.vms:
            bench.vm = vm
            bench.gpu_read(addr, _FEW)
            bench.gpu_write(addr, _FEW)
        bench.cpu_read(addr, _FEW)
        bench.cpu_write(addr, _FEW)


@check("devices.unmap.both-lose", since="1.0", ref="mm/mmu_notifier.c:mn_itree_invalidate")
def test_unmap(lab: Lab) -> None:
    """Once memory is unmapped neither of two devices has it mapped."""
    bench = lab.bench(hardware="dual", thp="never")
    addr = written(bench, _FEW)
    for vm in bench.vms:
        bench.vm = vm
        bench.gpu_read(addr, _FEW)
    bench.mm.munmap(addr, _FEW * PAGE)
    for vm in bench.vms:
        bench.vm = vm
        assert bench.mapped_pages(addr, _FEW) == 0


@check("devices.close.other-goes-on", since="1.0", ref="mm/mmu_notifier.c:mmu_interval_notifier_remove")
def test_close(lab: Lab) -> None:
    """A device goes on to be served when its process closes another."""
    bench = lab.bench(hardware="dual", thp="never")
    addr = written(bench, _FEW)
    for vm in reversed(bench.vms):
        bench.vm = vm
        bench.gpu_write(addr, _FEW)
    bench.machine.close(bench.process, 1)
    bench.process.vms.pop(1)
    bench.cpu_write(addr, _FEW)
    bench.gpu_read(addr, _FEW)


@check("devices.foreign.read", since="1.0", profile="device-memory", requires=_NEEDS, ref=_OWNER)
def test_foreign_read(lab: Lab) -> None:
    """A device reads what another wrote into its own memory, with no path between them."""
    bench, addr = _on_second(lab, "dual")
    bench.gpu_read(addr, _FEW)
    _keep_apart(bench, addr)
    bench.cpu_read(addr, _FEW)


@check("devices.foreign.write", since="1.0", profile="device-memory", requires=_NEEDS, ref=_OWNER)
def test_foreign_write(lab: Lab) -> None:
    """What a device writes of memory that another has is what the other, and a CPU, read then."""
    bench, addr = _on_second(lab, "dual")
    bench.gpu_write(addr, _FEW)
    _keep_apart(bench, addr)
    bench.vm = bench.vms[1]
    bench.gpu_read(addr, _FEW)
    bench.cpu_read(addr, _FEW)


@check("devices.foreign.take", since="1.0", profile="device-memory", requires=_NEEDS, ref=_MIGRATE)
def test_foreign_take(lab: Lab) -> None:
    """A device to which memory is brought that another has holds it as it was written."""
    bench, addr = _on_second(lab, "dual")
    bench.vms[0].populate(addr, addr + _FEW * PAGE)
    bench.gpu_read(addr, _FEW)
    _keep_apart(bench, addr)
    bench.cpu_read(addr, _FEW)


@check("devices.foreign.closed", since="1.0", profile="device-memory", requires=_NEEDS, ref=_MIGRATE)
def test_foreign_closed(lab: Lab) -> None:
    """A device takes over what lies on another whose file is closed."""
    explored(
        lab, {"hand": "close@0", "two": "populate@1 0 4; gpu_write@1 0 2"}, setup=f"{_SETUP}; populate@0 0 4", devices=2
    )


@check("devices.peer.read", since="1.0", profile="multi-device", requires=_NEEDS, ref=_OWNER)
def test_peer_read(lab: Lab) -> None:
    """A device with a path to another reads, where it is, what the other has."""
    bench, addr = _on_second(lab, "dual-p2p")
    bench.gpu_read(addr, _FEW)
    assert bench.device_pages(addr, _FEW) == _FEW
    bench.cpu_read(addr, _FEW)


@check("devices.peer.home", since="1.0", profile="multi-device", requires=_NEEDS, ref="mm/memory.c:do_swap_page")
def test_peer_home(lab: Lab) -> None:
    """A page that goes home is mapped by neither the device that had it nor the one that mapped it there."""
    bench, addr = _on_second(lab, "dual-p2p")
    bench.gpu_read(addr, _FEW)
    bench.cpu_write(addr, _FEW)
    for vm in bench.vms:
        bench.vm = vm
        assert bench.mapped_pages(addr, _FEW) == 0
        bench.gpu_read(addr, _FEW)


@check("devices.peer.write-write", since="1.0", profile="multi-device", requires=_NEEDS, ref=_OWNER)
def test_peer_write(lab: Lab) -> None:
    """What two devices with a path between them write in turns both read."""
    bench, addr = _on_second(lab, "dual-p2p")
    for vm in [*bench.vms, *bench.vms]:
        bench.vm = vm
        bench.gpu_read(addr, _FEW)
        bench.gpu_write(addr, _FEW)
    bench.cpu_read(addr, _FEW)


@check("devices.together.write", since="1.0", ref="mm/mmu_notifier.c:mmu_interval_read_retry")
def test_together(lab: Lab) -> None:
    """Two devices and a CPU that write the same pages at the same time are all done."""
    explored(lab, {"one": "gpu_write@0 0 2", "two": "gpu_write@1 0 2", "cpu": "cpu_write 0 2"}, setup=_SETUP, devices=2)


@check("devices.together.take", since="1.0", profile="device-memory", requires=_NEEDS, ref=_MIGRATE)
def test_together_take(lab: Lab) -> None:
    """Two devices to which the same memory is brought at the same time are both answered, and nothing is lost."""
    explored(lab, {"one": "populate@0 0 4", "two": "populate@1 0 4", "cpu": "cpu_write 2 1"}, setup=_SETUP, devices=2)


@check("devices.together.atomic", since="1.0", profile="atomics", ref="mm/rmap.c:make_device_exclusive")
def test_together_atomic(lab: Lab) -> None:
    """Two devices that do an atomic on one page are both done."""
    explored(lab, {"one": "gpu_atomic@0 0 1", "two": "gpu_atomic@1 0 1"}, setup=_SETUP, devices=2)
