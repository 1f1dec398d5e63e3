"""drivers/gpu/drm/amd/amdkfd/kfd_svm.h:struct svm_range, as of Linux 7.3.4: memory with attributes of its own.

Pages are virtual page numbers, `end` is behind the last. GPUs are numbered from 0 in masks; as a location of memory GPU
i is i + 1, 0 is system memory.
"""

from errno import EFAULT, ENOMEM
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import define, field
from gpusvm.drm import DMA_BIDIRECTIONAL
from gpusvm.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from gpusvm.kernel import Mutex
    from gpusvm.mm.api import IntervalNotifier, MmApi, MmuNotifierRange, Pfns

    from gpusvm_kfd.process import ProcessDevice
    from gpusvm_kfd.svm_bo import SvmRangeBo
    from gpusvm_kfd.svms import SvmRangeList

__all__ = [
    "GPU_ALWAYS_MAPPED",
    "GPU_RO",
    "OP_ADD_RANGE",
    "OP_NULL",
    "OP_UNMAP_RANGE",
    "OP_UPDATE_RANGE_NOTIFIER",
    "SYSTEM",
    "UNDEFINED",
    "SvmRange",
    "bits",
    "dma_unmap",
]

SYSTEM: Final = 0
UNDEFINED: Final = -1

# include/uapi/linux/kfd_ioctl.h: KFD_IOCTL_SVM_FLAG_, those that change what the model does.
GPU_RO: Final = 1 << 3
GPU_ALWAYS_MAPPED: Final = 1 << 6

# enum svm_work_list_ops
OP_NULL: Final = 0
OP_UNMAP_RANGE: Final = 1
OP_UPDATE_RANGE_NOTIFIER: Final = 2
OP_ADD_RANGE: Final = 4

_UNMAPPED: Final = 0
_MAPPED: Final = 1
_VRAM: Final = 2


