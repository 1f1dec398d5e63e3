"""Each mutant of drm_gpusvm and drm_pagemap shows by its own trigger, and nothing of it is left afterwards."""

import pytest
from gpusvm.check import Checker
from gpusvm.conformance.mutants import load
from gpusvm.errors import CpuSignal, KernelError, ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm.api import MADV_DONTNEED, PROT_READ, PROT_WRITE

PAGE = 4096
BASE = 512  # a page at a PMD boundary


def gs_01(make):
    m = make()
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    m.kernel.arm("dma.map")
    assert m.files[0].fault(BASE * PAGE, migrate=False)[-1] == "get(-14)"
    return m


def gs_03(make):
    m = make(devices=2)
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    assert m.files[1].fault(BASE * PAGE)[-1] == "map(rw,10*16)"
    m.mm.madvise((BASE + 8) * PAGE, 8 * PAGE, MADV_DONTNEED)
    m.write(BASE + 8, 8)
    assert m.files[0].fault(BASE * PAGE, migrate=False)[-1] == "get(-95)"
    assert m.devices[1].maps == 0, "what was mapped before the error stays mapped"
    return m


def gs_04(make):
    m = make(iommu=True)
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    m.kernel.arm("dma.link")
    assert m.files[0].fault(BASE * PAGE, migrate=False)[-1] == "get(-14)"
    return m


def gs_05(make):
    m = make(thp="always", notifier_size=64 << 10)
    m.mmap(BASE, 512)
    m.write(BASE, 512)
    m.files[0].fault((BASE + 17) * PAGE, migrate=False)
    return m


def gs_06(make):
    m = make()
    m.mmap(BASE, 1)
    m.write(BASE)
    walk = m.memory.hmm_range_fault_unlocked_timeout
    begun = m.kernel.now_ns

    def disturbed(hmm_range, timeout_ns):
        walk(hmm_range, timeout_ns)
        if m.kernel.now_ns < begun + 3_000_000_000:
            m.mm.mprotect(BASE * PAGE, PAGE, PROT_READ)
            m.mm.mprotect(BASE * PAGE, PAGE, PROT_READ | PROT_WRITE)
            m.kernel.sleep_ns(300_000_000)

    m.memory.hmm_range_fault_unlocked_timeout = disturbed
    assert m.files[0].fault(BASE * PAGE, migrate=False)[-1] == "get(-16)", "get_pages goes on after its time"
    return m


def gs_08(make):
    m = make()
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    m.files[0].fault(BASE * PAGE)
    m.mm.mprotect(BASE * PAGE, 16 * PAGE, PROT_READ)
    answer = m.files[0].fault(BASE * PAGE, migrate=False, owner=None, read_only=True)[-1]
    assert answer == "map(ro,s0*16)", "device pages for somebody who cannot reach them"
    return m


def gs_10(make):
    m = make()
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    assert m.files[0].populate(BASE * PAGE, 16, timeslice_ms=5) == 0
    before = m.kernel.now_ns
    m.read(BASE)
    assert m.kernel.now_ns - before >= 5_000_000, "the CPU has not waited for the timeslice"
    return m


def gs_12(make):
    m = make()
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    m.files[0].fault(BASE * PAGE, migrate=False)
    m.kernel.arm("gpusvm.evict")
    assert m.files[0].range_evict(BASE * PAGE) == -12
    return m


def gs_16(make):
    m = make()
    m.mmap(BASE, 1)
    m.write(BASE)
    walk = m.memory.hmm_range_fault_unlocked_timeout

    def freed_since(hmm_range, timeout_ns):
        walk(hmm_range, timeout_ns)
        m.memory.hmm_range_fault_unlocked_timeout = walk
        m.mm.madvise(BASE * PAGE, PAGE, MADV_DONTNEED)

    m.memory.hmm_range_fault_unlocked_timeout = freed_since
    checker = Checker(m.memory, collect=True).attach()
    m.files[0].fault(BASE * PAGE, migrate=False)
    checker.detach()
    assert checker.findings == [], "a page is mapped that is free"
    return m


def dp_01(make):
    m = make(kernel=Kernel(mode="explored"))
    m.mmap(BASE, 1)
    m.write(BASE)
    assert m.files[0].populate(BASE * PAGE, 1) == 0
    device_pfn = m.devices[0].pgmap.start_pfn
    finalize = m.memory.migrate_vma_finalize

    def held(args):
        m.memory.folio_get(device_pfn)
        m.memory.migrate_vma_finalize = finalize
        finalize(args)

    m.memory.migrate_vma_finalize = held
    m.read(BASE)
    m.write(BASE)
    with pytest.raises(KernelError, match="device pages are left after 3 attempts"):
        m.devices[0].evict()
    m.memory.folio_put(device_pfn)
    m.read(BASE)
    return m


def dp_02(make):
    m = make()
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    assert m.files[0].populate(BASE * PAGE, 16) == 0
    m.devices[0].fail["to_ram"] = 1
    with pytest.raises(CpuSignal, match="SIGBUS"):
        m.read(BASE)
    return m


def first_of_two_copies_fails(make):
    m = make(devices=2)
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    assert m.files[0].populate(BASE * PAGE, 8) == 0
    m.devices[0].fail["to_ram"] = 1
    assert m.files[1].populate(BASE * PAGE, 16) == -5
    m.read(BASE, 16)
    return m


