"""Say which surprises of Linux 7.3.4's drm_gpusvm and drm_pagemap the model repeats."""

from typing import Final, Literal

from attrs import frozen

Variant = Literal["as_written", "fixed"]


@frozen(kw_only=True)
class DrmQuirks:
    """Choose, surprise by surprise, between what 7.3.4 does and what a reviewer would want."""

    hole_count: Variant = "as_written"
    """drm_pagemap.c:drm_pagemap_migrate_to_devmem counts a compound hole as one page when it checks what moved, so
    populating a PMD in which nothing is mapped answers EBUSY although the migration is done.
    """

    evict_dying: Variant = "as_written"
    """drm_pagemap.c:drm_pagemap_evict_to_ram answers EFAULT for an allocation whose address space is being torn down,
    even when its last page has gone; fixed, it is busy until then. Every other error ends whatever walk evicts.
    """

    not_detached: Variant = "as_written"
    """drm_pagemap.c:drm_pagemap_migrate_to_devmem releases an allocation for which it could not begin (no area of
    anonymous memory, no memory for its arrays or its zdd) and does not complete its `detached`: whoever evicts it
    before it is freed is told that it is busy.
    """

    devmem_mm: Variant = "as_written"
    """drm_pagemap.c:drm_pagemap_devmem_init notes the address space down without a reference (mmgrab), and
    drm_pagemap_evict_to_ram asks it for its users, before and between its attempts.
    """

    shrinker_forgets: Variant = "as_written"
    """drm_pagemap_util.c:drm_pagemap_shrinker_scan empties the cache of a pagemap that it took off its list, after a
    lookup may have put another one there: that is forgotten while it is in use, and the next lookup makes a second.
    """

    stale_cache: Variant = "as_written"
    """drm_pagemap_util.c:drm_pagemap_shrinker_add destroys a pagemap whose device is unplugged, and leaves its cache
    pointing to it, which drm_pagemap_cache_fini follows.
    """

    coherent_unmap: Variant = "as_written"
    """drm_pagemap.c:drm_pagemap_migrate_unmap_pages has a device unmap every device page; a coherent one that was
    copied from was mapped as system memory (drm_pagemap_migrate_map_system_pages), and stays so.
    """


AS_WRITTEN: Final = DrmQuirks()
