"""drivers/gpu/drm/xe/xe_pm.c, as of Linux 7.3.4: which runtime-PM reference xe holds for what, and how it sleeps.

* A call (populate, ioctl, turn of a fault worker) holds one while it runs, and wakes the device for it.
* Each buffer object holds one from just before its pages enter an address space until the last of them is gone.
* Each VM holds one for its life.
* Inside those, for as long as each takes: moving an object, each job of the blitter, each fence of a TLB invalidation,
  and the GuC's messages that wait for a reply.
* The time of a system sleep holds one, from before user space is frozen until after it goes on.

The copy hooks, the CPU-fault path and the notifier wake nobody: they rely on the references of the buffer object and
the VM.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from gpusvm.drm import D3COLD, Awake, RuntimePm
from gpusvm.errors import KernelError

if TYPE_CHECKING:
    from gpusvm.driver import Host

    from gpusvm_xe.driver import XeDriver
    from gpusvm_xe.vm import XeVm

__all__ = ["XeRuntimePm"]

_MIB: Final = 1 << 20


class XeRuntimePm:
    """Hold xe's references; it is the `RuntimePmPolicy` and the callbacks of the device's `RuntimePm`."""

    def __init__(self, driver: "XeDriver", host: "Host") -> None:
        tunables = host.tunables
        self._driver = driver
        self._d3cold_capable = host.device.d3cold_capable
        self._threshold_mib = tunables.d3cold_mib
        self._races = host.quirks.sleep_race == "as_written"
        rpm = self.rpm = RuntimePm(
            host.kernel, host.device.name, autosuspend_ms=tunables.autosuspend_ms, callbacks=self
        )
        self._populate = rpm.awake("populate_mm")
        self._ioctl = rpm.awake("ioctl")
        self._fault = rpm.awake("pagefault")
        self._move = rpm.inner("bo_move") if self._d3cold_capable else rpm.awake("bo_move")
        self.job = rpm.inner("job")
        self.tlb_inval = rpm.inner("tlb_inval")
        self.guc_ct = rpm.inner("guc_ct")

    def populate(self) -> Awake:
        return self._populate

    def ioctl(self) -> Awake:
        return self._ioctl

    def fault(self) -> Awake:
        return self._fault

    def pages_present(self, bo: Any) -> None:
        """Take the reference that the pages own (xe_pm_runtime_get_noresume in xe_drm_pagemap_populate_mm)."""
        self.rpm.get_noresume("bo", bo)

    def pages_gone(self, bo: Any) -> None:
        """Give it back (xe_svm_devmem_release)."""
        self.rpm.put("bo", bo)

    def bo_move(self) -> AbstractContextManager[None]:
        """Surround a move of an object, which may wake the device where no memory has to be moved for that
        (xe_bo_move, xe_rpm_reclaim_safe). The eviction of SVM's objects goes another way.
        """
        return self._move

    def vm_open(self, vm: "XeVm") -> None:
        """Take the reference of a fault-mode VM (xe_vm_create)."""
        self.rpm.get_noresume("vm", vm)

    def vm_close(self, vm: "XeVm") -> None:
        """Give it back (vm_destroy_work_func)."""
        self.rpm.put("vm", vm)

    # ---- system sleep --------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Bring what is in VRAM home while user space runs still; what cannot go is left to `suspend`
        (xe_pm_notifier_callback).
        """
        self.rpm.get("system_sleep")
        self._driver.evict()

    def suspend(self) -> None:
        """Evict again, stop the GPU, and power the device off (xe_pm_suspend). What ended the eviction is raised.

        As written faults are served between the two, and what they bring to VRAM is lost with it.
        """
        queues = self._driver.queues
        if not self._races:
            queues.pause()
        try:
            self._driver.evict_all()
        except KernelError:
            if not self._races:
                queues.unpause()
            raise
        if self._races:
            queues.pause()
        self.rpm.excuse = "sleep_race" if self._races else None
        self.rpm.power_off(D3COLD)

    def resume(self) -> None:
        """Let the GPU go on, which faults for what it needs: nothing of SVM's is restored (xe_pm_resume)."""
        self.rpm.power_on()
        self.rpm.excuse = None
        self._driver.queues.unpause()

    def complete(self) -> None:
        """Give back what `prepare` took (xe_pm_notifier_callback)."""
        self.rpm.put("system_sleep")

    # ---- PmCallbacks ---------------------------------------------------------------------------------------------

    def runtime_idle(self) -> None:
        """Allow D3cold if less than the threshold is in use, each tile in whole MiB (xe_pm_d3cold_allowed_toggle)."""
        used_mib = sum((tile.vram.bos.used_bytes + _MIB - 1) // _MIB for tile in self._driver.tiles)
        self.rpm.d3cold_allowed = self._d3cold_capable and used_mib < self._threshold_mib

    def runtime_suspend(self, state: str) -> None:
        """Save VRAM where it loses power (xe_pm_runtime_suspend): no page of a process is there any more."""
        if state is D3COLD:
            self._driver.evict_all()

    def runtime_resume(self, state: str) -> None:
        """Nothing to restore: what a process had is in RAM (xe_pm_runtime_resume)."""
