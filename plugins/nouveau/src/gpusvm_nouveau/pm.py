"""drivers/gpu/drm/nouveau/nouveau_drm.c, as of Linux 7.3.4: runtime PM around ioctls, and nowhere else.

No chunk, page, fault or copy holds a reference. The device may suspend while its pages are part of an address space:
the chunks' buffer objects then move to system memory as objects, and the CPU's page tables keep naming device pages.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from gpusvm.drm import D0, D3HOT, RuntimePm

if TYPE_CHECKING:
    from gpusvm.driver import Host

    from gpusvm_nouveau.device import NouveauDevice

__all__ = ["IoctlPm"]

_NOTHING = nullcontext()


class IoctlPm:
    """Hold nouveau's references; it is the `RuntimePmPolicy` and the callbacks of the device's `RuntimePm`.

    `sleeping_copies` counts copies queued while the device was suspended.
    """

    def __init__(self, host: "Host", device: "NouveauDevice") -> None:
        self.device = device
        self.sleeping_copies = 0
        self.rpm = RuntimePm(
            host.kernel,
            host.device.name,
            autosuspend_ms=host.tunables.autosuspend_ms,
            # Suspend leaves nothing in VRAM, so D3cold is always allowed where the board can do it.
            d3cold_allowed=host.device.d3cold_capable,
            callbacks=self,
        )
        self._ioctl = self.rpm.awake("ioctl")
        self._copy = self.rpm.awake("migrate_to_ram")
        self._fixed = device.quirks.sleeping_copy == "fixed"

    @property
    def asleep(self) -> bool:
        """Tell whether the device is suspended."""
        return self.rpm.state is not D0

    def populate(self) -> AbstractContextManager[None]:
        """Hold one for the call: in nouveau the ioctl around it does."""
        return self._ioctl

    def pages_present(self, bo: Any) -> None:
        """Pages hold no reference."""

    def pages_gone(self, bo: Any) -> None:
        """Nothing to give back."""

    def ioctl(self) -> AbstractContextManager[None]:
        """Hold one for the time of the ioctl (nouveau_drm_ioctl)."""
        return self._ioctl

    def fault(self) -> AbstractContextManager[None]:
        """Hold none: the fault worker relies on whoever launched the work."""
        return _NOTHING

    def fault_raised(self) -> None:
        """Wake the device if it sleeps: what faults was launched by an ioctl. As written it may sleep again at once.

        To wake it in a CPU fault, as the quirk sleeping_copy fixed does, under mmap_lock, is to wait for a suspend,
        which waits for the fault worker, which wants mmap_lock; so every fault holds a reference then.
        """
        if self._fixed:
            self.rpm.get("fault")
        elif self.asleep:
            with self._ioctl:
                pass

    def fault_answered(self) -> None:
        """Give back what `fault_raised` has taken."""
        if self._fixed:
            self.rpm.put("fault")

    def cpu_fault(self) -> AbstractContextManager[None]:
        """Surround the copy of a CPU fault: as written it wakes nobody."""
        if self._fixed:
            return self._copy
        if self.asleep:
            self.sleeping_copies += 1
            tracer = self.device.kernel.tracer
            if tracer.on:
                tracer.emit("copy_while_suspended", self.rpm.name)
        return _NOTHING

    def prepare(self) -> None:
        """Nothing: nouveau hears of system sleep when user space is frozen."""

    def suspend(self) -> None:
        """Wake the device, as the PCI core does, take its fault worker away and let it sleep with the system
        (nouveau_pmops_suspend).
        """
        self.rpm.get("system_sleep")
        self.device.queues.pause()
        self._suspend()
        self.rpm.power_off(D3HOT)

    def resume(self) -> None:
        """Wake it with the system (nouveau_pmops_resume)."""
        self.rpm.power_on()
        self.device.dmem.resume()
        self.device.queues.unpause()
        self.rpm.put("system_sleep")

    def complete(self) -> None:
        """Nothing to give back."""

    def _suspend(self) -> None:
        """Stop the fault worker, unpin the chunks and let TTM move them away (nouveau_do_suspend)."""
        self.device.queues.flush()
        self.device.dmem.suspend()

    # ---- PmCallbacks ---------------------------------------------------------------------------------------------

    runtime_idle = None  # nouveau_pmops_runtime_idle only asks for autosuspend

    def runtime_suspend(self, state: str) -> None:
        self._suspend()

    def runtime_resume(self, state: str) -> None:
        """Bring the chunks back and pin them (nouveau_dmem_resume); GPU entries are not written anew."""
        self.device.dmem.resume()
