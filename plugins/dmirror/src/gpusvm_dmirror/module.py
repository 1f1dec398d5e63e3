"""lib/test_hmm.c:hmm_dmirror_init, as of Linux 7.3.4: the module, with its two or four devices."""

import errno
from typing import TYPE_CHECKING

from gpusvm.driver import DeviceSpec, Host
from gpusvm.errors import KernelError
from gpusvm.gpu import Link

from gpusvm_dmirror.device import DmirrorDevice
from gpusvm_dmirror.tunables import DmirrorQuirks, DmirrorTunables

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel
    from gpusvm.mm.api import MemoryManagerApi, MmApi

    from gpusvm_dmirror.mirror import Dmirror

__all__ = ["HmmDmirror"]


class HmmDmirror:
    """Load the module: minors 0 and 1 have device-private memory; 2 and 3 coherent memory, if there is some for both.

    `spm_addr_dev0` and `spm_addr_dev1` are the module's parameters: physical addresses of special-purpose memory, one
    chunk each, outside RAM; minor 2 takes the second. `devices` are the `DmirrorDevice`s by minor. Raises what
    memremap_pages refuses a device's first chunk with (ENXIO: system RAM lies there).
    """

    def __init__(
        self,
        kernel: "Kernel",
        memory: "MemoryManagerApi",
        *,
        spm_addr_dev0: int = 0,
        spm_addr_dev1: int = 0,
        tunables: DmirrorTunables | None = None,
        quirks: DmirrorQuirks | None = None,
    ) -> None:
        self.devices: list[DmirrorDevice] = []
        spm: list[int | None] = [None, None]
        if spm_addr_dev0 and spm_addr_dev1:
            # dmirror_allocate_chunk takes the parameters crosswise.
            spm += [addr >> memory.geometry.page_shift for addr in (spm_addr_dev1, spm_addr_dev0)]
        tunables = tunables or DmirrorTunables()
        try:
            for minor, start in enumerate(spm):
                name = f"hmm_dmirror{minor}"
                host = Host(
                    kernel=kernel,
                    memory=memory,
                    device=DeviceSpec(name=name, vram_bytes=tunables.chunk_bytes, index=minor),
                    link=Link(kernel, f"{name} link"),
                    tunables=tunables,
                    quirks=quirks or DmirrorQuirks(),
                )
                self.devices.append(DmirrorDevice(host, spm=start))
        except KernelError:
            self.unload()
            raise

    def open(self, minor: int, mm: "MmApi") -> "Dmirror":
        """Open /dev/hmm_dmirrorN in the process of `mm` (dmirror_fops_open). ENXIO: no such device; ENOMEM, or what
        mmu_interval_notifier_insert returns.
        """
        if not 0 <= minor < len(self.devices):
            raise KernelError(errno.ENXIO, f"there is no device {minor}")
        return self.devices[minor].vm_create(mm, start=0, end=1 << 47)

    def unload(self) -> None:
        """Remove the module: its devices return their chunks (hmm_dmirror_exit).

        EAGAIN, which is EWOULDBLOCK, while a file is open, which holds the module.
        """
        files = sum(len(device.files) for device in self.devices)
        if files:
            raise KernelError(errno.EAGAIN, f"{files} files of the module are open")
        for device in self.devices:
            device.shutdown()
        self.devices.clear()
