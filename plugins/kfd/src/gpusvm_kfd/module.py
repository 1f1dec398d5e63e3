"""drivers/gpu/drm/amd/amdkfd/kfd_module.c and kfd_topology.c, as of Linux 7.3.4: what all GPUs of a machine share."""

from typing import TYPE_CHECKING

from gpusvm_kfd.process import KfdProcess
from gpusvm_kfd.svm_range import bits

if TYPE_CHECKING:
    from gpusvm.driver import Host
    from gpusvm.drm import DrmPagemap
    from gpusvm.mm.api import MmApi

    from gpusvm_kfd.device import KfdDevice
    from gpusvm_kfd.tunables import KfdQuirks, KfdTunables

__all__ = ["Kfd"]


class Kfd:
    """Know the processes, by address space, and the GPUs, by number. The settings are those of the first GPU.

    The queues are Linux's one for everybody, which runs works next to each other.
    """

    def __init__(self, host: "Host") -> None:
        kernel = host.kernel
        self.kernel = kernel
        self.memory = host.memory
        self.tunables: KfdTunables = host.tunables
        self.quirks: KfdQuirks = host.quirks
        self.exact = self.quirks.evict_leftovers == "fixed"
        self.pmd_pages = host.memory.geometry.pmd_nr
        self.devices: dict[int, KfdDevice] = {}
        self._processes: list[KfdProcess] = []  # listed: found by their address space
        self._all: list[KfdProcess] = []
        self._lock = kernel.mutex("kfd_processes_mutex")
        self._pasids = 0
        self.deferred_queue = kernel.workqueue("svm_deferred")
        self.restore_queue = kernel.workqueue("svm_restore")
        self.release_queue = kernel.workqueue("svm_bo_release")
        self.process_queue = kernel.workqueue("kfd_process_wq")

    # ---- processes -----------------------------------------------------------------------------------------------

    def create_process(self, mm: "MmApi") -> KfdProcess:
        """Return the process of an address space, which the caller's file holds (kfd_create_process)."""
        with self._lock:
            for process in self._processes:
                if process.mm is mm and process.kref.get_unless_zero("file"):
                    return process
            process = KfdProcess(self, mm)
            process.kref.get("file")
            self.memory.mmu_notifier_register(process, mm)
            self.kernel.gauges.inc("notifier")
            self._processes.append(process)
            return process

    def lookup_by_mm(self, mm: "MmApi") -> KfdProcess | None:
        """Find a process and hold it (kfd_lookup_process_by_mm)."""
        self.kernel.touch((self, "processes"), write=False)
        for process in self._processes:
            if process.mm is mm and process.kref.get_unless_zero("lookup"):
                return process
        return None

    def is_listed(self, process: KfdProcess) -> bool:
        """Tell whether a process is found."""
        self.kernel.touch((self, "processes"), write=False)
        return process in self._processes

    def unlist(self, process: KfdProcess) -> None:
        """Let it be found no more (kfd_process_table_remove)."""
        self.kernel.touch((self, "processes"))
        if process in self._processes:
            self._processes.remove(process)

    def new_pasid(self) -> int:
        """Return a number for a process on a GPU (amdgpu_pasid_alloc)."""
        self._pasids += 1
        return self._pasids

    # ---- GPUs ----------------------------------------------------------------------------------------------------

    def same_hive(self, gpu: int, other: int) -> bool:
        """Tell whether two GPUs reach each other's memory (svm_nodes_in_same_hive)."""
        return gpu == other or self.devices[gpu].owner is self.devices[other].owner

    def common_owner(self, gpus: int) -> object | None:
        """Return the owner whose pages all these GPUs may map, None if they have several (kfd_svm_page_owner)."""
        owners = [self.devices[gpu].owner for gpu in bits(gpus)]
        return owners[0] if all(owner is owners[0] for owner in owners) else None

    def by_owner(self) -> "list[KfdDevice]":
        """Return one GPU of each owner."""
        found: list[KfdDevice] = []
        for device in self.devices.values():
            if all(device.owner is not other.owner for other in found):
                found.append(device)
        return found

    def max_range_pages(self) -> int:
        """Return how large a range is made at most, in pages (svm_range_set_max_pages)."""
        shift = self.memory.geometry.page_shift
        least, most = self.tunables.range_min >> shift, self.tunables.range_max >> shift
        smallest = min(device.pages for device in self.devices.values())
        wanted = min(max(smallest >> 5, least), most)
        return 1 << wanted.bit_length() - 1

    def device_of(self, pagemap: "DrmPagemap") -> "KfdDevice | None":
        """Return the GPU of a pagemap, None if it is another driver's."""
        container = pagemap.pagemap.container
        return container if container in self.devices.values() else None
