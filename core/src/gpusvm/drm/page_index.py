"""Lead from a device page to the allocation that it belongs to without zone_device_data: a what-if.

Linux 7.3.4 keeps a pointer in every device page (drm_pagemap.c: the zdd). The two indices here keep it outside of the
pages, by their offset in the dev_pagemap: an ordered map with one node an allocation, and an xarray. Both count what
they cost: nodes and bytes as a 64-bit kernel would have them, and the dependent loads of every lookup.
"""

from bisect import bisect_right, insort
from errno import ENOMEM
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import define

from gpusvm.errors import KernelError
from gpusvm.mm.api import Pfns

if TYPE_CHECKING:
    from gpusvm.kernel import Kernel

__all__ = [
    "GAUGE",
    "INTERVAL_NODE_BYTES",
    "XA_NODE_BYTES",
    "AllPfns",
    "IndexCosts",
    "OffsetMap",
    "PageIndex",
    "PfnSpan",
    "XArray",
    "page_index",
]

INTERVAL_NODE_BYTES: Final = 48
"""struct interval_tree_node (interval_tree.h): an rb_node of three words, start, last, and the last of the subtree."""

XA_NODE_BYTES: Final = 576
"""struct xa_node (xarray.h) with 64 slots: 40 bytes of header and list, 512 of slots, 3 marks of 64 bits."""

GAUGE: Final = "page_index_bytes"
"""The gauge that counts the bytes of all indices of a machine."""

_XA_CHUNK_SHIFT: Final = 6


@define
class IndexCosts:
    """Count what an index did and holds; `loads` are the loads of lookups that depend on one another."""

    lookups: int = 0
    loads: int = 0
    stores: int = 0
    erases: int = 0
    nodes: int = 0
    nodes_max: int = 0
    bytes_max: int = 0


class PfnSpan(Protocol):
    """Say which pages an index is of: those of a dev_pagemap, as a rule."""

    start_pfn: int
    nr_pages: int


@define
class AllPfns:
    """Be the span of everything that a page frame number of 46 bits of address can name."""

    start_pfn: int = 0
    nr_pages: int = 1 << 34


class PageIndex(Protocol):
    """Lead from the pages of one span, as a rule of one dev_pagemap, to what they were attached to.

    An entry is made before the pages become live and goes when the last of them is free: neither a folio's split nor
    the end of one folio of several changes anything. `find` is for whoever has a reference on the page.
    """

    @property
    def costs(self) -> IndexCosts: ...

    @property
    def node_bytes(self) -> int:
        """Return the size of one node."""

    def attach(self, data: Any, pfns: Pfns) -> None:
        """Enter the pages of a new allocation, rising pfns. ENOMEM, with nothing entered, where entries need memory."""

    def find(self, pfn: int) -> Any:
        """Return what `pfn` is attached to; None if nothing is."""

    def detach(self, pfns: Pfns) -> None:
        """Forget an allocation, given as to `attach`. May run in atomic context."""


class OffsetMap:
    """Keep an ordered map from offset to allocation: a tree whose node lies in the allocation, so that entering cannot
    fail.

    Whoever looks something up holds the map's lock, for others change the tree meanwhile; lookups load a node a level,
    of a balanced tree of that many.
    """

    node_bytes: Final = INTERVAL_NODE_BYTES

    def __init__(self, kernel: "Kernel", span: PfnSpan) -> None:
        self.kernel = kernel
        self.span = span
        self.costs = IndexCosts()
        kernel.gauges.declare(GAUGE)
        self.lock = kernel.spinlock("page_index->lock")
        self._starts: list[int] = []
        self._runs: dict[int, tuple[int, Any]] = {}

    def attach(self, data: Any, pfns: Pfns) -> None:
        with self.lock:
            for first, end in _runs(self.span, pfns):
                insort(self._starts, first)
                self._runs[first] = end, data
                _node_added(self)
            self.costs.stores += 1

    def find(self, pfn: int) -> Any:
        offset = pfn - self.span.start_pfn
        with self.lock:
            loads = len(self._starts).bit_length()
            _looked_up(self.kernel, self.costs, loads)
            at = bisect_right(self._starts, offset) - 1
            if at < 0:
                return None
            end, data = self._runs[self._starts[at]]
            return data if offset < end else None

    def detach(self, pfns: Pfns) -> None:
        with self.lock:
            for first, _ in _runs(self.span, pfns):
                del self._starts[bisect_right(self._starts, first) - 1]
                del self._runs[first]
                _node_gone(self)
            self.costs.erases += 1


