"""Pages that are a driver's own: of several devices in one range, and of no range at all."""

from errno import EFAULT, EINVAL

import numpy as np
import pytest
from gpusvm.drm import DMA_BIDIRECTIONAL, DRM_INTERCONNECT_DRIVER, GpuSvm, GpuSvmCtx, GpuSvmPages, GpuSvmRange
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import MMU_NOTIFY_UNMAP, MmuNotifierRange

PAGE = 4096
WHOLE = 1 << 47
IN_NOTIFIER = GpuSvmCtx(in_notifier=True)


class SharedRange(GpuSvmRange):
    """Be a range with pages for each device, side by side."""


class SharedFile:
    """Mirror one mm for several devices by one gpusvm."""

    notifier_alloc = None
    notifier_free = None

    def __init__(self, m):
        self.devices = m.devices
        self.freed = 0
        self.lock = m.kernel.mutex("shared_svm")
        self.svm = GpuSvm(
            m.kernel,
            m.memory,
            "shared",
            m.mm,
            mm_range=WHOLE,
            notifier_size=512 << 20,
            ops=self,
            chunk_sizes=(64 << 10, 4 << 10),
        )
        self.svm.driver_set_lock(self.lock)
        self.ctx = GpuSvmCtx(device_private_page_owner=self.devices[0].owner, allow_mixed=True)

    def range_alloc(self, gpusvm):
        range_ = SharedRange()
        range_.of = [GpuSvmPages(device.drm) for device in self.devices]
        return range_

    def range_free(self, range_):
        for pages in range_.of:
            range_.gpusvm.free_pages(pages)
        self.freed += 1

    def invalidate(self, gpusvm, notifier, mmu_range):
        for range_ in notifier.ranges(mmu_range.start, mmu_range.end):
            for pages in range_.of:
                gpusvm.unmap_pages(pages, IN_NOTIFIER)
            if mmu_range.event == MMU_NOTIFY_UNMAP:
                gpusvm.range_set_unmapped(range_, mmu_range, pages=range_.of)

    def find(self, page):
        with self.lock:
            return self.svm.range_find_or_insert(page * PAGE, 0, WHOLE, self.ctx)

    def get(self, range_, number):
        self.svm.get_pages(range_.of[number], range_.notifier.notifier, range_.start, range_.end, self.ctx)

    def valid(self, range_):
        return [self.svm.pages_valid(pages) for pages in range_.of]

    def close(self):
        with self.lock:
            self.svm.fini()


@pytest.fixture
def shared(machine):
    m = machine(devices=2)
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    file = SharedFile(m)
    yield m, file
    file.close()


def test_each_device_maps_the_range_for_itself(shared):
    m, file = shared
    range_ = file.find(0x100)
    assert file.valid(range_) == [False, False]
    file.get(range_, 0)
    assert file.valid(range_) == [True, False]
    file.get(range_, 1)
    assert file.valid(range_) == [True, True]
    assert [device.drm.dma.mapped_rows for device in m.devices] == [16, 16]
    assert not hasattr(range_, "pages")
    file.svm.unmap_pages(range_.of[0], GpuSvmCtx())
    assert file.valid(range_) == [False, True]
    assert [device.drm.dma.mapped_rows for device in m.devices] == [0, 16]


def test_one_maps_its_own_memory_and_the_other_reaches_for_it(shared):
    m, file = shared
    assert m.files[0].populate(0x100 * PAGE, 16) == 0
    range_ = file.find(0x100)
    for number in range(2):
        file.get(range_, number)
    protos = [set(pages.dma_addr.proto.tolist()) for pages in range_.of]
    assert protos == [{DRM_INTERCONNECT_DRIVER}, {DRM_INTERCONNECT_DRIVER + 1}]
    assert [pages.dpagemap for pages in range_.of] == [m.devices[0].dpagemap] * 2
    m.read(0x100)  # brings all of it home, under both of them
    assert file.valid(range_) == [False, False]
    assert m.devices[0].maps == 0


def test_a_munmap_marks_the_pages_of_all_devices(shared):
    m, file = shared
    range_ = file.find(0x100)
    file.get(range_, 0)
    m.mm.munmap(0x10F * PAGE, PAGE)
    assert (range_.unmapped, range_.partial_unmap) == (True, True)
    assert [pages.unmapped for pages in range_.of] == [True, True]
    for number in range(2):
        with pytest.raises(KernelError) as caught:
            file.get(range_, number)
        assert caught.value.errno == EFAULT


