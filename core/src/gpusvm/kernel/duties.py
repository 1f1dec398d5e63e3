"""State what the code of a driver owes to core: the rules whose breach is found while it runs.

An error that is about a driver's code ends with one of them, with the op and the line of the driver that it is about
(`gpusvm.kernel.authors`), and with the section of the documentation that says more.
"""

from typing import Final

from attrs import frozen

__all__ = ["DUTIES", "PAGE", "Duty"]

PAGE: Final = "docs/reference/driver-rules.md"
"""The page that lists them all; a rule's section there has its name."""


@frozen
class Duty:
    """Say in `text`, one sentence, what is owed; by whom: `ops`, as the contract calls them. `kernel` is where Linux
    7.3.4 has it, `mend` what to do about a breach.
    """

    name: str
    ops: str
    text: str
    kernel: str
    mend: str

    @property
    def see(self) -> str:
        """Return the place of its documentation."""
        return f"{PAGE}#{self.name}"


_ALL: Final = (
    Duty(
        "signature",
        "every op",
        "core calls an op as the contract writes it, with every argument by place or by name as it is there",
        "the prototypes in struct drm_gpusvm_ops, drm_pagemap_ops, drm_pagemap_devmem_ops",
        "Give the method the parameters of the contract, in their order; extra ones need a default.",
    ),
    Duty(
        "capability",
        "DriverInfo.capabilities",
        "every capability is declared, with yes('how') or no('why'), and what is declared is what the driver does",
        "none: what a driver can do is known in the kernel by reading it",
        "Declare it in plugin.py. What the suite skips, and what it demands, follows from these declarations.",
    ),
    Duty(
        "declaration",
        "DriverInfo and the hook",
        "a plugin says what it is by data that can be read without building anything",
        "the tables of a module: MODULE_DEVICE_TABLE, module_param",
        "See what `gpusvm drivers --check` says of the field.",
    ),
    Duty(
        "returned-value",
        "every op that returns None in the contract",
        "an op fails by raising KernelError with a positive errno, and returns what the contract says and no -errno",
        "the int of the ops, which is an errno there and an exception here",
        "Replace `return -errno.EBUSY` by `raise KernelError(errno.EBUSY, 'why')`.",
    ),
    Duty(
        "errno",
        "PagemapOps.device_map, Vm.populate, the answer to a fault",
        "an op answers with the errnos of its contract, and a program sees only those that DriverInfo.refusals states",
        "drm_gpusvm_get_pages, which hands on what device_map gave, and the driver's ioctls",
        "Raise the errno that the contract names, or state the new one, with its reason, in DriverInfo.refusals.",
    ),
    Duty(
        "devmem-consumed",
        "PagemapOps.populate_mm",
        "a Devmem that was made is handed to migrate_to_devmem, or given back by its release(): nobody else frees it",
        "drm_pagemap_migrate_to_devmem, which consumes the reference also when it fails",
        "On every way out between Devmem(…) and migrate_to_devmem(…) call devmem.release().",
    ),
    Duty(
        "pte-recheck",
        "the bind stage, FaultUnit.commit",
        "the GPU's page table is written under the lock that invalidate takes, once the sequence was found unchanged "
        "under that same lock",
        "drm_gpusvm_range_pages_valid under the notifier lock, mmu_interval_read_retry under the driver's own",
        "Write in the function that is given to unit.commit(…), and nowhere else.",
    ),
    Duty(
        "zap",
        "GpuSvmOps.invalidate, IntervalNotifierOps.invalidate",
        "when an invalidation returns, the device maps nothing of what the CPU is about to change, and its TLB "
        "has none of it",
        "xe_svm_invalidate, which zaps and flushes every range before it unmaps their pages",
        "Zap and flush all of the range that is invalidated before invalidate returns, whatever else it puts off.",
    ),
    Duty(
        "notifier-alloc",
        "GpuSvmOps.invalidate, IntervalNotifierOps.invalidate, PagemapOps.device_unmap",
        "inside an invalidation nothing is allocated and no mmap_lock is taken, by it or by anybody it waits for",
        "__mmu_notifier_invalidate_range_start and its lockdep map",
        "Note what is to be done and do it later: in the garbage collector of the next fault, or in a worker.",
    ),
    Duty(
        "atomic",
        "DevmemOps.devmem_release, DevPagemapOps.folio_free, BoMapping.free, whatever holds a spinlock",
        "nothing sleeps in atomic context: no mutex, no wait, no resume of a device, no copy",
        "might_sleep; folio_free runs under page table locks",
        "Take a spinlock, or leave the work to a worker (Bo.put_async, Workqueue.queue).",
    ),
    Duty(
        "lock-order",
        "every op",
        "locks are always taken in the same order, and given back by who took them",
        "lockdep; the order of core's locks is in docs/reference/lock-order.md",
        "Take the outer lock first, in every op.",
    ),
    Duty(
        "pm-put",
        "RuntimePmPolicy, every op that calls RuntimePm.get",
        "every runtime-PM reference is put once, by the holder that took it",
        "pm_runtime_get_sync, which takes the reference also when it fails, and pm_runtime_put_autosuspend",
        "Put it in `finally`, or use RuntimePm.awake(holder); what pages_present takes pages_gone gives back.",
    ),
    Duty(
        "dma-unmap",
        "PagemapOps.device_map and device_unmap, GpuSvmOps.invalidate, the copies",
        "what was mapped for DMA is unmapped, once, before its pages are anybody else's",
        "dma_map_page, dma_unmap_page; drm_gpusvm_range_unmap_pages",
        "Undo in device_unmap what device_map did, and call range_unmap_pages for every range of an invalidation.",
    ),
    Duty(
        "bo-put",
        "DevmemOps.devmem_release, PagemapOps.populate_mm",
        "the reference of the buffer object that its pages own is put in devmem_release, and any other by its taker",
        "xe_svm_devmem_release",
        "Put the object in devmem_release (put_async: it may be atomic there), and what populate_mm took in finally.",
    ),
    Duty(
        "zdd-put",
        "whoever takes one: page_zdd(…).kref.get(…)",
        "a reference on a zdd is put by who took it: until then its allocation is not released",
        "drm_pagemap_zdd_put",
        "Put it in finally.",
    ),
    Duty(
        "folio-put",
        "DevPagemapOps, DevmemOps, whoever calls folio_get or zone_device_folio_init",
        "a device page that was taken or made live is put, on every way out: its pagemap cannot go before",
        "folio_put, zone_device_page_init; memunmap_pages waits for all pages",
        "Unlock and put what was initialised when a later step fails; put what folio_get took in finally.",
    ),
    Duty(
        "range-remove",
        "GpuSvmOps.invalidate, Vm.close",
        "ranges and notifiers go before the address space does",
        "drm_gpusvm_range_remove, drm_gpusvm_fini",
        "Call GpuSvm.fini() in Vm.close, under the driver's lock.",
    ),
    Duty(
        "reference-put",
        "whoever takes it",
        "what was taken is given back by who took it, before the device is gone",
        "drm_pagemap_put, drm_dev_put, mmput, module_put",
        "Put it in finally, in Vm.close or in Driver.shutdown.",
    ),
    Duty(
        "copy-done",
        "DevmemOps.copy_to_devmem and copy_to_ram",
        "when a copy returns, every row of it has arrived: the engine was waited for, and the contents moved",
        "xe_svm_copy, which waits for the last fence before it returns",
        "Call copy_contents(memory, destination, source, addrs.order, addrs.npages), and wait for the engine.",
    ),
    Duty(
        "pages-named",
        "DevmemOps.populate_devmem_pfn",
        "as many pfns as pages were asked for, in the order of the addresses; those of a PMD folio are consecutive",
        "drm_pagemap_devmem_ops.populate_devmem_pfn",
        "Return one pfn a page, from the first page of the pagemap on.",
    ),
    Duty(
        "fault-answered",
        "FaultPipeline.respond, acknowledge and replay; FaultSource.submit",
        "every fault that was taken is answered once, with 0 or a positive errno: until then a compute unit stands",
        "the acknowledgement of a fault, xe_guc_pagefault_ack_fault; the replay of a fault buffer, nvif_replay",
        "Call fault.complete(errno) once, in respond or in replay.",
    ),
)

DUTIES: Final[dict[str, Duty]] = {duty.name: duty for duty in _ALL}
