"""Mistakes at the end: of a file, a process, a device, a driver, and where something began and cannot go on."""

import errno
from typing import Any, Final

from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, gone, instead
from gpusvm.errors import KernelError

__all__ = ["ENDS"]


def _not_at_the_end(guard: Any) -> Any:
    def unmap(vmm: Any, vpn: int, end_vpn: int) -> int:
        return int(guard(vmm, vpn, end_vpn)) if vpn else 0

    return unmap


def _ranges_stay_watched(svm: Any) -> None:
    for notifier in svm.notifiers():
        for range_ in list(notifier.ranges(notifier.start, notifier.end)):
            range_.pages.unmap()
    if svm.mm is not None:
        svm.mm.mmdrop()


def _well_if_gone(guard: Any) -> Any:
    def begin(pipeline: Any, job: Any) -> bool:
        svmm = pipeline._svmms[job.fault.inst]
        if svmm is not None and not svmm.mm.mm_users:
            job.errno = 0
            return False
        return bool(guard(pipeline, job))

    return begin


def _busy_or_not(guard: Any) -> Any:
    def shutdown(device: Any) -> None:
        files, device.files = device.files, {}
        try:
            guard(device)
        finally:
            device.files = files

    return shutdown


def _closes_once(guard: Any) -> Any:
    # A flag of the device in place of one of the file.
    def vm_create(device: Any, mm: Any, *, start: int, end: int) -> Any:
        if getattr(device, "_was_open", False) and not device.files:
            raise KernelError(errno.EBUSY, "it was open before")
        device._was_open = True
        return guard(device, mm, start=start, end=end)

    return vm_create


ENDS: Final = (
    BrokenDriver(
        id="entries-outlive-close",
        rule="it leaves its entries behind when a file is closed",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.vmm:Vmm.unmap", _not_at_the_end),),
    ),
    BrokenDriver(
        id="subscription-outlives-close",
        rule="it leaves its subscription behind when a file is closed",
        driver="nouveau",
        swaps=(Swap("gpusvm.mm.memory_manager:MemoryManager.mmu_notifier_unregister", gone),),
    ),
    BrokenDriver(
        id="ranges-outlive-close",
        rule="it leaves its ranges behind when a file is closed",
        driver="xe",
        swaps=(Swap("gpusvm.drm.gpusvm:GpuSvm.fini", instead(_ranges_stay_watched)),),
    ),
    BrokenDriver(
        id="no-release",
        rule="it does not hear that a process ends",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.svmm:NouveauSvmm.release", gone),),
    ),
    BrokenDriver(
        id="well-if-gone",
        rule="it answers faults of a process that has ended as if they were served",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:NouveauPipeline.begin", _well_if_gone),),
    ),
    BrokenDriver(
        id="opens-once",
        rule="it cannot be opened again when it was closed",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.device:Svmdev.vm_create", _closes_once),),
    ),
    BrokenDriver(
        id="leaves-pages-behind",
        rule="it goes without bringing home what is on the device",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.device:Svmdev.evict", gone),),
    ),
    BrokenDriver(
        id="goes-while-open",
        rule="it lets its device go while files are open",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.device:Svmdev.shutdown", _busy_or_not),),
    ),
)
"""Drivers that do not end well."""
