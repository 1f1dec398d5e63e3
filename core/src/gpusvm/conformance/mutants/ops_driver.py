"""Drivers that break one rule of the ops of drm_gpusvm and drm_pagemap each."""

from errno import EDOM
from typing import Any, Final

import numpy as np

from gpusvm.conformance.mutants.mutant import gone
from gpusvm.conformance.mutants.ops_breach import another_errno, broken
from gpusvm.errors import KernelError
from gpusvm.mm.api import MMU_NOTIFY_UNMAP

__all__ = ["DRIVERS_HALF"]

_MEMORY: Final = "gpusvm_svmdev.memory:SvmdevMemory"
_DEVICE: Final = "gpusvm_svmdev.device:Svmdev"
_FILE: Final = "gpusvm_svmdev.file:SvmdevFile"
_GPUSVM: Final = "gpusvm.drm.gpusvm:GpuSvm"


def _always_the_first(_guard: Any) -> Any:
    def populate_devmem_pfn(vram: Any, _devmem: Any, npages: int) -> Any:
        return np.arange(vram.first_pfn, vram.first_pfn + npages, dtype=np.int64)

    return populate_devmem_pfn


def _backwards_the_second_time(guard: Any) -> Any:
    asked: set[int] = set()

    def populate_devmem_pfn(vram: Any, devmem: Any, npages: int) -> Any:
        pfns = guard(vram, devmem, npages)
        again = id(devmem) in asked
        asked.add(id(devmem))
        return pfns[::-1].copy() if again else pfns

    return populate_devmem_pfn


def _sleeps(guard: Any) -> Any:
    def release(vram: Any, devmem: Any) -> None:
        vram.kernel.might_sleep()
        guard(vram, devmem)

    return release


def _with_one_address(guard: Any) -> Any:
    def device_map(*args: Any) -> Any:
        addrs, protos = guard(*args)
        return np.zeros_like(addrs), np.zeros_like(protos)

    return device_map


def _returns_something(guard: Any) -> Any:
    def populate_mm(*args: Any) -> int:
        guard(*args)
        return 1

    return populate_mm


def _needs_a_file(guard: Any) -> Any:
    def populate_mm(device: Any, dpagemap: Any, start: int, end: int, mm: Any, timeslice_ms: int) -> None:
        if not any(file.mm is mm for file in device.files.values()):
            raise KernelError(EDOM, "nobody has opened the device there")
        guard(device, dpagemap, start, end, mm, timeslice_ms)

    return populate_mm


def _goes_on_refused(guard: Any) -> Any:
    def migrate(pipeline: Any, job: Any) -> bool:
        job.pagemap = pagemap = pipeline.place(job)
        if pagemap is not None:
            pagemap.populate_mm(job.unit.range.start, job.unit.range.end, job.vm.mm, 0)
        return True

    return migrate


def _removes_in_the_notifier(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        guard(file, gpusvm, notifier, mmu_range)
        for range_ in list(notifier.ranges(mmu_range.start, mmu_range.end)):
            notifier.remove(range_)

    return invalidate


def _keeps_the_mapping(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        for range_ in notifier.ranges(mmu_range.start, mmu_range.end):
            file.page_table.unmap(range_.start >> file._page_shift, range_.end >> file._page_shift)

    return invalidate


def _all_is_unmapped(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        guard(file, gpusvm, notifier, mmu_range)
        for range_ in notifier.ranges(mmu_range.start, mmu_range.end):
            range_.unmapped = mmu_range.event != MMU_NOTIFY_UNMAP

    return invalidate


def _whole_window(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        mmu_range.start, mmu_range.end = notifier.start, notifier.end
        guard(file, gpusvm, notifier, mmu_range)

    return invalidate


DRIVERS_HALF: Final = (
    broken(
        "pages-in-use",
        "it names pages that are in use",
        "svmdev",
        (f"{_MEMORY}.populate_devmem_pfn", _always_the_first),
    ),
    broken(
        "other-pages",
        "it names its pages in another order when it is asked again",
        "svmdev",
        (f"{_MEMORY}.populate_devmem_pfn", _backwards_the_second_time),
    ),
    broken("copies-elsewhere", "it fills nothing (copy_to_devmem)", "svmdev", (f"{_MEMORY}.copy_to_devmem", gone)),
    broken("brings-nothing", "it brings nothing home (copy_to_ram)", "svmdev", (f"{_MEMORY}.copy_to_ram", gone)),
    broken("release-sleeps", "it sleeps in devmem_release", "svmdev", (f"{_MEMORY}.devmem_release", _sleeps)),
    broken(
        "one-address",
        "it gives all device pages one address, of system memory",
        "svmdev",
        (f"{_DEVICE}.device_map", _with_one_address),
    ),
    broken(
        "populate-returns",
        "it returns something from populate_mm",
        "svmdev",
        (f"{_DEVICE}.populate_mm", _returns_something),
    ),
    broken(
        "needs-a-file",
        "it populates for those only who have the device open",
        "svmdev",
        (f"{_DEVICE}.populate_mm", _needs_a_file),
    ),
    broken(
        "refuses-faults",
        "it refuses a fault whose memory cannot come to the device",
        "svmdev",
        ("gpusvm_svmdev.faults:SvmdevFaults.migrate", _goes_on_refused),
    ),
    broken(
        "own-errno",
        "it answers a request with an errno that it does not state",
        "svmdev",
        ("gpusvm_svmdev.commands:SvmdevCommands.populate", another_errno),
    ),
    broken(
        "removes-in-notifier",
        "it removes a range in a notifier",
        "svmdev",
        (f"{_FILE}.invalidate", _removes_in_the_notifier),
    ),
    broken(
        "keeps-mapping",
        "it keeps what is mapped for DMA when that is invalidated",
        "svmdev",
        (f"{_FILE}.invalidate", _keeps_the_mapping),
    ),
    broken(
        "marks-wrongly",
        "it marks ranges as unmapped that are not, and others not",
        "svmdev",
        (f"{_FILE}.invalidate", _all_is_unmapped),
    ),
    broken(
        "whole-window", "it invalidates all of a notifier's window", "svmdev", (f"{_FILE}.invalidate", _whole_window)
    ),
    broken("no-collector", "it does not remove ranges whose memory was unmapped", "svmdev", (f"{_FILE}.collect", gone)),
    broken("no-driver-lock", "it names no lock for its ranges", "svmdev", (f"{_GPUSVM}.driver_set_lock", gone)),
    broken(
        "unplug-unseen",
        "it answers a populate of a device that is gone with an errno of its own",
        "xe",
        ("gpusvm.drm.device:DrmDevice.dev_enter", another_errno),
    ),
)
