"""What `kernel.observer` may be told about the mm; `check/` listens, nothing below it imports it.

Every call comes inside one page-table-lock section, or, for windows, in the section that opened or closed them: a
listener looks and does not sleep. A listener need not have every method: `kernel.observer` hears of other rooms too.
"""

from typing import TYPE_CHECKING, Any, Protocol

from gpusvm.mm.api import MmuNotifierRange

if TYPE_CHECKING:
    from gpusvm.mm.pgtable import PageTable, PteTable


class MmObserver(Protocol):
    """Hear what the mm changes."""

    def ptes_changing(self, table: "PteTable", mask: int) -> None:
        """Look at the entries of `mask` before they change."""

    def ptes_changed(self, table: "PteTable", mask: int) -> None:
        """Look at them afterwards."""

    def pmd_changing(self, page_table: "PageTable", block: int) -> None:
        """Look at the PMD entry of `block` before it changes."""

    def pmd_changed(self, page_table: "PageTable", block: int) -> None:
        """Look at it afterwards."""

    def window_opened(self, range_: MmuNotifierRange) -> None:
        """Note that an invalidation began; only for an mm with subscriptions."""

    def window_closed(self, range_: MmuNotifierRange) -> None:
        """Note that it ended."""


def tell(observer: Any, method: str, *what: object) -> None:
    """Call a method of `kernel.observer` if it has it."""
    listen = getattr(observer, method, None)
    if listen is not None:
        listen(*what)
