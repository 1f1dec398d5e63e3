"""drivers/gpu/drm/amd/amdkfd/kfd_process.c, as of Linux 7.3.4: each process keeps each of its GPUs awake, for its life.

Neither pages nor calls hold a reference of their own: none is in VRAM, as a rule, when no process is there.
"""

from contextlib import AbstractContextManager, nullcontext
from errno import EBUSY, ENOMEM
from typing import TYPE_CHECKING, Any, Final

from gpusvm.drm import D3HOT, RuntimePm
from gpusvm.errors import KernelError

from gpusvm_kfd.home import evacuate

if TYPE_CHECKING:
    from gpusvm.driver import Host

    from gpusvm_kfd.device import KfdDevice

__all__ = ["ProcessPm"]

_NOTHING: Final = nullcontext()


class ProcessPm:
    """Hold kfd's references; it is the `RuntimePmPolicy` and the callbacks of the device's `RuntimePm`."""

    def __init__(self, host: "Host", device: "KfdDevice") -> None:
        self._device = device
        self.rpm = RuntimePm(
            host.kernel,
            host.device.name,
            autosuspend_ms=host.tunables.autosuspend_ms,
            d3cold_allowed=host.device.d3cold_capable,
            callbacks=self,
        )

    def process_came(self) -> None:
        """Wake the GPU and keep it awake (kfd_bind_process_to_device). Sleeps."""
        self.rpm.get("process_device")

    def process_went(self) -> None:
        """Give the reference back (kfd_process_destroy_pdds)."""
        self.rpm.put("process_device")

    def populate(self) -> AbstractContextManager[None]:
        return _NOTHING

    def pages_present(self, bo: Any) -> None:
        """Pages hold no reference."""

    def pages_gone(self, bo: Any) -> None:
        """Nothing to give back."""

    def ioctl(self) -> AbstractContextManager[None]:
        return _NOTHING

    def fault(self) -> AbstractContextManager[None]:
        return _NOTHING

    def prepare(self) -> None:
        """Nothing: amdgpu hears of system sleep when user space is frozen."""

    def suspend(self) -> None:
        """Bring what is in VRAM home and let the GPU sleep with the system.

        What Linux does was not followed: it moves objects away before sleep, and SVM's are discardable. ENOMEM: pages
        stay in VRAM.
        """
        device = self._device
        self.rpm.get("system_sleep")
        device.queues.pause()
        device.queues.flush()
        evacuate(device)
        left = sum(int(bo.container.live.sum()) for bo in device.bos.lru() if bo.container is not None)
        if left:
            device.queues.unpause()
            self.rpm.put("system_sleep")
            raise KernelError(ENOMEM, f"{left} pages stay in the VRAM of {device.device.name}")
        self.rpm.power_off(D3HOT)

    def resume(self) -> None:
        """Wake it with the system."""
        self.rpm.power_on()
        self._device.queues.unpause()
        self.rpm.put("system_sleep")

    def complete(self) -> None:
        """Nothing to give back."""

    # ---- PmCallbacks ---------------------------------------------------------------------------------------------

    runtime_idle = None

    def runtime_suspend(self, state: str) -> None:
        """Refuse with pages in VRAM, which a process that has ended may leave to another. EBUSY."""
        if self._device.bos.live:
            raise KernelError(EBUSY, f"{self._device.bos.live} objects of {self._device.device.name} are in VRAM")

    def runtime_resume(self, state: str) -> None:
        """Nothing to restore."""