class XArray:
    """Keep an xarray by offset, with entries of several indices for whole allocations (xa_store_range).

    Lookups need no lock but RCU, and load a node a level. Entering can need nodes, and so fail: injection site
    ``page_index.xa_node``.
    """

    node_bytes: Final = XA_NODE_BYTES

    def __init__(self, kernel: "Kernel", span: PfnSpan) -> None:
        self.kernel = kernel
        self.span = span
        self.costs = IndexCosts()
        kernel.gauges.declare(GAUGE)
        self.lock = kernel.spinlock("xa_lock")
        self._levels = max(1, -(-max(span.nr_pages - 1, 1).bit_length() // _XA_CHUNK_SHIFT))
        self._entries: dict[tuple[int, int], Any] = {}  # (shift, index >> shift): a slot that holds an entry
        self._users: dict[tuple[int, int], int] = {}  # (shift, index >> shift + 6): slots of a node that are in use

    def attach(self, data: Any, pfns: Pfns) -> None:
        if self.kernel.inject("page_index.xa_node"):
            raise KernelError(ENOMEM, "injected at page_index.xa_node")
        with self.lock:
            for slot in self._slots(pfns):
                self._entries[slot] = data
                self._use(slot)
            self.costs.stores += 1

    def find(self, pfn: int) -> Any:
        index = pfn - self.span.start_pfn
        found, loads = None, 0
        for level in reversed(range(self._levels)):
            shift = level * _XA_CHUNK_SHIFT
            loads += 1
            found = self._entries.get((shift, index >> shift))
            if found is not None:
                break
        _looked_up(self.kernel, self.costs, loads)
        return found

    def detach(self, pfns: Pfns) -> None:
        with self.lock:
            for slot in self._slots(pfns):
                del self._entries[slot]
                self._unuse(slot)
            self.costs.erases += 1

    def _slots(self, pfns: Pfns) -> "list[tuple[int, int]]":
        """Return the slots that hold the pages: as high up as alignment and length allow."""
        slots: list[tuple[int, int]] = []
        for first, end in _runs(self.span, pfns):
            at = first
            while at < end:
                shift = 0
                while (
                    shift + _XA_CHUNK_SHIFT < self._levels * _XA_CHUNK_SHIFT
                    and not at & ((1 << shift + _XA_CHUNK_SHIFT) - 1)
                    and at + (1 << shift + _XA_CHUNK_SHIFT) <= end
                ):
                    shift += _XA_CHUNK_SHIFT
                slots.append((shift, at >> shift))
                at += 1 << shift
        return slots

    def _use(self, slot: tuple[int, int]) -> None:
        """Count a slot of its node, and the nodes above it that come into being with it."""
        shift, index = slot
        while shift < self._levels * _XA_CHUNK_SHIFT:
            node = shift, index >> _XA_CHUNK_SHIFT
            users = self._users.get(node, 0)
            self._users[node] = users + 1
            if users:
                return
            _node_added(self)
            shift, index = shift + _XA_CHUNK_SHIFT, index >> _XA_CHUNK_SHIFT

    def _unuse(self, slot: tuple[int, int]) -> None:
        shift, index = slot
        while shift < self._levels * _XA_CHUNK_SHIFT:
            node = shift, index >> _XA_CHUNK_SHIFT
            self._users[node] -= 1
            if self._users[node]:
                return
            del self._users[node]
            _node_gone(self)
            shift, index = shift + _XA_CHUNK_SHIFT, index >> _XA_CHUNK_SHIFT


def page_index(name: str, kernel: "Kernel", span: PfnSpan) -> PageIndex | None:
    """Return a new index of a span by the name that spec strings have for it; None if pages lead there themselves."""
    if name in {"zone_device_data", "chunk"}:
        return None
    return OffsetMap(kernel, span) if name == "offset" else XArray(kernel, span)


def _runs(span: PfnSpan, pfns: Pfns) -> "list[tuple[int, int]]":
    """Return consecutive pages as [first, end) of offsets in the pagemap."""
    offsets = (pfns - span.start_pfn).tolist()
    runs: list[tuple[int, int]] = []
    for offset in offsets if offsets[-1] - offsets[0] != len(offsets) - 1 else ():
        if runs and runs[-1][1] == offset:
            runs[-1] = runs[-1][0], offset + 1
        else:
            runs.append((offset, offset + 1))
    return runs or [(offsets[0], offsets[-1] + 1)]


def _node_added(index: "OffsetMap | XArray") -> None:
    costs = index.costs
    costs.nodes += 1
    index.kernel.gauges.inc(GAUGE, index.node_bytes)
    if costs.nodes > costs.nodes_max:
        costs.nodes_max = costs.nodes
        costs.bytes_max = costs.nodes * index.node_bytes


def _node_gone(index: "OffsetMap | XArray") -> None:
    index.costs.nodes -= 1
    index.kernel.gauges.dec(GAUGE, index.node_bytes)


def _looked_up(kernel: "Kernel", costs: IndexCosts, loads: int) -> None:
    costs.lookups += 1
    costs.loads += loads
    kernel.stats.page_lookups += 1
    kernel.stats.page_lookup_loads += loads
    kernel.charge("page_index_load", loads)
