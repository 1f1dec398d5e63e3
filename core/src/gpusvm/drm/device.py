"""drivers/gpu/drm/drm_drv.c, as of Linux 7.3.4: a DRM device, and its end while it is in use."""

from collections.abc import Callable
from errno import ENODEV
from typing import TYPE_CHECKING

from gpusvm.drm.dma import DmaDevice
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel, Kref, Module

if TYPE_CHECKING:
    from gpusvm.drm.runtime_pm import RuntimePm


class DrmDevice:
    """Be one device (struct drm_device with its struct device): `dma` maps system memory for it, `pm` is its runtime
    PM, if any, `module` the code of its driver (drm->driver->fops->owner), None where that is built into the kernel.
    Without a `dma` of its own it gets one, behind an IOMMU or not.

    References are counted, each under its holder in the ledger as "drm_dev". What must not run on hardware that is
    gone stands between dev_enter and dev_exit. What a driver acquires for the life of its device is undone when that is
    removed (devm), and what has to stay for its last users when the last reference goes (drmm).
    """

    __slots__ = ("_devres", "_drmres", "_kref", "_srcu", "dma", "kernel", "module", "name", "pm", "unplugged")

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        *,
        pm: "RuntimePm | None" = None,
        dma: DmaDevice | None = None,
        iommu: bool = False,
        module: Module | None = None,
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.pm = pm
        self.module = module
        self.dma = dma if dma is not None else DmaDevice(kernel, name, iommu=iommu)
        self.unplugged = False
        self._devres: list[Callable[[], object]] = []
        self._drmres: list[Callable[[], object]] = []
        self._srcu = kernel.srcu("drm_unplug_srcu")
        self._kref = Kref(kernel, "drm_dev", self._release, holder="driver")

    def __repr__(self) -> str:
        return f"<DrmDevice {self.name!r}>"

    def dev_enter(self) -> int:
        """Enter a section that unplug waits for (drm_dev_enter); the cookie for dev_exit. ENODEV after unplug."""
        idx = self._srcu.read_lock()
        if self.unplugged:
            self._srcu.read_unlock(idx)
            raise KernelError(ENODEV, f"{self.name} is unplugged")
        return idx

    def dev_exit(self, cookie: int) -> None:
        """Leave the section (drm_dev_exit)."""
        self._srcu.read_unlock(cookie)

    def unplug(self) -> None:
        """Let no new section begin and wait for those that run (drm_dev_unplug)."""
        self.unplugged = True
        self._srcu.synchronize()

    def devm_add_action(self, action: Callable[[], object]) -> None:
        """Have `action` called when the device is removed, before those that were added earlier (devm_add_action)."""
        self._devres.append(action)

    def devm_release_action(self, action: Callable[[], object]) -> None:
        """Call an action now, and not again (devm_release_action); a warning if it is not there."""
        if action in self._devres:
            self._devres.remove(action)
            action()
        else:
            self.kernel.warn("devm_release_action", f"{self.name} releases what it has not acquired")

    def devres_release_all(self) -> None:
        """Undo what is left, the last first (devres_release_all)."""
        while self._devres:
            self._devres.pop()()

    def drmm_add_action(self, action: Callable[[], object]) -> None:
        """Have `action` called when the last reference is gone, before those that were added earlier
        (drmm_add_action).
        """
        self._drmres.append(action)

    def get(self, holder: object) -> None:
        """Take a reference (drm_dev_get)."""
        self._kref.get(holder)

    def put(self, holder: object = "driver") -> None:
        """Drop a reference (drm_dev_put); the driver's own, taken at creation, without a name."""
        self._kref.put(holder)

    @property
    def refcount(self) -> int:
        """Return how many references there are."""
        return self._kref.count

    def _release(self) -> None:
        if self.kernel.tracer.on:
            self.kernel.tracer.emit("drm_dev_release", self.name)
        while self._drmres:
            self._drmres.pop()()
        self.kernel.free(self)
