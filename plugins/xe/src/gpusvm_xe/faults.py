"""drivers/gpu/drm/xe/xe_pagefault.c and xe_svm.c:__xe_svm_handle_pagefault, as of Linux 7.3.4: xe's stages of a GPU
fault.

Faults are served one by one, in order, under the VM's lock for write. What is xe's own here: whether and where to
migrate, how often to try, and what an error of each stage means.
"""

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gpusvm.driver import ACCESS_ATOMIC, FaultJob, FaultPipeline, FaultUnit, GpuFault, RangeUnit, Restart
from gpusvm.drm import DrmPagemap, GpuSvmCtx
from gpusvm.errors import KernelError

from gpusvm_xe.asid import ASID_MASK
from gpusvm_xe.gt import SIZES
from gpusvm_xe.pagefault import FAULT_NACK, SQUASHED, access_type, is_prefetch
from gpusvm_xe.svm import MOVED, XeSvmRange, alloc_vram, evict_range, needs_migrate_to_vram
from gpusvm_xe.vma import XeVma

if TYPE_CHECKING:
    from gpusvm.gpu import FaultBuffer

    from gpusvm_xe.driver import XeDriver
    from gpusvm_xe.tile import XeTile

__all__ = ["MigrateAfter", "XeFaults"]


class MigrateAfter:
    """Migrate a range to where its attributes say at its n-th fault (`gpusvm.driver.FaultPolicy`)."""

    def __init__(self, driver: "XeDriver", faults: int) -> None:
        self.driver = driver
        self.faults = faults

    def new_state(self, unit: FaultUnit) -> list[int]:
        """Count the faults of a range."""
        return [0]

    def place(self, fault: GpuFault, unit: FaultUnit, state: list[int]) -> DrmPagemap | None:
        state[0] += 1
        return None if state[0] < self.faults else self.driver.preferred_pagemap(fault)


_REFUSALS_MAX: Final = 3


class _Service:
    """Hold what the service of one fault goes by: who took it, the VMA, and whether nothing but VRAM will do. `found`
    is the VMA that it began with, `dpagemap` where its attributes want the memory.
    """

    __slots__ = ("ctx", "dpagemap", "found", "refusals", "tile", "vma")

    def __init__(self, tile: "XeTile", vma: XeVma, ctx: GpuSvmCtx) -> None:
        self.tile = tile
        self.found = self.vma = vma
        self.ctx = ctx
        self.dpagemap: DrmPagemap | None = None
        self.refusals = 0  # of ranges of the smallest size


