"""What `kernel.observer` may be told about drm_gpusvm and drm_pagemap; `check/` listens, nothing below it imports it.

A listener looks and does not sleep, and need not have every method.
"""

from typing import TYPE_CHECKING, Any, Protocol

from gpusvm.mm.api import IntervalNotifier

if TYPE_CHECKING:
    from gpusvm.drm.devmem import Devmem
    from gpusvm.drm.pages import GpuSvmPages


class DrmObserver(Protocol):
    """Hear what becomes of pages."""

    def pages_got(self, pages: "GpuSvmPages", notifier: IntervalNotifier, owner: object | None) -> None:
        """Note that get_pages has mapped pages which `notifier` watches, for a caller who takes device pages of
        `owner`, or none.
        """

    def pages_unmapped(self, pages: "GpuSvmPages") -> None:
        """Note that they are mapped no longer."""

    def cpu_fault_takes(self, devmem: "Devmem") -> None:
        """Note that a CPU fault is going to bring pages of an allocation home."""


def tell(observer: Any, method: str, *what: object) -> None:
    """Call a method of `kernel.observer` if it has it."""
    listen = getattr(observer, method, None)
    if listen is not None:
        listen(*what)
