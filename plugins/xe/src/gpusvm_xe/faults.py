"""drivers/gpu/drm/xe/xe_pagefault.c and xe_svm.c:__xe_svm_handle_pagefault, as of Linux 7.3.4: xe's stages of a GPU
fault.

Faults are served one by one, in order, under the VM's lock for write. What is xe's own here: whether and where to
migrate, how often to try, and what an error of each stage means.
"""

import errno
from typing import TYPE_CHECKING

from gpusvm.driver import ACCESS_ATOMIC, FaultJob, FaultPipeline, FaultUnit, GpuFault, RangeUnit, Restart
from gpusvm.drm import DrmPagemap
from gpusvm.errors import KernelError

from gpusvm_xe.asid import ASID_MASK
from gpusvm_xe.svm import MOVED, alloc_vram, evict_range

if TYPE_CHECKING:
    from gpusvm_xe.driver import XeDriver

__all__ = ["MigrateAfter", "XeFaults"]


class MigrateAfter:
    """Migrate a range to the VRAM of the faulting tile at its n-th fault (`gpusvm.driver.FaultPolicy`); xe: at the
    first.
    """

    def __init__(self, driver: "XeDriver", faults: int) -> None:
        self.driver = driver
        self.faults = faults

    def new_state(self, unit: FaultUnit) -> list[int]:
        """Count the faults of a range."""
        return [0]

    def place(self, fault: GpuFault, unit: FaultUnit, state: list[int]) -> DrmPagemap | None:
        state[0] += 1
        return None if state[0] < self.faults else self.driver.tile_of(fault).dpagemap


class XeFaults(FaultPipeline):
    """Serve faults as xe does: migrate first, map what is there otherwise."""

    def __init__(self, driver: "XeDriver") -> None:
        super().__init__(driver.kernel, driver.accounts, policy=MigrateAfter(driver, driver.tunables.migrate_after))
        self.driver = driver
        self._discrete = driver.spec.discrete
        self._acked_failure = driver.quirks.acked_failure == "as_written"

    # ---- queue: the oldest fault of the queue alone, as FaultPipeline.take has it ---------------------------------

    def begin(self, job: FaultJob) -> bool:
        """Find the VM by its asid and lock it (xe_pagefault_service); choose the budget of tries."""
        asid = job.fault.inst & ASID_MASK
        vm = self.driver.vms.get(asid)
        if vm is None:
            raise KernelError(errno.EINVAL, f"no address space with asid {asid}")
        vm.get("pagefault")
        job.vm = vm
        vm.lock.down_write()
        if vm.closed:
            raise KernelError(errno.ENOENT, f"the address space {asid} is closed")
        tunables = self.driver.tunables
        # Atomics reach system memory on no discrete device but by an attribute: VRAM it is
        # (xe_vma_need_vram_for_atomic).
        if job.fault.access == ACCESS_ATOMIC and self._discrete:
            job.scratch = vm.ctx_atomic
            job.tries = tunables.atomic_tries
            job.timeslice_ms = tunables.timeslice_ms
        else:
            job.scratch = vm.ctx_fault
            job.tries = tunables.tries
        return True

    def end(self, job: FaultJob) -> None:
        if job.vm is not None:
            job.vm.lock.up_write()
            job.vm.put("pagefault")

    # ---- gc ------------------------------------------------------------------------------------------------------

    def collect_garbage(self, job: FaultJob) -> bool:
        """Process pending unmaps first, so that no range of theirs is found (__xe_svm_handle_pagefault)."""
        if self.kernel.explored:
            job.vm.assert_locked("__xe_svm_handle_pagefault")
        job.vm.garbage.collect()
        return True

    # ---- lookup --------------------------------------------------------------------------------------------------

    def lookup(self, job: FaultJob) -> bool:
        vm, ctx = job.vm, job.scratch
        range_ = vm.gpusvm.range_find_or_insert(job.fault.addr, vm.start, vm.end, ctx)
        if ctx.devmem_only and not range_.migrate_devmem:
            raise KernelError(errno.EACCES, f"an atomic at {job.fault.addr:#x} on memory that cannot move to VRAM")
        job.unit = RangeUnit(vm.gpusvm, range_)
        tile = self.driver.tile_of(job.fault)
        return not vm.is_valid(range_, tile, tile.dpagemap if ctx.devmem_only else None)

    # ---- migrate -------------------------------------------------------------------------------------------------

    def place(self, job: FaultJob) -> DrmPagemap | None:
        """Choose the tile's VRAM if the range can move and is not there (xe_svm_range_needs_migrate_to_vram)."""
        range_ = job.unit.range
        dpagemap = self.driver.tile_of(job.fault).dpagemap
        if dpagemap is None or not range_.migrate_devmem or range_.is_in(dpagemap):
            return None
        return dpagemap if job.scratch.devmem_only else super().place(job)

    def migrate(self, job: FaultJob) -> bool:
        job.tries -= 1
        if job.tries < 0:
            return True
        job.pagemap = pagemap = self.place(job)
        if pagemap is None:
            return True
        try:
            alloc_vram(job.vm, job.unit.range, pagemap, job.timeslice_ms)
        except KernelError as error:
            job.timeslice_ms *= 2
            self.note("migrate_failed", job, error.errno)
            if job.scratch.devmem_only:
                if job.tries <= 0:
                    raise
                return True  # get_pages brings a mixed range to one place, so that the next try can succeed
            raise Restart from error  # with the tries used up the memory is mapped where it is
        job.timeslice_ms *= 2
        return True

    # ---- get_pages -----------------------------------------------------------------------------------------------

    def get_pages(self, job: FaultJob) -> bool:
        gpusvm, range_, ctx = job.unit.gpusvm, job.unit.range, job.scratch
        try:
            gpusvm.range_get_pages(range_, ctx)
        except KernelError as error:
            self.note("get_pages_failed", job, error.errno)
            if error.errno == errno.EOPNOTSUPP:
                evict_range(gpusvm, range_)
            if error.errno in MOVED:
                job.timeslice_ms *= 2
                if job.tries > 0 or not ctx.devmem_only:
                    raise Restart from error
            # As written the error is dropped at the label that ends the function: the GPU is told that all is well.
            if self._acked_failure:
                return False
            raise
        return True

    # ---- bind ----------------------------------------------------------------------------------------------------

    def bind(self, job: FaultJob) -> bool:
        if not job.vm.bind(job.unit, self.driver.tile_of(job.fault)):
            job.timeslice_ms *= 2
            raise Restart
        return True