class XeFaults(FaultPipeline):
    """Serve faults as xe does: migrate first, map what is there otherwise."""

    def __init__(self, driver: "XeDriver") -> None:
        policy, migrate_after = driver.policy, driver.tunables.migrate_after
        if policy is None and migrate_after > 1:
            policy = MigrateAfter(driver, migrate_after)
        super().__init__(driver.kernel, driver.accounts, policy=policy)
        self.driver = driver
        self._discrete = driver.spec.discrete
        self._acked_failure = driver.quirks.acked_failure == "as_written"
        self._keeps_found = driver.quirks.last_fault_vma == "as_written"
        self._goes_home = driver.quirks.smem_stays == "fixed"
        self._nacks = driver.tunables.fallback == "nack"
        self._growth = driver.tunables.timeslice_growth
        self._endless_retry = driver.quirks.endless_retry

    # ---- queue ---------------------------------------------------------------------------------------------------

    def take(self, buffer: "FaultBuffer[GpuFault]") -> Sequence[GpuFault]:
        """Take the oldest fault alone, passing over those that a reset squashed (xe_pagefault_queue_pop)."""
        while (fault := buffer.take()) is not None:
            if fault.inst != SQUASHED:
                return (fault,)
        return ()

    def serve(self, job: FaultJob) -> int:
        """Serve one fault (xe_pagefault_service, xe_svm_handle_pagefault, __xe_svm_handle_pagefault)."""
        return super().serve(job)

    def begin(self, job: FaultJob) -> bool:
        """Find the VM by its asid and lock it, and the VMA in it."""
        access = job.fault.access
        if access & FAULT_NACK == FAULT_NACK:
            raise KernelError(errno.EFAULT, "the GPU asked for a refusal")
        asid = job.fault.inst & ASID_MASK
        vm = self.driver.vms.get(asid)
        if vm is None:
            raise KernelError(errno.EINVAL, f"no address space with asid {asid}")
        vm.get("pagefault")
        job.vm = vm
        vm.lock.down_write()
        if vm.closed:
            raise KernelError(errno.ENOENT, f"the address space {asid} is closed")
        tile = self.driver.tile_of(job.fault)
        for userptr in vm.userptrs_in(job.fault.addr, job.fault.addr + 1) if vm.userptrs else ():
            userptr.handle_fault(tile, atomic=access_type(job.fault.access) == ACCESS_ATOMIC)
            return False
        job.scratch = _Service(tile, self._vma(job), vm.ctx_fault)
        self._go_by_attributes(job)
        return True

    def _vma(self, job: FaultJob) -> XeVma:
        vma: XeVma | None = job.vm.vmas.find(job.fault.addr)
        if vma is None:
            raise KernelError(errno.EINVAL, f"nothing is mirrored at {job.fault.addr:#x}")
        return vma

    def _go_by_attributes(self, job: FaultJob) -> None:
        """Decide whether the fault needs VRAM, and how often to try: the head of xe_svm_handle_pagefault."""
        vm, service, tunables = job.vm, job.scratch, self.driver.tunables
        if (
            access_type(job.fault.access) == ACCESS_ATOMIC
            and self._discrete
            and service.vma.attr.needs_vram(atomics_in_ram=bool(tunables.device_atomics_on_smem))
        ):
            service.ctx = vm.ctx_atomic
            job.tries = tunables.atomic_tries
            job.timeslice_ms = tunables.timeslice_ms
        else:
            service.ctx = vm.ctx_fault
            job.tries = tunables.tries
            job.timeslice_ms = 0
        service.tile.stats["svm_pagefault_count"] += 1

    def end(self, job: FaultJob) -> None:
        if job.vm is not None:
            job.vm.lock.up_write()
            job.vm.put("pagefault")

    def acknowledge(self, job: FaultJob, answer: int) -> None:
        if answer:
            self._save(job, answer)
        super().acknowledge(job, answer)

    def _save(self, job: FaultJob, answer: int) -> None:
        """Keep a fault that failed for who asks the VM, and say so in the log, but for a prefetch, which is counted
        (xe_pagefault_save_to_vm).
        """
        fault = job.fault
        vm = self.driver.vms.get(fault.inst & ASID_MASK)
        if vm is not None:
            vm.get("save_fault")
            vm.saved.add(fault.addr, fault.access)
            vm.put("save_fault")
        if is_prefetch(fault.access):
            self.driver.tile_of(fault).stats["invalid_prefetch_pagefault_count"] += 1
        else:
            self.note("fault_unsuccessful", job, answer)

    def _served(self, job: FaultJob) -> None:
        """Begin the next lookup with the VMA of this one; as written the one that the fault began with, though
        collecting garbage may have freed it.
        """
        service = job.scratch
        job.vm.vmas.last_fault = service.found if self._keeps_found else service.vma

    # ---- gc ------------------------------------------------------------------------------------------------------

    def collect_garbage(self, job: FaultJob) -> bool:
        """Process pending unmaps first, so that no range of theirs is found; begin anew if VMAs changed."""
        if self.kernel.explored:
            job.vm.assert_locked("__xe_svm_handle_pagefault")
        while job.vm.garbage.collect():
            job.scratch.vma = self._vma(job)
            self._go_by_attributes(job)
        return True

    # ---- lookup --------------------------------------------------------------------------------------------------

    def lookup(self, job: FaultJob) -> bool:
        """Choose where the memory should be and find the range; False if the tile maps it (and from there, for VRAM
        only).
        """
        vm, service = job.vm, job.scratch
        tile, vma = service.tile, service.vma
        local_only = service.ctx.devmem_only
        if local_only:
            service.dpagemap = tile.dpagemap
        else:
            service.dpagemap = dpagemap = vma.attr.resolve_pagemap(tile)
            service.ctx = vm.ctx_smem if dpagemap is None else vm.ctx_fault
        ctx = service.ctx
        range_ = vm.gpusvm.range_find_or_insert(job.fault.addr, vma.start, vma.end, ctx)
        self._count(tile, range_, "pagefault_count")
        if local_only and not range_.migrate_devmem:
            raise KernelError(errno.EACCES, f"an atomic at {job.fault.addr:#x} on memory that cannot move to VRAM")
        job.unit = RangeUnit(vm.gpusvm, range_)
        if not vm.pt.is_valid(range_, tile, service.dpagemap if local_only else None):
            return True
        self._count(tile, range_, "valid_pagefault_count")
        self._served(job)
        return False

    @staticmethod
    def _count(tile: "XeTile", range_: XeSvmRange, what: str) -> None:
        """Count something about a range of one of the sizes that are told apart."""
        size = SIZES.get(range_.end - range_.start)
        if size is not None:
            tile.stats[f"svm_{size}_{what}"] += 1

    # ---- migrate -------------------------------------------------------------------------------------------------

    def place(self, job: FaultJob) -> DrmPagemap | None:
        """Choose the memory to populate, if the range can move and is not there (xe_svm_range_needs_migrate_to_vram).

        It is where the attributes want the memory, for atomics the tile's own; a policy may say otherwise, but not of
        atomics.
        """
        service, range_ = job.scratch, job.unit.range
        if not range_.migrate_devmem:
            return None
        asked = self.policy is not None and not service.ctx.devmem_only
        dpagemap: DrmPagemap | None = super().place(job) if asked else service.dpagemap
        return dpagemap if needs_migrate_to_vram(job.vm, range_, dpagemap) else None

    def migrate(self, job: FaultJob) -> bool:
        job.tries -= 1
        if job.tries < 0:
            return True
        job.pagemap = pagemap = self.place(job)
        if pagemap is None:
            return True
        self._count(job.scratch.tile, job.unit.range, "migrate_count")
        try:
            alloc_vram(job.vm, job.unit.range, pagemap, job.timeslice_ms)
        except KernelError as error:
            job.timeslice_ms *= self._growth
            self.note("migrate_failed", job, error.errno)
            if job.scratch.ctx.devmem_only:
                if job.tries <= 0:
                    raise
                return True  # get_pages brings a mixed range to one place, so that the next try can succeed
            if self._nacks and job.tries <= 0:
                raise
            raise Restart from error  # with the tries used up the memory is mapped where it is
        job.timeslice_ms *= self._growth
        return True

    # ---- get_pages -----------------------------------------------------------------------------------------------

    def get_pages(self, job: FaultJob) -> bool:
        """Get the pages. As written, what is mapped for DMA stays, though it is VRAM and RAM is wanted."""
        gpusvm, range_, ctx = job.unit.gpusvm, job.unit.range, job.scratch.ctx
        if self._goes_home and ctx is job.vm.ctx_smem and range_.pages.has_devmem_pages:
            gpusvm.range_unmap_pages(range_, ctx)
        try:
            gpusvm.range_get_pages(range_, ctx)
        except KernelError as error:
            self.note("get_pages_failed", job, error.errno)
            if error.errno == errno.EOPNOTSUPP:
                evict_range(gpusvm, range_)
            if error.errno in MOVED:
                # As written the range stays as it is. If it spans memory that will go on refusing, because a part of it
                # was protected, every further attempt ends here again.
                hopeless = False
                if error.errno != errno.EOPNOTSUPP and self._endless_retry == "fixed":
                    if range_.end - range_.start == gpusvm.chunk_sizes[-1]:
                        job.scratch.refusals += 1  # none that fits is smaller
                        hopeless = job.scratch.refusals > _REFUSALS_MAX
                    job.vm.garbage.dismiss(range_)
                job.timeslice_ms *= self._growth
                if not hopeless and (job.tries > 0 or not ctx.devmem_only):
                    raise Restart from error
            # As written the error is dropped at the label that ends the function: the GPU is told that all is well.
            if self._acked_failure:
                self._served(job)
                return False
            raise
        return True

    # ---- bind ----------------------------------------------------------------------------------------------------

    def bind(self, job: FaultJob) -> bool:
        if not job.vm.bind(job.unit, job.scratch.tile, job.scratch.vma):
            job.timeslice_ms *= self._growth
            raise Restart
        self._served(job)
        return True
