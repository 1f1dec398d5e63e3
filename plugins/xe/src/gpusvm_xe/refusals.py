"""With which errnos xe may refuse programs, and what of what it declares its settings change."""

from errno import EBUSY, EFAULT, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, EPERM, EPIPE
from typing import TYPE_CHECKING, Final

from attrs import evolve
from gpusvm.driver import NEVER, Errnos, Refusals, format_size, no, yes

if TYPE_CHECKING:
    from gpusvm.driver import Capabilities, DriverInfo

    from gpusvm_xe.quirks import XeQuirks
    from gpusvm_xe.tunables import XeTunables

__all__ = ["REFUSALS", "with_settings"]

_PAGE: Final = 4 << 10
_PMD: Final = 2 << 20

# xe_pagefault.c:xe_pagefault_service, xe_svm.c:__xe_svm_handle_pagefault. A read or write is tried again for as
# long as mappings change under it, and is served from system memory where the device's cannot be had. Memory that the
# program bound itself is tried once: where it cannot be mapped for DMA, drm_gpusvm_get_pages' EFAULT is the answer
# (xe_pagefault_handle_vma).
REFUSALS: Final = Refusals(
    access=Errnos(
        unmapped={ENOENT},
        forbidden={EPERM},
        closed={ENOENT, EINVAL},
        exited={EFAULT},
        killed={EFAULT},
        unplugged=NEVER,
        contended=NEVER,
        failed={ENOMEM, EFAULT},
    ),
    # An atomic needs VRAM, and after the last try the error of migration or get_pages is the answer.
    atomic=Errnos(
        unmapped={ENOENT, EINVAL, EFAULT},
        forbidden={EPERM, EFAULT},
        closed={ENOENT, EINVAL},
        exited={EFAULT},
        killed={EFAULT},
        unplugged={ENODEV},
        contended={EBUSY, ENOMEM, EFAULT, EOPNOTSUPP},
        # A CPU cannot take the pages away between the migration and its use: it has to wait for the timeslice.
        touched={EBUSY, ENOMEM, EOPNOTSUPP},
        failed={ENOMEM, EBUSY, EFAULT},
    ),
    # What cannot be brought is no error (ENODATA is kept from the program).
    populate=Errnos(
        unmapped=NEVER,
        forbidden={EPERM},
        closed={ENOENT},
        exited={EFAULT},
        killed=NEVER,
        unplugged={ENODEV},
        contended=NEVER,
        failed={ENOMEM},
    ),
    # xe_vm_madvise.c tells the program where a message to the TLBs could not be sent.
    ioctl=Errnos(failed={ENOMEM, EBUSY, EFAULT, EINVAL, EIO, ENOSPC, EPIPE}),
    reach_block=True,
    read_needs_write=True,
)


def with_settings(info: "DriverInfo", tunables: "XeTunables", quirks: "XeQuirks") -> "DriverInfo":
    """Return what xe declares with these settings."""
    refusals, capabilities = info.refusals, info.capabilities
    if tunables.fallback == "nack":
        # What an atomic is refused with when its last try has failed; but the CPU may take the pages in between.
        refused = evolve(refusals.atomic, forbidden={EPERM, EFAULT, EINVAL}, peer_unplugged={ENODEV}, touched=None)
        refusals = evolve(refusals, access=refused)
        capabilities = evolve(
            capabilities, unplug=yes("VRAM is evacuated; populates, and so faults, then answer ENODEV")
        )
    if tunables.evict_order == "none":
        capabilities = evolve(capabilities, eviction=no("evict_order=none: what is in VRAM stays until it is freed"))
        refusals = evolve(refusals, atomic=evolve(refusals.atomic, crowded={ENOMEM}))
        if tunables.fallback == "nack":
            refusals = evolve(refusals, access=evolve(refusals.access, crowded={ENOMEM}))
    return evolve(info, capabilities=_capabilities(capabilities, tunables), refusals=refusals)


def _capabilities(capabilities: "Capabilities", tunables: "XeTunables") -> "Capabilities":
    found = capabilities
    if not tunables.tries:
        found = evolve(found, migrate_on_fault=no("tries=0: a fault maps memory where it is, but for atomics"))
    elif tunables.migrate_after > 1:
        late = f"migrate_after={tunables.migrate_after}: at first a fault maps the range where it is"
        found = evolve(found, migrate_on_fault=no(late))
    largest = tunables.chunk_sizes[0]
    if largest < _PMD:
        small = f"chunk_sizes: a range, and so an allocation, has {format_size(largest)} at most"
        found = evolve(found, large_folios=no(small))
    if largest == _PAGE:
        found = evolve(found, mixed_units=yes("chunk_sizes: every page is a range of its own"))
    if tunables.owner == "device":
        found = evolve(found, multi_device_p2p=no("owner=device: a page on another device is faulted home"))
    return found
