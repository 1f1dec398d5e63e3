"""drivers/gpu/drm/xe/xe_vm.c, as of Linux 7.3.4: the GPU-VMAs that a VM is covered by, one to begin with.

Each mirrors the CPU's memory and has its attributes; setting them for a part splits it, forgetting them may merge it.
"""

import errno
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from attrs import evolve
from gpusvm.drm import DrmPagemap
from gpusvm.errors import KernelError

from gpusvm_xe.attributes import NO_WISHES, MemAttr, PreferredLocation

if TYPE_CHECKING:
    from gpusvm_xe.vm import XeVm

__all__ = ["XeVma", "XeVmas"]

# What xe_vm_find_vma_by_addr looks for is a page that begins at the address, whatever that is.
_PAGE: Final = 4096


class XeVma:
    """Mirror [start, end) (struct xe_vma with XE_VMA_SYSTEM_ALLOCATOR). Its attributes change under the VM's lock.

    With `autoreset` (XE_VMA_MADV_AUTORESET) they fall back when the CPU unmaps the memory.
    """

    __slots__ = ("_attr", "autoreset", "end", "skip_invalidation", "start")

    def __init__(self, start: int, end: int, *, attr: MemAttr = NO_WISHES, autoreset: bool = False) -> None:
        self.start = start
        self.end = end
        self.autoreset = autoreset
        self.skip_invalidation = False
        self._attr = NO_WISHES
        self.attr = attr

    def __repr__(self) -> str:
        return f"<XeVma [{self.start:#x}, {self.end:#x})>"

    @property
    def attr(self) -> MemAttr:
        return self._attr

    @attr.setter
    def attr(self, attr: MemAttr) -> None:
        """Copy attributes with their reference, and put that of those before (xe_vma_mem_attr_copy)."""
        if attr.dpagemap is not None:
            attr.dpagemap.get("vma")
        if self._attr.dpagemap is not None:
            self._attr.dpagemap.put("vma")
        self._attr = attr

    def prefer(self, location: PreferredLocation, dpagemap: DrmPagemap | None) -> None:
        self.attr = evolve(self._attr, preferred=location, dpagemap=dpagemap)

    def allow_atomics(self, whose: int) -> None:
        self.attr = evolve(self._attr, atomic_access=whose)