def wrong(m):
    return {mismatch.found for mismatch in m.memory.contents.mismatches}


def migrated_into_fresh_memory(make, **how):
    m = make(kernel=Kernel(mode="explored"), **how)
    m.devices[-1].clears = True
    m.mmap(BASE, 4)
    m.write(BASE, 3)
    return m


def dp_06(make):
    m = migrated_into_fresh_memory(make)
    assert m.files[0].populate(BASE * PAGE, 4) == 0
    m.kernel.sleep_ns(5_000_000)
    m.read(BASE, 4)
    assert wrong(m) == set(), "the clear came after the copy"
    return m


def dp_06_from_a_peer(make):
    m = migrated_into_fresh_memory(make, devices=2)
    assert m.files[0].populate(BASE * PAGE, 4) == 0
    assert m.files[1].populate(BASE * PAGE, 4) == 0
    m.kernel.sleep_ns(5_000_000)
    m.read(BASE, 4)
    assert wrong(m) == set(), "the clear came after the copy"
    return m


def dp_06_holes(make):
    m = make(kernel=Kernel(mode="explored"))
    m.mmap(BASE, 4)
    m.write(BASE, 4)
    assert m.files[0].populate(BASE * PAGE, 4) == 0
    m.mm.madvise(BASE * PAGE, 4 * PAGE, MADV_DONTNEED)  # what was in the device's pages before
    m.devices[0].clears = True
    assert m.files[0].populate(BASE * PAGE, 4) == 0
    m.read(BASE, 4)
    assert wrong(m) == set(), "the page came before its clear"
    return m


def outlived(make, *, driver_goes):
    """Bring home the last pages that lead to a pagemap, which its driver, or that and its device, has put before."""
    m = make(kernel=Kernel(mode="explored"))
    device = m.devices.pop()

    def destroy(dpagemap, _atomic):
        dpagemap.drm.dev_exit(dpagemap.drm.dev_enter())  # as xe_pagemap_destroy_work
        m.kernel.free(dpagemap)

    device.destroy = destroy
    m.mmap(BASE, 4)
    m.write(BASE, 4)
    assert m.files[0].populate(BASE * PAGE, 4) == 0
    m.files.pop().close()
    device.dpagemap.put()
    if driver_goes:
        device.drm.put()
    m.read(BASE, 4)
    m.kernel.settle()
    m.memory.memunmap_pages(device.pgmap)
    if not driver_goes:
        device.drm.put()
    return m


def dp_10(make):
    return outlived(make, driver_goes=True)


def dp_11(make):
    return outlived(make, driver_goes=False)


def dp_14(make):
    m = make(devices=2)
    m.mmap(BASE, 16)
    m.write(BASE, 16)
    assert m.files[0].populate(BASE * PAGE, 16) == 0
    assert m.files[1].populate(BASE * PAGE, 16) == 0, "memory of a peer does not move"
    return m


TRIGGERS = {
    "GS-01": (gs_01, "ledger: not given back\n  'dma' held by 'tiny0': 15"),
    "GS-03": (gs_03, "what was mapped before the error stays mapped\nassert 8 == 0"),
    "GS-04": (gs_04, "ledger: not given back\n  'iova' held by 'tiny0': 1"),
    "GS-05": (gs_05, "get_pages maps 512 pages for a range of 16"),
    "GS-06": (gs_06, "get_pages goes on after its time\n"),
    "GS-08": (gs_08, "device pages for somebody who cannot reach them\n"),
    "GS-10": (gs_10, "the CPU has not waited for the timeslice\n"),
    "GS-12": (gs_12, "ledger: not given back\n  'mm_users'"),
    "GS-16": (gs_16, "a page is mapped that is free\n"),
    "DP-01": (dp_01, "device page 0x10000 is copied to RAM again, where its contents are already"),
    "DP-02": (dp_02, "ledger: not given back\n  'dma' held by 'tiny0': 16"),
    "DP-03": (first_of_two_copies_fails, "folio"),
    "DP-04": (first_of_two_copies_fails, "a destination in Zone(0x0-0x2001, RAM) is not locked"),
    "DP-06": (dp_06, "the clear came after the copy\nassert {0} == set()"),
    "DP-06 from a peer": (dp_06_from_a_peer, "the clear came after the copy\nassert {0} == set()"),
    "DP-06 holes": (dp_06_holes, "the page came before its clear\nassert {"),
    "DP-10": (dp_10, "use after free: task 'main' reads .dma of <DrmDevice 'tiny0'> at drm/mapping.py:"),
    "DP-10b": (dp_10, "use after free: task 'main' reads .dev_exit of <DrmDevice 'tiny0'> at drm/test_drm_mutants.py:"),
    "DP-11": (dp_11, "use after free: task 'main' reads .pagemap of <DrmPagemap of 'tiny0'> at drm/cpu_fault.py:"),
    "DP-14": (dp_14, "memory of a peer does not move\nassert -16 == 0"),
}


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_mutant_shows_by_its_trigger_and_leaves_nothing(machine, name):
    program, message = TRIGGERS[name]
    mutant_id = name.split(" ")[0]
    make = lambda **how: machine(finish=False, **how)  # noqa: E731
    program(make).finish()
    with load(mutant_id).active(), pytest.raises((ModelError, AssertionError)) as raised:
        program(make).finish()
    assert str(raised.value).startswith(message)
    program(make).finish()
