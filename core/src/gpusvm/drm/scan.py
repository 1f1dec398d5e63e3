"""drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_scan_mm, as of Linux 7.3.4: look without faulting."""

from errno import EBUSY
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.drm.pages import HMM_RANGE_DEFAULT_TIMEOUT_NS
from gpusvm.errors import KernelError
from gpusvm.mm.api import HMM_PFN_ORDER_SHIFT, HMM_PFN_PFN_MASK, HMM_PFN_VALID, DevPagemap, HmmRange

if TYPE_CHECKING:
    from gpusvm.drm.gpusvm import GpuSvm
    from gpusvm.drm.notifier import GpuSvmNotifier
    from gpusvm.drm.range import GpuSvmRange

# enum drm_gpusvm_scan_result
SCAN_UNPOPULATED: Final = 0
SCAN_EQUAL: Final = 1
SCAN_OTHER: Final = 2
SCAN_SYSTEM: Final = 3
SCAN_MIXED_DEVICE: Final = 4
SCAN_MIXED: Final = 5

_PFN_MASK = np.uint64(HMM_PFN_PFN_MASK)


def scan_mm(range_: "GpuSvmRange", dev_private_owner: object | None, pagemap: DevPagemap) -> int:
    """Say where the memory of a range is, at this moment (drm_gpusvm_scan_mm).

    SCAN_UNPOPULATED: a page is not present, or of another owner, or nobody could look. SCAN_EQUAL: all in `pagemap`;
    SCAN_OTHER: all in one other; SCAN_MIXED_DEVICE: in several. SCAN_SYSTEM: all in RAM. SCAN_MIXED: in RAM and on
    devices. Each look has 1000 ms; one that an invalidation made void is repeated, however often.
    """
    gpusvm = range_.gpusvm
    memory = gpusvm.memory
    notifier = range_.notifier.notifier
    lock = gpusvm.notifier_lock
    while True:
        hmm_range = HmmRange(
            notifier=notifier,
            start=range_.start,
            end=range_.end,
            hmm_pfns=np.zeros(range_.npages, np.uint64),
            dev_private_owner=dev_private_owner,
        )
        try:
            memory.hmm_range_fault_unlocked_timeout(hmm_range, HMM_RANGE_DEFAULT_TIMEOUT_NS)
        except KernelError:
            return SCAN_UNPOPULATED
        lock.down_read()
        retry = memory.mmu_interval_read_retry(notifier, hmm_range.notifier_seq)
        if not retry:
            break
        lock.up_read()
        gpusvm.kernel.retried(by_chance=True)
    try:
        words = hmm_range.hmm_pfns
        word = int(words[0])
        if word & HMM_PFN_VALID and 1 << ((word >> HMM_PFN_ORDER_SHIFT) & 0x1F) >= range_.npages > 1:
            # one mapping of the CPU covers the range, which is aligned to its size: its first page tells all
            pfn = word & HMM_PFN_PFN_MASK
            if not memory.is_device_memory(pfn):
                return SCAN_SYSTEM
            return SCAN_EQUAL if memory.page_pgmap(pfn) is pagemap else SCAN_OTHER
        if not int(np.bitwise_and.reduce(words)) & HMM_PFN_VALID:
            return SCAN_UNPOPULATED
        pfns = (words & _PFN_MASK).view(np.int64)
        device = memory.device_memory_mask(pfns)
        if not device.any():
            return SCAN_SYSTEM
        if not device.all():
            return SCAN_MIXED
        if ((pfns >= pagemap.start_pfn) & (pfns < pagemap.start_pfn + pagemap.nr_pages)).all():
            return SCAN_EQUAL
        first = memory.page_pgmap(int(pfns[0]))
        assert first is not None
        if first is not pagemap and ((pfns >= first.start_pfn) & (pfns < first.start_pfn + first.nr_pages)).all():
            return SCAN_OTHER
        return SCAN_MIXED_DEVICE
    finally:
        lock.up_read()


def check_pages(
    gpusvm: "GpuSvm", notifier: "GpuSvmNotifier", start: int, end: int, dev_private_owner: object | None
) -> bool:
    """Tell whether every page of [start, end) is present on the CPU (drm_gpusvm_check_pages). The mmap_lock is held."""
    memory = gpusvm.memory
    kernel = gpusvm.kernel
    deadline_ns = kernel.now_ns + HMM_RANGE_DEFAULT_TIMEOUT_NS
    hmm_range = HmmRange(
        notifier=notifier.notifier,
        start=start,
        end=end,
        hmm_pfns=np.zeros((end - start) >> memory.geometry.page_shift, np.uint64),
        dev_private_owner=dev_private_owner,
    )
    while True:
        hmm_range.notifier_seq = memory.mmu_interval_read_begin(notifier.notifier)
        try:
            memory.hmm_range_fault(hmm_range)
        except KernelError as error:
            if error.errno != EBUSY or kernel.now_ns > deadline_ns:
                return False
            kernel.retried(by_chance=True)
            continue
        return bool(int(np.bitwise_and.reduce(hmm_range.hmm_pfns)) & HMM_PFN_VALID)
