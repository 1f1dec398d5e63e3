"""drivers/gpu/drm/xe/xe_pm.c, as of Linux 7.3.4: which runtime-PM reference xe holds for what.

* A call (populate, ioctl, turn of a fault worker) holds one while it runs, and wakes the device for it.
* Each buffer object holds one from just before its pages enter an address space until the last of them is gone.
* Each VM holds one for its life.

The copy hooks, the CPU-fault path and the notifier take none: they rely on the references of the buffer object and
the VM.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpusvm.drm import Awake, RuntimePm

if TYPE_CHECKING:
    from gpusvm.driver import Host

    from gpusvm_xe.tile import XeTile

__all__ = ["XeRuntimePm"]


class XeRuntimePm:
    """Hold xe's references; it is the `RuntimePmPolicy` and the callbacks of the device's `RuntimePm`."""

    def __init__(self, host: "Host", tiles: "Sequence[XeTile]") -> None:
        tunables = host.tunables
        self._tiles = tiles
        self.rpm = RuntimePm(
            host.kernel,
            host.device.name,
            autosuspend_ms=tunables.autosuspend_ms,
            d3cold_threshold_bytes=tunables.d3cold_mib << 20 if host.device.d3cold_capable else 0,
            callbacks=self,
        )
        self._populate = self.rpm.awake("populate_mm")
        self._ioctl = self.rpm.awake("ioctl")
        self._fault = self.rpm.awake("pagefault")

    def populate(self) -> Awake:
        return self._populate

    def ioctl(self) -> Awake:
        return self._ioctl

    def fault(self) -> Awake:
        return self._fault

    def pages_present(self, bo: Any) -> None:
        """Take the reference that the pages own (xe_pm_runtime_get_noresume in xe_drm_pagemap_populate_mm)."""
        self.rpm.get_noresume("bo")

    def pages_gone(self, bo: Any) -> None:
        """Give it back (xe_svm_devmem_release)."""
        self.rpm.put("bo")

    def vm_open(self) -> None:
        """Take the reference of a fault-mode VM (xe_vm_create)."""
        self.rpm.get_noresume("vm")

    def vm_close(self) -> None:
        """Give it back (vm_destroy_work_func)."""
        self.rpm.put("vm")

    def suspend(self) -> None:
        """Nothing to save: no page is in VRAM while the device may sleep."""

    def resume(self) -> None:
        """Nothing to restore."""

    # ---- PmCallbacks ---------------------------------------------------------------------------------------------

    def runtime_suspend(self, state: str) -> None:
        self.suspend()

    def runtime_resume(self, state: str) -> None:
        self.resume()

    def vram_used_bytes(self) -> int:
        return sum(tile.vram.bos.used_bytes for tile in self._tiles)