def bits(mask: int) -> "Iterator[int]":
    """Count off the GPUs of a mask."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@define(eq=False)
class SvmRange:
    """Be one range; it is the ops of its notifier.

    `it_start` and `it_end` are where it stands in the tree, until the deferred work has followed a split. `has_res` is
    ttm_res: whether it holds a reference of `svm_bo`, which it names beyond that until the object says so. `dma` has,
    by GPU, what each page is mapped as.
    """

    svms: "SvmRangeList"
    start: int
    end: int
    lock: "Mutex"
    migrate_mutex: "Mutex"
    preferred_loc: int
    granularity: int
    prefetch_loc: int = UNDEFINED
    actual_loc: int = SYSTEM
    flags: int = 0
    access: int = 0
    in_place: int = 0
    needs_unmap: int = 0
    mapped: int = 0
    mapping_done: bool = False
    invalid: int = 0
    validated_ns: int | None = None
    counted_pages: int = 0
    svm_bo: "SvmRangeBo | None" = None
    has_res: bool = False
    offset: int = 0
    dma: "dict[int, npt.NDArray[np.uint8]]" = field(factory=dict)
    notifier: "IntervalNotifier | None" = None
    it_start: int = 0
    it_end: int = 0
    children: "list[SvmRange]" = field(factory=list)
    parent: "SvmRange | None" = None
    deferred: bool = False
    work_op: int = OP_NULL
    work_mm: "MmApi | None" = None
    policy_state: Any = None

    def __repr__(self) -> str:
        return f"<SvmRange {self.start:#x}-{self.end:#x}>"

    @property
    def pages(self) -> int:
        return self.end - self.start

    @property
    def vram_pages(self) -> int:
        """Return how many pages are in VRAM: as written what was counted, else what is (quirk evict_leftovers)."""
        if not self.svms.exact:
            return self.counted_pages
        if not self.has_res:
            return 0
        assert self.svm_bo is not None
        return int(np.count_nonzero(self.svm_bo.resident[self.offset : self.offset + self.pages]))

    def window(self, page: int) -> tuple[int, int]:
        """Return the granule of a page, as far as it is in the range."""
        first = page & -self.granularity
        return max(first, self.start), min(first + self.granularity, self.end)

    def invalidate(self, sub: "IntervalNotifier", range_: "MmuNotifierRange", cur_seq: int) -> bool:
        """Follow a change of the process's memory (svm_range_cpu_invalidate_pagetables)."""
        return self.svms.invalidate(self, sub, range_, cur_seq)

    # ---- DMA -----------------------------------------------------------------------------------------------------

    def dma_map(self, pdd: "ProcessDevice", first: int, pfns: "Pfns", is_device: "npt.NDArray[np.bool_]") -> None:
        """Map what pages of the range from the `first` on are now for a GPU (svm_range_dma_map_dev). EFAULT, ENOMEM.

        What a page was mapped as before is unmapped now, and not when it went. As written a range that was cut since
        `first` was found has a shorter array, of which this knows nothing.
        """
        kinds = self.dma.get(pdd.gpu)
        if kinds is None:
            self._alloc_dma_addr()
            kinds = self.dma[pdd.gpu] = np.zeros(self.pages, np.uint8)
        behind = first + len(pfns) - len(kinds)
        if behind > 0:
            self.svms.kernel.warn("svm_range_dma_map_dev", f"{behind} addresses are written behind those of {self!r}")
            return
        kinds = kinds[first : first + len(pfns)]
        dma_unmap(pdd, kinds)
        kinds[is_device] = _VRAM
        system = np.flatnonzero(~is_device)
        if len(system):
            rows = pdd.dma.map_rows(pfns[system], np.zeros(len(system), np.uint8), DMA_BIDIRECTIONAL)
            kinds[system[: len(rows)]] = _MAPPED
            if len(rows) < len(system):
                raise KernelError(EFAULT, f"{pdd.dma.name}: dma_map_page failed")

    def dma_unmap(self) -> None:
        """Unmap everything for all GPUs (svm_range_dma_unmap)."""
        for gpu, kinds in self.dma.items():
            dma_unmap(self.svms.process.pdds[gpu], kinds)

    # ---- split and clone -----------------------------------------------------------------------------------------

    def split(self, start: int, end: int, *, reserved: bool = False) -> "SvmRange":
        """Keep [start, end), one end of which is the range's own, and return a new range of the rest
        (svm_range_split). ENOMEM, unless what it takes was `reserved`: the new range is freed, and the addresses of
        GPUs before the one that failed are cut.
        """
        old_start, old_end = self.start, self.end
        assert start == old_start or end == old_end
        new_start, new_end = (end, old_end) if start == old_start else (old_start, start)
        new = self.svms.new_range(new_start, new_end, reserved=reserved)
        # svm_range_split_pages
        counted = 0
        for gpu, kinds in sorted(self.dma.items()):
            if not reserved:
                self._alloc_dma_addr(new)
            part = new.dma[gpu] = kinds[new.start - old_start : new.end - old_start].copy()
            self.dma[gpu] = kinds[start - old_start : end - old_start].copy()
            counted = int(np.count_nonzero(part == _VRAM))
        if self.actual_loc:
            # Of pages that no GPU has mapped yet nothing says where they are.
            if not self.dma and self.counted_pages == old_end - old_start:
                counted = new.pages
            new.counted_pages = counted
            self.counted_pages -= counted
            if self.has_res:
                # svm_range_split_nodes
                new.offset = self.offset + (new.start - old_start)
                self.offset += start - old_start
                self._share(new)
        self.start, self.end = start, end
        self._copy_attributes(new)
        return new

    def clone(self) -> "SvmRange":
        """Return a range like this one, with its share of the object and its DMA mappings (svm_range_clone). ENOMEM."""
        new = self.svms.new_range(self.start, self.end)
        for gpu, kinds in sorted(self.dma.items()):
            self._alloc_dma_addr(new)
            new.dma[gpu] = kinds.copy()
        new.offset = self.offset
        new.counted_pages = self.counted_pages
        if self.has_res:
            self._share(new)
        elif self.svm_bo is not None and self.svms.process.kfd.quirks.clone_reference == "as_written":
            # A reference that nobody drops, as has_res is what says that there is one.
            if self.svm_bo.kref.get_unless_zero("range"):
                new.svm_bo = self.svm_bo
                new.svm_bo.link(new)
            else:
                self.svms.kernel.warn("svm_range_clone", "a reference is taken of an object that is being freed")
        self._copy_attributes(new)
        return new

    def _alloc_dma_addr(self, new: "SvmRange | None" = None) -> None:
        """Ask whether there is memory for an array of addresses (svm_range_copy_array); if not, free `new`. ENOMEM."""
        if self.svms.kernel.inject("kfd.dma_addr"):
            if new is not None:
                self.svms.discard(new)
            raise KernelError(ENOMEM, "injected at kfd.dma_addr")

    def _share(self, new: "SvmRange") -> None:
        svm_bo = self.svm_bo
        assert svm_bo is not None
        svm_bo.kref.get("range")
        new.svm_bo, new.has_res = svm_bo, True
        svm_bo.link(new)

    def _copy_attributes(self, new: "SvmRange") -> None:
        for name in ("flags", "preferred_loc", "prefetch_loc", "actual_loc", "granularity", "mapping_done"):
            setattr(new, name, getattr(self, name))
        new.access, new.in_place, new.mapped = self.access, self.in_place, self.mapped
        if self.svms.process.kfd.quirks.split_invalid == "fixed":
            new.invalid = self.invalid


def dma_unmap(pdd: "ProcessDevice", kinds: "npt.NDArray[np.uint8]") -> None:
    """Unmap what is mapped of a stretch (svm_range_dma_unmap_dev)."""
    pdd.dma.unmap_pages(int(np.count_nonzero(kinds == _MAPPED)))
    kinds[:] = _UNMAPPED