def test_removing_a_range_leaves_its_pages_to_the_driver(shared):
    m, file = shared
    range_ = file.find(0x100)
    file.get(range_, 0)
    range_.get()
    with file.lock:
        file.svm.range_remove(range_)
    assert file.valid(range_) == [True, False]
    range_.put()
    assert file.valid(range_) == [False, False]
    assert (file.freed, m.kernel.ledger.count("dma")) == (1, 0)


def test_marking_needs_the_lock_for_writing(shared):
    m, file = shared
    range_ = file.find(0x100)
    window = MmuNotifierRange(m.mm, range_.start, range_.end, MMU_NOTIFY_UNMAP)
    with pytest.raises(ModelError) as caught:
        file.svm.range_set_unmapped(range_, window, pages=range_.of)
    assert str(caught.value) == "shared: range_set_unmapped without the notifier lock held for writing"


def test_the_subscription_ends_before_the_ranges(shared, monkeypatch):
    m, file = shared
    file.find(0x100)
    order = []
    remove = m.memory.mmu_interval_notifier_remove
    take = file.svm.range_remove
    monkeypatch.setattr(m.memory, "mmu_interval_notifier_remove", lambda sub: (order.append("notifier"), remove(sub)))
    monkeypatch.setattr(file.svm, "range_remove", lambda range_: (order.append("range"), take(range_)))
    with file.lock:
        file.svm.fini()
    assert order == ["notifier", "range"]
    m.mm.mmgrab()  # for the fixture, which ends it once more


# --- a gpusvm without an mm


class Userptr:
    """Watch a piece of an mm as a userptr does: by a notifier of its own."""

    def __init__(self, m, svm, pages):
        self.svm = svm
        self.pages = pages
        self.memory = m.memory

    def invalidate(self, sub, mmu_range, cur_seq):
        self.svm.notifier_lock.down_write()
        self.memory.mmu_interval_set_seq(sub, cur_seq)
        self.svm.unmap_pages(self.pages, IN_NOTIFIER)
        self.svm.notifier_lock.up_write()
        return True


def test_pages_of_an_mm_that_the_gpusvm_does_not_know(machine):
    m = machine()
    m.mmap(0x100, 16)
    m.write(0x100, 16)
    svm = GpuSvm(m.kernel, m.memory, "userptr", None)
    pages = GpuSvmPages(m.devices[0].drm)
    sub = m.memory.mmu_interval_notifier_insert(m.mm, 0x100 * PAGE, 16 * PAGE, Userptr(m, svm, pages))
    svm.get_pages(pages, sub, 0x100 * PAGE, 0x110 * PAGE, GpuSvmCtx(), mm=m.mm)
    assert svm.pages_valid(pages)
    assert pages.dma_addr.direction == DMA_BIDIRECTIONAL
    m.memory.contents.read_many(m.mm, np.arange(0x100, 0x110), pages.dma_addr.page_pfns())
    m.mm.munmap(0x108 * PAGE, PAGE)
    assert not svm.pages_valid(pages)
    m.memory.mmu_interval_notifier_remove(sub)
    svm.free_pages(pages)
    svm.fini()


@pytest.mark.parametrize(
    ("mm", "given", "message"),
    [
        (
            False,
            {"chunk_sizes": (4096,)},
            "-EINVAL: bad: without an mm there are no ranges, and nothing to say of them",
        ),
        (False, {"mm_range": PAGE}, "-EINVAL: bad: without an mm there are no ranges, and nothing to say of them"),
        (True, {"chunk_sizes": ()}, "-EINVAL: bad: ranges need an invalidate callback and one chunk size at least"),
        (True, {"ops": None}, "-EINVAL: bad: ranges need an invalidate callback and one chunk size at least"),
    ],
)
def test_half_a_setup_is_einval(machine, mm, given, message):
    m = machine()
    setup = {"ops": m.files[0], "chunk_sizes": (4096,), "mm_range": WHOLE, "notifier_size": 1 << 29} if mm else {}
    with pytest.raises(KernelError) as caught:
        GpuSvm(m.kernel, m.memory, "bad", m.mm if mm else None, **{**setup, **given})
    assert (caught.value.errno, str(caught.value)) == (EINVAL, message)
