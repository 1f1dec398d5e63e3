"""The numbers that programs pass to /dev/svmdev0 and 1: flags of a fault, and what can be made to fail."""

from typing import Final

__all__ = [
    "FAIL_ALLOC",
    "FAIL_PFN",
    "FAIL_TODEV",
    "FAIL_TORAM",
    "SVMDEV_F_ALLOW_MIXED",
    "SVMDEV_F_CHECK",
    "SVMDEV_F_DEVMEM_ONLY",
    "SVMDEV_F_MIGRATE",
    "SVMDEV_F_NO_DEVMEM",
    "SVMDEV_F_NO_OWNER",
    "SVMDEV_F_READ_ONLY",
    "SVMDEV_F_RETRY",
]

SVMDEV_F_MIGRATE: Final = 1
"""Populate the target's memory with the range before its pages are got."""
SVMDEV_F_DEVMEM_ONLY: Final = 2
SVMDEV_F_READ_ONLY: Final = 4
SVMDEV_F_ALLOW_MIXED: Final = 8
SVMDEV_F_RETRY: Final = 16
"""Try again when the pages could not be got, and bring a mixture home first."""
SVMDEV_F_CHECK: Final = 32
"""Make a range of up to 64 KiB only where every page is present (check_pages_threshold)."""
SVMDEV_F_NO_DEVMEM: Final = 64
"""Make a range that cannot migrate (devmem_possible = 0)."""
SVMDEV_F_NO_OWNER: Final = 128
"""Take no device page at all (device_private_page_owner = NULL)."""

FAIL_ALLOC: Final = 0
FAIL_PFN: Final = 1
FAIL_TODEV: Final = 2
FAIL_TORAM: Final = 3
