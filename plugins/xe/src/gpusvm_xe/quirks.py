"""The places where xe as written in 7.3 surprises, each as written or as a reviewer would want it."""

from attrs import frozen
from gpusvm.driver import Variant, quirk

__all__ = ["XeQuirks"]


@frozen(kw_only=True)
class XeQuirks:
    """Choose between xe as written and as a reviewer would want it."""

    acked_failure: Variant = quirk(
        "A get_pages error other than EOPNOTSUPP, EFAULT and EPERM is acknowledged as success; the GPU faults again",
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    hole_count: Variant = quirk(
        "Populating a PMD-sized hole moves it and still answers EBUSY, so xe evicts it and migrates it once more",
        cite="drm_pagemap.c:drm_pagemap_migrate_to_devmem; recorded on 7.3.4",
    )
    endless_retry: Variant = quirk(
        "A fault on a range of which a part was write-protected or made inaccessible is tried again for ever, the VM's "
        "lock held; fixed, the range is removed, and one that fits is made, or the fault refused if none does",
        cite="xe_svm.c:__xe_svm_handle_pagefault",
    )
    evict_dying: Variant = quirk(
        "An object whose process is ending answers EFAULT to eviction, which ends the walk for room of others as well",
        cite="drm_pagemap.c:drm_pagemap_evict_to_ram; ttm_bo.c:ttm_bo_evict_cb",
    )
    evict_all_stops: Variant = quirk(
        "One object that cannot be evicted keeps all behind it in VRAM when the device goes away or the system sleeps",
        cite="ttm_resource.c:ttm_resource_manager_evict_all; xe_bo_evict.c:xe_bo_pci_dev_remove_all",
    )
    sleep_race: Variant = quirk(
        "Before system sleep faults are served until after the last eviction: what they bring to VRAM is lost with it",
        cite="xe_pm.c:xe_pm_suspend, whose comment calls it racy",
    )
    not_detached: Variant = quirk(
        "An object that a failed populate leaves behind is busy until a worker frees it: what evicts everything "
        "meanwhile fails, the system's sleep, say",
        cite="drm_pagemap.c:drm_pagemap_migrate_to_devmem, drm_pagemap_evict_to_ram",
    )
    ioctl_unplug: Variant = quirk(
        "An unplug does not wait for ioctls that have begun: one that makes a VM may look for its pagemap in a "
        "cache that is freed, and make one that nobody takes away",
        cite="drm_ioctl.c:drm_ioctl_kernel; xe_device.c:xe_drm_ioctl; xe_svm.c:xe_pagemap_create",
    )
    devmem_mm: Variant = quirk(
        "An object points to the address space that its pages were for, without a reference: eviction may ask it after "
        "it was freed",
        cite="drm_pagemap.c:drm_pagemap_devmem_init, drm_pagemap_evict_to_ram",
    )
    pagemap_freed: Variant = quirk(
        "Whoever puts the last reference on a pagemap between unplug and the release of the device's resources frees "
        "the dev_pagemap that these have still to unmap",
        cite="xe_svm.c:xe_pagemap_destroy_work; drm_pagemap_util.c:drm_pagemap_shrinker_add",
    )
    create_unwind: Variant = quirk(
        "A pagemap that cannot be made is unwound, and then destroyed as if it had been made: its owner is given back "
        "twice",
        cite="xe_svm.c:xe_pagemap_create, xe_pagemap_destroy_work",
    )
    smem_stays: Variant = quirk(
        "Memory that is mapped in VRAM when RAM becomes its preferred location is mapped there again by the next "
        "fault: its DMA mapping is still valid, so get_pages does not look for its pages",
        cite="xe_vm_madvise.c:xe_zap_ptes_in_madvise_range; drm_gpusvm.c:drm_gpusvm_get_pages",
    )
    same_fd: Variant = quirk(
        "Another region of the device that is the preferred location already is taken for no change",
        cite="xe_vm_madvise.c:madvise_preferred_mem_loc",
    )
    last_fault_vma: Variant = quirk(
        "A fault that collects garbage remembers the VMA that it began with, for the next lookup, though resetting "
        "attributes may have freed that",
        cite="xe_pagefault.c:xe_pagefault_service; xe_svm.c:xe_svm_handle_pagefault",
    )
    reset_beyond: Variant = quirk(
        "Looking for a neighbour to merge with begins one byte beyond it, so that the one after it may be found, and "
        "the attributes between are lost",
        cite="xe_vm.c:xe_vm_find_cpu_addr_mirror_vma_range",
    )
    shrinker_forgets: Variant = quirk(
        "A shrinker that frees an unused pagemap may drop one in use from the cache: the next VM makes a second",
        cite="drm_pagemap_util.c:drm_pagemap_shrinker_scan",
    )
