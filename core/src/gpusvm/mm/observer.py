"""What `kernel.observer` may be told about the mm; `check/` listens, nothing below it imports it.

A listener looks and does not sleep. It need not have every method: `kernel.observer` hears of other rooms too. Who
tells tests one attribute first, `kernel.observer is not None`, and does nothing more when nobody listens.

Calls about entries, windows and counts come inside the page-table-lock section that changes them, where the state is
not whole; what is whole again at the latest where the task reaches its next yield point. Calls about operations,
callbacks, readers and subscriptions come where nothing is half done.
"""

from typing import TYPE_CHECKING, Any, Protocol

from gpusvm.errors import LockdepError
from gpusvm.mm.api import DevPagemap, IntervalNotifier, MmuNotifier, MmuNotifierRange

if TYPE_CHECKING:
    from gpusvm.mm.mm_struct import MmStruct
    from gpusvm.mm.page import Index, Zone
    from gpusvm.mm.pgtable import PageTable, PteTable


class MmObserver(Protocol):
    """Hear what the mm changes and does."""

    # page tables

    def ptes_changing(self, table: "PteTable", mask: int) -> None:
        """Look at the entries of `mask` before they change."""

    def ptes_changed(self, table: "PteTable", mask: int) -> None:
        """Look at them afterwards."""

    def pmd_changing(self, page_table: "PageTable", block: int) -> None:
        """Look at the PMD entry of `block` before it changes."""

    def pmd_changed(self, page_table: "PageTable", block: int) -> None:
        """Look at it afterwards."""

    # struct pages; `index` picks folios by their heads, an int one of them

    def mapped(self, zone: "Zone", index: "Index | int") -> None:
        """Note that mappings of these folios were counted; their references are there already."""

    def put(self, zone: "Zone", index: "Index | int") -> None:
        """Note that references were dropped; folios left with none are about to be freed."""

    def folio_locking(self, pfn: int) -> None:
        """Note that the running task is about to lock a folio, and may sleep for it."""

    def folio_wait_begins(self, pfn: int) -> None:
        """Note that the running task will sleep until a folio is unlocked."""

    def folio_wait_ends(self, pfn: int) -> None:
        """Note that it does not any more."""

    # device memory

    def device_folios_made(self, zone: "Zone", index: "Index | int", order: int) -> None:
        """Note that free device pages became folios of an order."""

    def folio_free_begins(self, zone: "Zone", index: "Index | int", order: int) -> None:
        """Note that the driver takes folios back now (dev_pagemap_ops.folio_free)."""

    def folio_free_ends(self, zone: "Zone", index: "Index | int", order: int) -> None:
        """Note that it has."""

    def folio_free_slept(self, zone: "Zone", index: "Index | int", error: LockdepError) -> None:
        """Note that it broke a locking rule, as folio_free may run under a page-table lock."""

    def device_folio_split(self, zone: "Zone", i: int, order: int) -> None:
        """Note that a device folio has become small ones, the driver told of each."""

    def pgmap_got(self, pgmap: DevPagemap) -> None:
        """Note that get_dev_pagemap gave a reference."""

    def pgmap_put(self, pgmap: DevPagemap) -> None:
        """Note that put_dev_pagemap took one back."""

    def pgmap_done(self, pgmap: DevPagemap) -> None:
        """Note that memunmap_pages has waited for the last reference."""

    # devices

    def mirror_written(self, mirror: object, vpn: int, end_vpn: int) -> None:
        """Note that a device's page table, one of `MemoryManager.mirrors`, has new entries for virtual pages."""

    # address spaces

    def mm_freed(self, mm: "MmStruct") -> None:
        """Note that nobody knows an address space any more; it is empty, and may not be looked at afterwards."""

    # notifiers

    def window_opened(self, range_: MmuNotifierRange) -> None:
        """Note that an invalidation began; only for an mm with subscriptions."""

    def window_closed(self, range_: MmuNotifierRange) -> None:
        """Note that it ended."""

    def window_refused(self, range_: MmuNotifierRange) -> None:
        """Note that a start of a range that is not blockable answered -EAGAIN: its caller must change nothing."""

    def callback_begins(self, sub: IntervalNotifier | MmuNotifier, range_: MmuNotifierRange) -> None:
        """Note that a subscription is told of a range now."""

    def callback_ends(self, sub: IntervalNotifier | MmuNotifier, range_: MmuNotifierRange) -> None:
        """Note that it has been told."""

    def callback_slept(self, range_: MmuNotifierRange, error: LockdepError) -> None:
        """Note that a callback broke a locking rule."""

    def subscription_inserted(self, sub: IntervalNotifier) -> None:
        """Note that mmu_interval_notifier_insert is about to return."""

    def subscription_removing(self, sub: IntervalNotifier) -> None:
        """Note that mmu_interval_notifier_remove has begun; inside the section that takes it out of the tree."""

    def subscription_removed(self, sub: IntervalNotifier) -> None:
        """Note that mmu_interval_notifier_remove is about to return."""

    def read_began(self, sub: IntervalNotifier, seq: int) -> None:
        """Note that mmu_interval_read_begin is about to return `seq`."""

    def read_retried(self, sub: IntervalNotifier, seq: int, retry: bool) -> None:
        """Note what mmu_interval_read_retry is about to answer, the driver's lock held."""

    def sequence_set(self, sub: IntervalNotifier, cur_seq: int) -> None:
        """Note that a callback has made its invalidation visible to readers."""

    # operations, by the name of the kernel's function

    def operation_begins(self, name: str, *what: Any) -> None:
        """Note that the running task begins to do `name` to `what`."""

    def operation_ends(self, name: str, *what: Any) -> None:
        """Note that it has done it; not told when it ended with an error."""


def tell(observer: Any, method: str, *what: object) -> None:
    """Call a method of `kernel.observer` if it has it."""
    listen = getattr(observer, method, None)
    if listen is not None:
        listen(*what)
