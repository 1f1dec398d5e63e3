"""drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_set_attr, as of Linux 7.3.4: what a program says of its memory.

Ranges are made where there are none, and split where the attributes of a part change: clones take the place of what is
split, so that nothing has changed if that fails. Then, range by range, memory is prefetched and mapped.
"""

from collections.abc import Mapping
from errno import EFAULT, EINVAL
from typing import TYPE_CHECKING, Literal

from attrs import frozen
from gpusvm.errors import KernelError
from gpusvm.mm.api import VM_IO, VM_MIXEDMAP, VM_PFNMAP

from gpusvm_kfd.mapping import unmap_from_gpus, validate_and_map
from gpusvm_kfd.migrate import migrate_to_vram, vram_to_ram
from gpusvm_kfd.svm_range import GPU_ALWAYS_MAPPED, SYSTEM, UNDEFINED, SvmRange, bits

if TYPE_CHECKING:
    from gpusvm.mm.api import MmApi

    from gpusvm_kfd.process import KfdFile, KfdProcess

__all__ = ["Access", "Attributes", "apply_attributes", "set_attributes"]

Access = Literal["access", "in_place", "none"]

_GRANULARITY_MAX = 0x3F


@frozen(kw_only=True)
class Attributes:
    """Hold what one call says; None is nothing. A location is 0 for RAM, or that of a GPU, its number + 1."""

    preferred_loc: int | None = None
    prefetch_loc: int | None = None
    access: Mapping[int, Access] = {}
    set_flags: int = 0
    clear_flags: int = 0
    granularity: int | None = None

    def check(self, process: "KfdProcess") -> None:
        """Refuse a GPU that the process has not (svm_range_check_attr). EINVAL."""
        gpus = list(self.access)
        if self.preferred_loc is not None and self.preferred_loc not in (SYSTEM, UNDEFINED):
            gpus.append(self.preferred_loc - 1)
        if self.prefetch_loc is not None and self.prefetch_loc != SYSTEM:
            gpus.append(self.prefetch_loc - 1)
        for gpu in gpus:
            if gpu < 0 or not process.supported >> gpu & 1:
                raise KernelError(EINVAL, f"the process has no GPU {gpu}")

    def are_of(self, prange: SvmRange) -> bool:
        """Tell whether a range has these attributes (svm_range_is_same_attrs); a prefetch is always new."""
        if self.prefetch_loc is not None or self.preferred_loc not in (None, prange.preferred_loc):
            return False
        for gpu, access in self.access.items():
            has = {"access": prange.access, "in_place": prange.in_place, "none": ~(prange.access | prange.in_place)}
            if not has[access] >> gpu & 1:
                return False
        if prange.flags & self.set_flags != self.set_flags or prange.flags & self.clear_flags:
            return False
        return self.granularity is None or prange.granularity == 1 << self.granularity

    def apply(self, prange: SvmRange, *, xnack: bool) -> bool:
        """Give a range these attributes; whether its mappings are to follow (svm_range_apply_attrs)."""
        if self.preferred_loc is not None:
            prange.preferred_loc = self.preferred_loc
        if self.prefetch_loc is not None:
            prange.prefetch_loc = self.prefetch_loc
        for gpu, access in self.access.items():
            bit = 1 << gpu
            prange.access &= ~bit
            prange.in_place &= ~bit
            if access == "access":
                prange.access |= bit
            elif access == "in_place":
                prange.in_place |= bit
            else:
                prange.needs_unmap |= prange.mapped & bit
        prange.flags = (prange.flags | self.set_flags) & ~self.clear_flags
        if self.granularity is not None:
            prange.granularity = 1 << min(self.granularity, _GRANULARITY_MAX)
        return bool(self.set_flags or self.clear_flags or (self.access and not xnack))


