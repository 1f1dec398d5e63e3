"""drivers/gpu/drm/xe/xe_pagefault_types.h:struct xe_pagefault, as of Linux 7.3.4: how a fault says whose it is."""

from typing import Final

__all__ = ["ASID_BITS", "ASID_MASK"]

ASID_BITS: Final = 20
"""Bits of an address-space number; those above, in the `inst` of a fault, number the tile whose GT sent it."""

ASID_MASK: Final = (1 << ASID_BITS) - 1