class XeVmas:
    """Keep the VMAs of a VM, which cover all of it (vm->gpuvm). The VM's lock is held for writing.

    `last_fault` is the VMA of the last fault that was served, where a lookup begins. Injection site: ``xe.vma``, for
    every VMA that is made.
    """

    def __init__(self, vm: "XeVm", start: int, end: int) -> None:
        self.vm = vm
        self.kernel = vm.kernel
        self.start = start
        self.end = end
        self.last_fault: XeVma | None = None
        self._vmas = [XeVma(start, end)]
        self._starts = [start]

    def __iter__(self) -> Iterator[XeVma]:
        return iter(self._vmas)

    def find(self, addr: int) -> XeVma | None:
        """Return the VMA that a page at `addr` is in or reaches into (xe_vm_find_vma_by_addr)."""
        last = self.last_fault
        if last is not None and addr < last.end and addr + _PAGE > last.start:
            return last
        return next(iter(self.overlapping(addr, addr + _PAGE)), None)

    def overlapping(self, start: int, end: int) -> list[XeVma]:
        """Return those that overlap [start, end), ascending (drm_gpuvm_for_each_va_range)."""
        if end <= self.start or start >= self.end:
            return []
        first = max(bisect_right(self._starts, start) - 1, 0)
        return self._vmas[first : bisect_right(self._starts, end - 1)]

    # ---- to split and to merge -----------------------------------------------------------------------------------

    def split(self, start: int, end: int) -> None:
        """Cut VMAs where [start, end) begins and ends (xe_vm_alloc_madvise_vma): each piece keeps the attributes.

        What the GPU has mapped across a cut is brought home and taken out. EINVAL beyond the VM; ENOMEM, with the VMAs
        as they were.
        """
        self._check(start, end)
        made: list[XeVma] = []
        cut: list[XeVma] = []
        try:
            for vma in self.overlapping(start, end):
                inner, outer = (max(start, vma.start), min(end, vma.end)), (vma.start, vma.end)
                if inner == outer:
                    continue
                self.vm.unmap_address_range(*inner)
                cut.append(vma)
                self._make_pieces(made, vma, ((vma.start, inner[0]), inner, (inner[1], vma.end)))
        except KernelError:
            self._destroy(made)
            raise
        self._replace(cut, made)

    def map(self, start: int, end: int, *, autoreset: bool | None) -> None:
        """Put one VMA with default attributes in place of all in [start, end) (drm_gpuvm_sm_map).

        `autoreset` None: as the last of them had it (xe_vm_alloc_cpu_addr_mirror_vma). EINVAL beyond the VM; EBUSY if a
        VMA would have to be cut where the GPU has something mapped; ENOMEM. The VMAs are as they were then.
        """
        self._check(start, end)
        made: list[XeVma] = []
        gone = self.overlapping(start, end)
        try:
            for vma in gone:
                inner = max(start, vma.start), min(end, vma.end)
                if inner != (vma.start, vma.end) and self.vm.gpusvm.has_mapping(*inner):
                    raise KernelError(errno.EBUSY, f"{vma!r} has ranges in [{inner[0]:#x}, {inner[1]:#x})")
                if autoreset is None and inner == (vma.start, vma.end) and not vma.attr.is_default:
                    self.kernel.warn("xe_vm_alloc_vma", f"the attributes of {vma!r} are lost")
                self._make_pieces(made, vma, ((vma.start, inner[0]), (inner[1], vma.end)))
            made.append(self._make(start, end, autoreset=gone[-1].autoreset if autoreset is None else autoreset))
        except KernelError:
            self._destroy(made)
            raise
        self._replace(gone, made)

    def mergeable(self, start: int, end: int) -> tuple[int, int]:
        """Widen [start, end) over its neighbours where those have default attributes
        (xe_vm_find_cpu_addr_mirror_vma_range).

        As written it looks one byte beyond the end: the lookup may find the VMA after the next one, if that is of one
        page and the other took the last fault.
        """
        if start >= _PAGE:
            before = self.find(start - _PAGE)
            if before is not None and before.attr.is_default:
                start = before.start
        if end < self.end:
            after = self.find(end + (self.vm.driver.quirks.reset_beyond == "as_written"))
            if after is not None and after.attr.is_default:
                end = after.end
        return start, end

    def reset(self, start: int, end: int) -> bool:
        """Let the attributes of a range fall back, as its memory is unmapped (xe_svm_range_set_default_attr); whether
        VMAs were merged or split, and so whoever holds one has to look it up again.
        """
        vma = self.find(start)
        assert vma is not None  # a VM is covered: nothing is ever unbound
        if not vma.autoreset:
            return False
        had_default = vma.attr.is_default
        if had_default:
            start, end = vma.start, vma.end
        elif (vma.start, vma.end) == (start, end):
            vma.attr = NO_WISHES
        start, end = self.mergeable(start, end)
        if had_default and (vma.start, vma.end) == (start, end):
            return False
        self.map(start, end, autoreset=None)
        return True

    def fini(self) -> None:
        """Destroy all, with the VM."""
        self._destroy(self._vmas)
        self._vmas, self._starts, self.last_fault = [], [], None

    def _check(self, start: int, end: int) -> None:
        if self.kernel.explored:
            self.vm.assert_locked("xe_vm_alloc_vma")
        if start < self.start or end > self.end:
            raise KernelError(errno.EINVAL, f"[{start:#x}, {end:#x}) is not within [{self.start:#x}, {self.end:#x})")

    def _make_pieces(self, made: list[XeVma], vma: XeVma, spans: Iterable[tuple[int, int]]) -> None:
        for start, end in spans:
            if start < end:
                made.append(self._make(start, end, attr=vma.attr, autoreset=vma.autoreset))

    def _make(self, start: int, end: int, *, attr: MemAttr = NO_WISHES, autoreset: bool) -> XeVma:
        if self.kernel.inject("xe.vma"):
            raise KernelError(errno.ENOMEM, "injected at xe.vma")
        return XeVma(start, end, attr=attr, autoreset=autoreset)

    def _replace(self, gone: list[XeVma], made: list[XeVma]) -> None:
        if not gone:
            return
        if self.last_fault in gone:
            self.last_fault = None
        self._vmas = sorted([vma for vma in self._vmas if vma not in gone] + made, key=lambda vma: vma.start)
        self._starts = [vma.start for vma in self._vmas]
        self._destroy(gone)

    def _destroy(self, vmas: list[XeVma]) -> None:
        for vma in vmas:
            vma.attr = NO_WISHES
            self.kernel.free(vma)
