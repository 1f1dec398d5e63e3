"""Ranges, notifiers and pages of drm_gpusvm."""

from contextlib import suppress
from errno import EBUSY, EFAULT, EIO, ETIME

import numpy as np
import pytest
from gpusvm.drm import DMA_TO_DEVICE, SCAN_SYSTEM, GpuSvm, GpuSvmCtx, GpuSvmRange
from gpusvm.drm.pages import segments
from gpusvm.errors import CpuSignal, KernelError, LockdepError, ModelError
from gpusvm.kernel import Kernel, SeededChoices
from gpusvm.mm.api import (
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_VALID,
    MMU_NOTIFY_CLEAR,
    VM_PFNMAP,
    MmuNotifierRange,
)

PAGE = 4096
CTX = GpuSvmCtx(devmem_possible=True)


def find(file, page, ctx=CTX, low=0, high=1 << 47):
    with file.lock:
        return file.svm.range_find_or_insert(page * PAGE, low, high, ctx)


def bounds(range_):
    return range_.start // PAGE, range_.end // PAGE


# --- the choice of a chunk


def test_the_largest_chunk_within_area_window_and_gpu_range(machine):
    m = machine()
    m.mmap(0x200, 1024)
    assert bounds(find(m.files[0], 0x3FF)) == (0x200, 0x400)
    m.mmap(0x801, 40)
    assert bounds(find(m.files[0], 0x801)) == (0x801, 0x802)
    assert bounds(find(m.files[0], 0x81F)) == (0x810, 0x820)
    m.mmap(0xA00, 512)
    assert bounds(find(m.files[0], 0xA20, low=0xA10 * PAGE)) == (0xA20, 0xA30)
    assert bounds(find(m.files[0], 0xA3F, high=0xA40 * PAGE)) == (0xA30, 0xA40)
    assert bounds(find(m.files[0], 0xA4E, high=0xA4F * PAGE)) == (0xA4E, 0xA4F)
    with pytest.raises(KernelError) as caught:
        find(m.files[0], 0xA05, low=0xA06 * PAGE)
    assert str(caught.value) == "-EINVAL: no chunk at 0xa05000 fits into [0xa06000, 0xc00000)"


def test_a_chunk_does_not_overlap_another_range(machine):
    m = machine()
    m.mmap(0x210, 16)
    assert bounds(find(m.files[0], 0x211)) == (0x210, 0x220)
    m.mmap(0x200, 16)
    m.mmap(0x220, 480)
    assert bounds(find(m.files[0], 0x3FF)) == (0x3F0, 0x400)
    assert bounds(find(m.files[0], 0x215)) == (0x210, 0x220)


def test_up_to_the_threshold_every_page_must_be_present(machine):
    m = machine()
    m.mmap(0x200, 1024)
    ctx = GpuSvmCtx(check_pages_threshold=64 << 10, devmem_possible=True)
    assert bounds(find(m.files[0], 0x234, ctx)) == (0x200, 0x400)  # larger: may have holes
    m.mmap(0x800, 48)
    m.write(0x800, 15)
    assert bounds(find(m.files[0], 0x803, ctx)) == (0x803, 0x804)  # the smallest chunk may have them, too
    m.write(0x810, 16)
    assert bounds(find(m.files[0], 0x812, ctx)) == (0x810, 0x820)


def test_pages_on_a_device_count_as_present_for_its_owner(machine):
    m = machine()
    m.mmap(0x800, 32)
    m.write(0x800, 32)
    device, file = m.devices[0], m.files[0]
    file.populate(0x800 * PAGE, 32)
    mine = GpuSvmCtx(check_pages_threshold=64 << 10, device_private_page_owner=device.owner)
    assert bounds(find(file, 0x812, GpuSvmCtx(check_pages_threshold=64 << 10))) == (0x812, 0x813)
    assert bounds(find(file, 0x802, mine)) == (0x800, 0x810)