def set_attributes(file: "KfdFile", start: int, end: int, attributes: Attributes) -> None:
    """Do one ioctl (kfd_ioctl_svm). EINVAL: no addresses, an unknown GPU, a closed file; else as `apply_attributes`."""
    size = file.pdd.device.page_shift
    if file.closed:
        raise KernelError(EINVAL, "the file is closed")
    if not start or start >= end or (start | end) & ((1 << size) - 1):
        raise KernelError(EINVAL, f"attributes of {start:#x}-{end:#x}")
    process, mm = file.process, file.mm
    attributes.check(process)
    process.kref.get("ioctl")
    try:
        if not mm.mmget_not_zero():
            raise KernelError(EINVAL, f"{mm.name} is ending")
        try:
            apply_attributes(process, mm, start >> size, end >> size, attributes)
        finally:
            mm.mmput()
    finally:
        process.put("ioctl")


def apply_attributes(process: "KfdProcess", mm: "MmApi", start: int, end: int, attributes: Attributes) -> None:
    """Set attributes of pages, then migrate and map (svm_range_set_attr).

    EFAULT: a page is in no area, or in a device's; ENOMEM: no memory for a range; nothing has changed then. Else the
    last error of a range, which does not keep the others from being served: what could not be brought home, or mapped.
    That something could not be brought to a GPU is none.
    """
    svms, lock = process.svms, mm.mmap_lock
    with process.info_lock:
        svms.lock_and_flush_work(mm)
        try:
            _check_areas(mm, start, end, svms.memory.geometry.page_shift)
            svms.lock.lock()
        except KernelError:
            lock.up_write()
            raise
        try:
            updated, inserted, removed, remapped = _add(process, start, end, attributes)
        except KernelError:
            svms.lock.unlock()
            lock.up_write()
            raise
        # The new first: a change that needs no mmap_lock, of reclaim, say, is always told somebody.
        for prange in inserted:
            svms.add(prange, mm)
        update = False
        for prange in updated:
            update |= attributes.apply(prange, xnack=process.xnack)
        update |= not process.xnack and bool(remapped)
        for prange in removed:
            svms.remove(prange, unmap=False)
        lock.downgrade_write()
        failed: KernelError | None = None
        for prange in updated:
            try:
                _update(process, mm, prange, update)
            except KernelError as error:
                failed = error
        for prange in remapped:
            with prange.migrate_mutex:
                try:
                    validate_and_map(prange, prange.start, prange.end, mm)
                except KernelError as error:
                    failed = error
        svms.lock.unlock()
        lock.up_read()
    if failed is not None:
        raise failed


def _check_areas(mm: "MmApi", start: int, end: int, page_shift: int) -> None:
    """Demand areas without holes, none of a device's (svm_range_is_valid). EFAULT."""
    at = start << page_shift
    while at < end << page_shift:
        vma = mm.vma_lookup(at)
        if vma is None or vma.flags & (VM_IO | VM_PFNMAP | VM_MIXEDMAP):
            raise KernelError(EFAULT, f"{at:#x} is in no area, or in a device's")
        at = vma.end


def _add(
    process: "KfdProcess", start: int, end: int, attributes: Attributes
) -> tuple[list[SvmRange], list[SvmRange], list[SvmRange], list[SvmRange]]:
    """Cover [start, end) with ranges of its own (svm_range_add); which are to be updated, inserted and removed, and
    which, cut off at a place that is not a huge page's, to be mapped anew. The last that is found is the first.
    ENOMEM: clones and new ranges are freed, what they stand for is as it was.
    """
    updated: list[SvmRange] = []
    inserted: list[SvmRange] = []
    removed: list[SvmRange] = []
    remapped: list[SvmRange] = []
    try:
        _cover(process, start, end, attributes, (updated, inserted, removed, remapped))
    except KernelError:
        for prange in inserted:
            process.svms.free(prange, unmap=False)
        raise
    return updated[::-1], inserted[::-1], removed[::-1], remapped[::-1]


def _cover(
    process: "KfdProcess",
    start: int,
    end: int,
    attributes: Attributes,
    lists: tuple[list[SvmRange], list[SvmRange], list[SvmRange], list[SvmRange]],
) -> None:
    """Do so, in the order of addresses, into the four `lists`."""
    updated, inserted, removed, remapped = lists
    svms = process.svms
    at = start
    for found in svms.overlapping(start, end):
        prange = found
        node_start, node_end = found.start, found.end
        if attributes.are_of(found) and found.mapping_done:
            pass
        elif node_start < at or node_end > end:
            prange = found.clone()
            removed.append(found)
            inserted.append(prange)
            updated.append(prange)
            if node_start < at:
                _cut(prange, at, node_end, inserted, remapped, at)
            if node_end > end:
                _cut(prange, prange.start, end, inserted, remapped, end)
        else:
            updated.append(prange)
        if node_start > at:
            _split_new(process, at, node_start, inserted, updated)
        at = min(node_end, end)
    if at < end:
        _split_new(process, at, end, inserted, updated)


def _cut(prange: SvmRange, start: int, end: int, inserted: list[SvmRange], remapped: list[SvmRange], at: int) -> None:
    """Cut a range at page `at` (svm_range_split_head, svm_range_split_tail)."""
    large = prange.svms.process.kfd.pmd_pages
    first, last = prange.start + -prange.start % large, prange.end // large * large
    rest = prange.split(start, end)
    inserted.append(rest)
    if first < at < last and at % large:
        remapped.append(rest)


def _split_new(process: "KfdProcess", start: int, end: int, inserted: list[SvmRange], updated: list[SvmRange]) -> None:
    """Make ranges of a 32nd of the smallest GPU's VRAM each, at their own alignment (svm_range_split_new)."""
    most = process.kfd.max_range_pages()
    while start < end:
        until = min(end, (start + most) // most * most)
        prange = process.svms.new_range(start, until)
        inserted.append(prange)
        updated.append(prange)
        start = until


def _update(process: "KfdProcess", mm: "MmApi", prange: SvmRange, update: bool) -> None:
    """Migrate and map one range, as its new attributes want it."""
    if prange.needs_unmap:
        # svm_range_needs_unmap
        process.svms.update_checkpoints()
        unmap_from_gpus(prange, prange.start, prange.end, prange.needs_unmap)
        prange.needs_unmap = 0
        if not prange.mapped:
            return
    with prange.migrate_mutex:
        migrated = _trigger_migration(process, mm, prange)
        stops = not process.xnack or prange.flags & GPU_ALWAYS_MAPPED
        if migrated and stops and prange.mapped:
            return  # the worker that resumes the queues maps it
        if migrated or update:
            validate_and_map(prange, prange.start, prange.end, mm)


def _trigger_migration(process: "KfdProcess", mm: "MmApi", prange: SvmRange) -> bool:
    """Prefetch a range; whether anything was tried with success (svm_range_trigger_migration)."""
    location = _best_prefetch_location(process, prange)
    if location == UNDEFINED or (location == SYSTEM and prange.actual_loc == SYSTEM):
        return False
    if location == SYSTEM:
        vram_to_ram(prange, mm, prange.start, prange.end)
        return True
    try:
        migrate_to_vram(prange, location, prange.start, prange.end, mm)
    except KernelError:
        return False  # and 0 is what the ioctl answers
    return True


def _best_prefetch_location(process: "KfdProcess", prange: SvmRange) -> int:
    """Prefetch to RAM where a GPU that reaches the range in place is in another hive
    (svm_range_best_prefetch_location).
    """
    location = prange.prefetch_loc
    if location in (SYSTEM, UNDEFINED):
        return location
    gpus = prange.in_place if process.xnack else prange.access | prange.in_place
    if all(process.kfd.same_hive(gpu, location - 1) for gpu in bits(gpus)):
        return location
    return SYSTEM