def test_a_chunk_above_a_pmd_stands_for_one(machine):
    m = machine()
    svm = GpuSvm(
        m.kernel, m.memory, "big", m.mm, drm=m.devices[0].drm, mm_start=0, mm_range=1 << 47, notifier_size=1 << 29,
        ops=m.files[0], chunk_sizes=(1 << 30, 2 << 20, 4096),
    )  # fmt: skip
    assert svm.chunk_sizes == (2 << 20, 4096)
    svm.fini()
    with pytest.raises(ValueError, match=r"chunk_sizes must descend, got \(4096, 2097152\)"):
        GpuSvm(
            m.kernel, m.memory, "bad", m.mm, drm=m.devices[0].drm, mm_start=0, mm_range=1 << 47,
            notifier_size=1 << 29, ops=m.files[0], chunk_sizes=(4096, 2 << 20),
        )  # fmt: skip


# --- errors of find_or_insert


def test_errors_of_a_lookup(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.mm.find_vma(0x100 * PAGE).flags |= VM_PFNMAP
    with pytest.raises(KernelError) as caught:
        find(m.files[0], 0x100)
    assert caught.value.errno == EIO
    assert str(caught.value) == "-EIO: the VMA at 0x100000 maps registers"
    m.mm.find_vma(0x100 * PAGE).flags &= ~VM_PFNMAP
    m.kernel.arm("gpusvm.range")
    with pytest.raises(KernelError) as caught:
        find(m.files[0], 0x100)
    assert str(caught.value) == "-ENOMEM: injected at gpusvm.range"
    assert m.kernel.gauges.now["notifier"] == 0


def test_a_dead_mm_is_efault(machine):
    m = machine(finish=False)
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    range_ = find(m.files[0], 0x100)
    m.mm.exit()
    for call, args in (
        (m.files[0].svm.range_get_pages, (range_, CTX)),
        (m.files[0].svm.range_evict, (range_,)),
        (m.devices[0].dpagemap.populate_mm, (0, PAGE, m.mm, 0)),
    ):
        with pytest.raises(KernelError) as caught:
            call(*args)
        assert caught.value.errno == EFAULT
        assert str(caught.value) == "-EFAULT: the mm is gone"
    with pytest.raises(KernelError) as caught:
        find(m.files[0], 0x100)
    assert caught.value.errno == EFAULT
    m.files[0].close()


def test_the_drivers_lock_is_checked(machine):
    m = machine()
    m.mmap(0x100, 16)
    with pytest.raises(LockdepError) as caught:
        m.files[0].svm.range_find_or_insert(0x100 * PAGE, 0, 1 << 47, CTX)
    assert str(caught.value) == "svm0: ranges are looked up or removed without the driver's lock 'tiny_svm'"


# --- ranges


def test_a_range_lives_as_long_as_somebody_holds_it(machine):
    m = machine()
    m.mmap(0x100, 32)
    file = m.files[0]
    freed = []
    file.range_free = freed.append
    file.range_alloc = Tagged
    range_ = find(file, 0x100).get()
    assert isinstance(range_, Tagged)
    assert range_.tag == "of svm0"
    with file.lock:
        file.svm.range_remove(range_)
    assert freed == []
    assert m.kernel.gauges.now["range"] == 1
    range_.put()
    assert freed == [range_]
    with pytest.raises(ModelError) as caught:
        range_.put()
    assert str(caught.value) == "<Tagged [0x100000, 0x110000)>: one reference too many is put"


class Tagged(GpuSvmRange):
    __slots__ = ("tag",)

    def __init__(self, gpusvm):
        self.tag = f"of {gpusvm.name}"


def test_ranges_are_found_in_order_and_by_overlap(machine):
    m = machine(notifier_size=4 << 20)
    m.mmap(0x210, 3000)
    file = m.files[0]
    pages = [0x9F0, 0x211, 0x400, 0x3F0, 0x600, 0x230]
    for page in pages:
        find(file, page)
    expected = [(0x210, 0x220), (0x230, 0x240), (0x3F0, 0x400), (0x400, 0x600), (0x600, 0x800), (0x9F0, 0xA00)]
    # 0x9f0 came before its block could be one chunk: it is one, [0x800, 0xa00)
    expected[-1] = (0x800, 0xA00)
    assert [bounds(r) for r in file.svm.ranges(0, 1 << 47)] == expected
    assert [bounds(r) for r in file.svm.ranges(0x21F * PAGE, 0x401 * PAGE)] == expected[:4]
    assert file.svm.range_find(0x240 * PAGE, 0x3F0 * PAGE) is None
    assert bounds(file.svm.range_find(0x220 * PAGE, 0x400 * PAGE)) == (0x230, 0x240)
    assert file.svm.has_mapping(0x3FF * PAGE, 0x400 * PAGE)
    assert not file.svm.has_mapping(0xA00 * PAGE, 0x10000 * PAGE)
    assert [n.nr_ranges for n in file.svm.notifiers()] == [3, 2, 1]
    assert file.svm.find_vma_start(0, 1 << 47) == 0x210 * PAGE
    assert file.svm.find_vma_start(0x100000000, 1 << 47) is None


# --- pages


def words(*entries):
    return np.array([pfn | HMM_PFN_VALID | order << HMM_PFN_ORDER_SHIFT for pfn, order in entries], np.uint64)


def test_segments_end_with_the_cpu_mapping_and_with_the_array():
    def cut(array):
        pfns, order = segments(array)
        return list(zip(pfns.tolist(), order.tolist(), strict=True))

    assert cut(words((7, 0), (9, 0))) == [(7, 0), (9, 0)]
    assert cut(words(*((512 + i, 9) for i in range(512)))) == [(512, 9)]
    assert cut(words(*((512 + 160 + i, 9) for i in range(16)))) == [(672, 4)]
    # 352 pages of a PMD that begin at its page 160, then a small one
    assert cut(words(*((512 + 160 + i, 9) for i in range(352)), (5, 0))) == [(672, 8), (928, 6), (992, 5), (5, 0)]
    assert cut(words((5, 0), (6, 0), *((64 + i, 2) for i in range(4)), (1, 0))) == [(5, 0), (6, 0), (64, 2), (1, 0)]
    assert cut(words(*((64 + i, 9) for i in range(3)))) == [(64, 1), (66, 0)]


def test_an_iommu_makes_system_pages_consecutive(machine):
    m = machine(iommu=True)
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    file.fault(0x100 * PAGE, migrate=False, read_only=True)
    addrs = file.find(0x100 * PAGE).pages.dma_addr
    assert np.diff(addrs.addr.astype(np.int64)).tolist() == [PAGE] * 15
    assert addrs.direction == DMA_TO_DEVICE
    assert m.kernel.ledger.count("iova") == 1
    file.populate(0x108 * PAGE, 8)
    assert m.kernel.ledger.count("iova") == 0
    file.fault(0x100 * PAGE, migrate=False, allow_mixed=True)
    assert (m.kernel.ledger.count("iova"), m.kernel.ledger.count("dma")) == (1, 8)
    m.read(0x100)
    m.read(0x10F)
    assert (m.kernel.ledger.count("iova"), m.kernel.ledger.count("dma")) == (0, 0)
    file.populate(0x100 * PAGE, 8)
    file.fault(0x100 * PAGE, migrate=False, allow_mixed=True)  # page 0 on the device: no reservation is tried
    assert (m.kernel.ledger.count("iova"), m.kernel.ledger.count("dma")) == (0, 8)


@pytest.mark.parametrize("site", ["dma.map", "dma.link", "dma.sync"])
def test_a_failed_mapping_leaves_nothing_mapped(machine, site):
    m = machine(iommu=site != "dma.map")
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    m.kernel.arm(site)
    assert m.files[0].fault(0x100 * PAGE, migrate=False) == ["rng(100,110,mig)", "get(-14)"]
    assert m.kernel.ledger.count("dma") == m.kernel.ledger.count("iova") == 0
    m.kernel.arm(site)
    assert m.files[0].populate(0x100 * PAGE, 16) == -EFAULT
    assert m.kernel.ledger.count("dma") == m.kernel.ledger.count("iova") == 0
    m.read(0x100, 16)


def test_a_failed_sync_unmaps_what_else_was_mapped(machine):
    m = machine(iommu=True)
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file, device = m.files[0], m.devices[0]
    file.fault(0x100 * PAGE, migrate=False)
    file.populate(0x108 * PAGE, 8)
    m.kernel.arm("dma.sync")
    assert file.fault(0x100 * PAGE, migrate=False, allow_mixed=True) == ["rng(100,110,mig)", "get(-14)"]
    assert (m.kernel.ledger.count("iova"), m.kernel.ledger.count("dma"), device.maps) == (0, 0, 0)
    assert file.fault(0x100 * PAGE, migrate=False, allow_mixed=True)[-1] == "map(rw,s0*8,00*8)"


def test_a_failed_device_map_unmaps_the_system_pages(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    m.files[0].populate(0x100 * PAGE, 8)

    def device_map(*args):
        raise KernelError(EFAULT, "no path")

    m.devices[0].device_map = device_map
    assert m.files[0].fault(0x100 * PAGE, migrate=False, allow_mixed=True)[1:] == ["get(-14)"]
    assert m.kernel.ledger.count("dma") == 0
    del m.devices[0].device_map


def test_a_range_that_is_invalidated_again_and_again_is_ebusy(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    range_ = find(file, 0x100)
    real = m.memory.hmm_range_fault_unlocked_timeout

    def fault_then_invalidate(hmm_range, timeout_ns):
        real(hmm_range, timeout_ns)
        m.kernel.sleep_ns(100_000_000)
        window = MmuNotifierRange(m.mm, range_.start, range_.end, MMU_NOTIFY_CLEAR)
        m.memory.invalidate_range_start(window)
        m.memory.invalidate_range_end(window)

    m.memory.hmm_range_fault_unlocked_timeout = fault_then_invalidate
    begun_ns = m.kernel.now_ns
    with pytest.raises(KernelError) as caught:
        file.svm.range_get_pages(range_, CTX)
    assert caught.value.errno == EBUSY
    assert str(caught.value) == "-EBUSY: [0x100000, 0x110000) is invalidated again and again"
    assert m.kernel.now_ns - begun_ns == 1_000_000_000  # not a jiffy more: time_after_eq

    def never(hmm_range, timeout_ns):
        raise KernelError(EBUSY)

    m.memory.hmm_range_fault_unlocked_timeout = never
    with pytest.raises(KernelError) as caught:
        file.svm.range_evict(range_)
    assert caught.value.errno == ETIME


def test_a_look_that_is_made_void_is_repeated_with_all_its_time(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    range_ = find(file, 0x100)
    real, looks = m.memory.hmm_range_fault_unlocked_timeout, []

    def look(hmm_range, timeout_ns):
        looks.append(timeout_ns)
        real(hmm_range, timeout_ns)
        if len(looks) < 4:
            m.kernel.sleep_ns(900_000_000)
            window = MmuNotifierRange(m.mm, range_.start, range_.end, MMU_NOTIFY_CLEAR)
            m.memory.invalidate_range_start(window)
            m.memory.invalidate_range_end(window)

    m.memory.hmm_range_fault_unlocked_timeout = look
    device = m.devices[0]
    assert file.svm.scan_mm(range_, device.owner, device.pgmap) == SCAN_SYSTEM
    assert looks == [1_000_000_000] * 4


def test_a_non_blockable_invalidation_is_refused_and_changes_nothing(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = m.files[0]
    file.fault(0x100 * PAGE, migrate=False)
    file.events.clear()
    notifier = file.find(0x100 * PAGE).notifier
    window = MmuNotifierRange(m.mm, 0x100 * PAGE, 0x110 * PAGE, MMU_NOTIFY_CLEAR, flags=0)
    assert not notifier.invalidate(notifier.notifier, window, notifier.notifier.invalidate_seq + 2)
    assert file.events == []
    assert file.find(0x100 * PAGE).pages.has_dma_mapping


def test_unmap_pages_in_a_notifier_needs_the_lock(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.files[0].fault(0x100 * PAGE, migrate=False)
    range_ = m.files[0].find(0x100 * PAGE)
    with pytest.raises(ModelError) as caught:
        m.files[0].svm.range_unmap_pages(range_, GpuSvmCtx(in_notifier=True))
    assert str(caught.value) == "svm0: unmap_pages in a notifier without the notifier lock held for writing"
    m.files[0].svm.range_unmap_pages(range_, GpuSvmCtx())
    assert not m.files[0].svm.range_pages_valid(range_)


@pytest.mark.parametrize("seed", range(6))
def test_faults_evictions_and_cpu_touches_race(machine, seed):
    """Whatever the order, every read finds the last write, and nothing is left over."""
    m = machine(
        kernel=Kernel(mode="explored", choices=SeededChoices(seed)), devices=2, thp="always" if seed % 2 else "never"
    )
    m.mmap(0x200, 512)
    m.write(0x200, 64)
    a, b = m.files

    def gpu(file):
        for i in range(3):
            file.fault((0x200 + 20 * i) * PAGE, retry=True, check_pages_threshold=64 << 10)

    def cpu():
        for page in (0x203, 0x21F, 0x200, 0x230):
            m.read(page)
            m.write(page + 1)

    def evictor():
        for _ in range(4):
            for device in m.devices:
                if device.allocations:
                    with suppress(KernelError):  # EBUSY: somebody else has a page
                        device.evict()
            m.kernel.cond_resched()

    tasks = [
        m.kernel.spawn(gpu, a, name="gpu0"),
        m.kernel.spawn(gpu, b, name="gpu1"),
        m.kernel.spawn(cpu, name="cpu"),
        m.kernel.spawn(evictor, name="evictor"),
    ]
    for task in tasks:
        task.join()
    m.read(0x200, 512)
    assert (m.devices[0].in_use, m.devices[1].in_use) == (0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_races_with_failures_and_unmaps_leave_nothing_behind(machine, seed):
    """Allocations and mappings fail, memory is unmapped under everybody's feet; in the end all is accounted for."""
    kernel = Kernel(mode="explored", choices=SeededChoices(seed))
    m = machine(
        kernel=kernel,
        devices=2,
        thp="always" if seed % 2 else "never",
        iommu=seed % 3 == 0,
        same_owner=seed % 5 != 0,
        quirk="fixed",
    )
    m.mmap(0x200, 1024)
    m.write(0x200, 64)

    def gpu(file):
        for i in range(4):
            file.fault((0x200 + 90 * i) * PAGE, retry=True, allow_mixed=bool(i & 1), target=m.devices[(seed + i) % 2])

    def cpu():
        for page in (0x203, 0x21F, 0x405, 0x200, 0x230):
            with suppress(CpuSignal):
                m.read(page)
            with suppress(CpuSignal):
                m.write(page + 1)

    def unmapper():
        m.mm.munmap(0x210 * PAGE, 3 * PAGE)
        kernel.cond_resched()
        m.mm.munmap(0x5F0 * PAGE, 16 * PAGE)

    def evictor():
        for _ in range(4):
            for device in m.devices:
                if device.allocations:
                    with suppress(KernelError):
                        device.evict()
            kernel.cond_resched()

    sites = (
        "alloc.folio",
        "alloc.pages",
        "dma.map",
        "dma.link",
        "dma.sync",
        "gpusvm.range",
        "gpusvm.notifier",
        "pagemap.zdd",
    )
    kernel.explore_failures(sites, failures_max=6)
    tasks = [
        kernel.spawn(gpu, m.files[0], name="gpu0"),
        kernel.spawn(gpu, m.files[1], name="gpu1"),
        kernel.spawn(cpu, name="cpu"),
        kernel.spawn(unmapper, name="unmapper"),
        kernel.spawn(evictor, name="evictor"),
    ]
    for task in tasks:
        task.join()
    assert kernel.injector.failed
    kernel.explore_failures((), failures_max=0)
    m.read(0x220, 0x3D0)
