"""mm/rmap.c and include/linux/rmap.h, as of Linux 7.3.4: from a folio to everything that maps it.

`Rmap` knows the anon_vmas and address_spaces and does the counting that goes with each mapping (mapcount,
AnonExclusive); references and rss are the caller's. A page's place in a VMA is `vma.start + (index - vma.pgoff)`
pages: that, and the list of VMAs of its anon_vma or address_space, is all the kernel stores, so it is all that is
stored here.
"""

from bisect import insort
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.errors import ModelError
from gpusvm.kernel import Kernel, RwSemaphore
from gpusvm.mm.api import Geometry, Pfns
from gpusvm.mm.mm_struct import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES
from gpusvm.mm.observer import tell
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LRU, PG_SWAPBACKED, PG_UPTODATE, Index, PageMap, Zone
from gpusvm.mm.ptemask import all_zero

if TYPE_CHECKING:
    from gpusvm.mm.filemap import AddressSpace
    from gpusvm.mm.vma import Vma

__all__ = ["AnonVma", "Rmap"]

_FEW: Final = 16  # so many are looked at one by one


class AnonVma:
    """Be what the pages of related anonymous VMAs have in common (struct anon_vma).

    `vmas` lies in the order in which the rmap walk visits them: by `pgoff` when they were linked, equal ones by age.
    fork makes a tree of them: `lock` is the root's, `num_children` counts those whose `parent` this one is (a root is
    its own), `num_active_vmas` the VMAs whose new pages go here.
    """

    __slots__ = ("id", "lock", "num_active_vmas", "num_children", "parent", "vmas")

    def __init__(self, id: int, lock: RwSemaphore, parent: "AnonVma | None" = None) -> None:
        self.id: Final = id
        self.lock: Final = lock
        self.parent: Final = self if parent is None else parent
        self.num_children = 0
        self.num_active_vmas = 0
        self.parent.num_children += 1
        self.vmas: list[Vma] = []

    def link(self, vma: "Vma") -> None:
        """Add a VMA (anon_vma_interval_tree_insert)."""
        insort(self.vmas, vma, key=_pgoff)


def _pgoff(vma: "Vma") -> int:
    return vma.pgoff


class Rmap:
    """Know what pages belong to, and count mappings."""

    __slots__ = ("_chains", "_next", "_next_file", "_pmd_order", "_shift", "has_files", "kernel", "mappings", "pages")

    def __init__(self, kernel: Kernel, pages: PageMap, *, geometry: Geometry) -> None:
        self.kernel: Final = kernel
        self.pages: Final = pages
        # What a struct page's mapping names: anon_vmas by their positive ids, address_spaces by their negative ones.
        self.mappings: dict[int, AnonVma | AddressSpace] = {}
        self._chains: dict[Vma, list[AnonVma]] = {}  # a VMA is hashed by identity; looked up, never iterated
        self._next = 1
        self._next_file = -1
        self.has_files = False  # some address_space exists, so that a page may belong to one
        self._shift: Final = geometry.page_shift
        self._pmd_order: Final = geometry.pmd_order

    # --- anon_vmas

    def anon_vma_prepare(self, vma: "Vma") -> AnonVma:
        """Return the anon_vma of a VMA, making one first if it has none (__anon_vma_prepare)."""
        if vma.anon_vma is None:
            anon_vma = AnonVma(self._next, self.kernel.rwsem("anon_vma"))
            self._next += 1
            self.mappings[anon_vma.id] = anon_vma
            self.anon_vma_link(anon_vma, vma)
            return anon_vma
        return vma.anon_vma

    def anon_vma_link(self, anon_vma: AnonVma, vma: "Vma") -> None:
        """Look for the pages of an anon_vma in a VMA too; it is the VMA's own if it had none (anon_vma_chain_link)."""
        self._chain(anon_vma, vma)
        if vma.anon_vma is None:
            vma.anon_vma = anon_vma
            anon_vma.num_active_vmas += 1

    def _chain(self, anon_vma: AnonVma, vma: "Vma") -> None:
        chain = self._chains.setdefault(vma, [])
        if anon_vma not in chain:
            chain.append(anon_vma)
            anon_vma.link(vma)

    def anon_vma_clone(self, dst: "Vma", src: "Vma") -> None:
        """Let `dst`, cut from `src` or merged with it, find the same pages (anon_vma_clone)."""
        for anon_vma in self._chains.get(src, ()):
            self._chain(anon_vma, dst)
        if dst.anon_vma is None and src.anon_vma is not None:
            dst.anon_vma = src.anon_vma
            src.anon_vma.num_active_vmas += 1

    def anon_vma_fork(self, dst: "Vma", src: "Vma") -> None:
        """Let `dst`, forked from `src`, find the same pages, with an anon_vma of its own for those that it gets itself.

        The own one is an ancestor's that no VMA uses any more and that has one child only, if there is such a one, so
        that a process that forks and ends for ever makes no endless tree (anon_vma_fork, anon_vma_clone).
        """
        if src.anon_vma is None:
            return
        with src.anon_vma.lock.write():
            for anon_vma in self._chains[src]:
                self._chain(anon_vma, dst)
                # A root never qualifies: it is its own child besides.
                if dst.anon_vma is None and anon_vma.num_children < 2 and not anon_vma.num_active_vmas:
                    dst.anon_vma = anon_vma
                    anon_vma.num_active_vmas += 1
            if dst.anon_vma is None:
                own = AnonVma(self._next, src.anon_vma.lock, src.anon_vma)
                self._next += 1
                self.mappings[own.id] = own
                self.anon_vma_link(own, dst)

    def is_fork_child(self, vma: "Vma | None") -> bool:
        """Tell whether a VMA may have pages of a VMA that it was forked from (mm/vma.c:vma_is_fork_child)."""
        return vma is not None and vma.anon_vma is not None and len(self._chains[vma]) != 1

    def anon_vma_moved(self, vma: "Vma") -> None:
        """Sort a VMA in again whose `pgoff` or bounds changed (anon_vma_interval_tree_pre_update_vma and _post_)."""
        for anon_vma in self._chains.get(vma, ()):
            anon_vma.vmas.remove(vma)
            anon_vma.link(vma)

    def unlink_anon_vmas(self, vma: "Vma") -> None:
        """Forget a VMA that goes away (unlink_anon_vmas); an anon_vma without VMAs goes too."""
        if vma.anon_vma is None:
            return
        with vma.anon_vma.lock.write():
            vma.anon_vma.num_active_vmas -= 1
            vma.anon_vma = None
            for anon_vma in self._chains.pop(vma):
                anon_vma.vmas.remove(vma)
                if not anon_vma.vmas:
                    anon_vma.parent.num_children -= 1
                    del self.mappings[anon_vma.id]

    def unlink_vma(self, vma: "Vma") -> None:
        """Forget a VMA that goes away, and its file (mm/memory.c:free_pgtables, mm/vma.c:remove_vma)."""
        self.unlink_anon_vmas(vma)
        if not vma.is_anonymous:
            vma.unlink_file()

    # --- address_spaces

    def add_address_space(self, mapping: "AddressSpace") -> int:
        """Give an address_space its id."""
        number = self._next_file
        self._next_file -= 1
        self.mappings[number] = mapping
        self.has_files = True
        return number

    def remove_address_space(self, mapping: "AddressSpace") -> None:
        """Forget an address_space that is gone."""
        del self.mappings[mapping.id]
        self.has_files = any(number < 0 for number in self.mappings)

    def linear_index(self, vma: "Vma", address: int) -> int:
        """Return the page index of an address in its VMA's anon_vma (linear_page_index)."""
        return vma.pgoff + ((address - vma.start) >> self._shift)

    def places(self, pfn: int) -> "list[tuple[Vma, int, int]]":
        """List where the folio headed by `pfn` may be mapped: (vma, address, end of its part in the vma)."""
        zone = self.pages.zone(pfn)
        i = pfn - zone.base
        mapping = self.mappings.get(zone.m_mapping[i])
        if mapping is None:
            return []
        shift = self._shift
        index = zone.m_index[i]
        last = index + (1 << zone.m_order[i])
        found: list[tuple[Vma, int, int]] = []
        for vma in mapping.vmas:
            first_byte = vma.start + ((index - vma.pgoff) << shift)
            end_byte = vma.start + ((last - vma.pgoff) << shift)
            start, end = max(first_byte, vma.start), min(end_byte, vma.end)
            if start < end:
                found.append((vma, start, end))
        return found

    # --- counting mappings

    def folio_add_new_anon_rmap(self, pfn: int, vma: "Vma", address: int) -> None:
        """Count the first mapping of a new anonymous folio, exclusive, and add it to the LRU.

        A PMD-order folio is mapped by a PMD, a smaller one by PTEs.
        """
        anon_vma = vma.anon_vma
        assert anon_vma is not None, "anon_vma_prepare comes first"
        zone = self.pages.zone(pfn)
        i = pfn - zone.base
        order = zone.m_order[i]
        zone.m_mapping[i] = anon_vma.id
        zone.m_index[i] = self.linear_index(vma, address)
        if zone.pgmap is None:
            # Every caller goes on with folio_add_lru_vma.
            if self.pages.lru is None:
                zone.m_flags[i] |= PG_LRU
            else:
                self.pages.lru.add(pfn)
        if order == self._pmd_order:
            zone.m_entire[i] = 1
            zone.m_mapcount[i] = 1
            zone.m_flags[i] |= PG_SWAPBACKED | PG_UPTODATE | PG_ANON_EXCLUSIVE
        else:
            nr = 1 << order
            zone.m_mapcount[i] = nr
            zone.m_flags[i] |= PG_SWAPBACKED | PG_UPTODATE
            zone.flags[i : i + nr] |= PG_ANON_EXCLUSIVE
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "mapped", zone, i)

    def folios_add_new_anon_rmap(self, pfns: Pfns, vma: "Vma", addresses: Pfns) -> None:
        """Count the first mapping of many new small folios, exclusive, and add them to the LRU."""
        anon_vma = vma.anon_vma
        assert anon_vma is not None, "anon_vma_prepare comes first"
        where = vma.pgoff + ((addresses - vma.start) >> self._shift)
        for zone, index, batch in self.pages.split(pfns):
            zone.mapping[index] = anon_vma.id
            zone.index[index] = where[batch]
            zone.mapcount[index] = 1
            zone.flags[index] |= PG_SWAPBACKED | PG_UPTODATE | PG_ANON_EXCLUSIVE | (PG_LRU if zone.pgmap is None else 0)
            if self.kernel.observer is not None:
                tell(self.kernel.observer, "mapped", zone, index)

    def folio_add_anon_rmap_pte(self, page: int, *, exclusive: bool) -> None:
        """Count one PTE mapping of a page of an anonymous folio."""
        zone = self.pages.zone(page)
        i = page - zone.base
        head = i - zone.m_head_off[i]
        zone.m_mapcount[head] += 1
        if exclusive:
            zone.m_flags[i] |= PG_ANON_EXCLUSIVE
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "mapped", zone, head)

    def folio_try_dup_anon_rmap_ptes(self, pages: Pfns) -> None:
        """Count one more PTE mapping of each of many distinct pages, with a reference; they are exclusive no more.

        fork comes here, with pages that cannot be pinned: it has copied those (include/linux/rmap.h, which leaves the
        reference to the caller).
        """
        for zone, index, _ in self.pages.split(pages):
            if not all_zero(zone.head_off[index]):
                heads, counts = self._heads(zone, index)
                zone.refcount[heads] += counts.astype(np.int32)
                zone.mapcount[heads] += counts.astype(np.int32)
                mapped: Index = heads
            else:
                zone.refcount[index] += 1
                zone.mapcount[index] += 1
                mapped = index
            if self.kernel.observer is not None:
                tell(self.kernel.observer, "mapped", zone, mapped)
            zone.flags[index] &= ~np.uint16(PG_ANON_EXCLUSIVE)

    def folio_try_dup_anon_rmap_pmd(self, pfn: int) -> None:
        """Count one more PMD mapping of a folio that is not pinned, with a reference; it is exclusive no more."""
        zone = self.pages.zone(pfn)
        i = pfn - zone.base
        zone.m_refcount[i] += 1
        zone.m_mapcount[i] += 1
        zone.m_entire[i] += 1
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "mapped", zone, i)
        zone.m_flags[i] &= ~PG_ANON_EXCLUSIVE

    def folio_add_file_rmap_pte(self, page: int) -> None:
        """Count one PTE mapping of a page of a file, or of one that a driver maps; its reference is taken already."""
        zone = self.pages.zone(page)
        i = page - zone.base
        head = i - zone.m_head_off[i]
        zone.m_mapcount[head] += 1
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "mapped", zone, head)

    def folio_add_hugetlb_rmap(self, pfn: int) -> None:
        """Count one mapping of a huge page of a file; its reference is taken already (hugetlb_add_file_rmap)."""
        zone = self.pages.ram
        zone.m_entire[pfn] += 1
        zone.m_mapcount[pfn] += 1
        if self.kernel.observer is not None:
            tell(self.kernel.observer, "mapped", zone, pfn)

    def folio_remove_rmap_pte(self, page: int) -> None:
        """Uncount one PTE mapping of a page."""
        zone = self.pages.zone(page)
        i = page - zone.base
        i -= zone.m_head_off[i]
        left = zone.m_mapcount[i] - 1
        if left < 0:
            raise ModelError(f"page {page:#x} unmapped more often than mapped")
        zone.m_mapcount[i] = left

    def folio_remove_rmap_pmd(self, pfn: int) -> None:
        """Uncount one PMD mapping of a folio."""
        zone = self.pages.zone(pfn)
        i = pfn - zone.base
        if zone.m_entire[i] < 1:
            raise ModelError(f"folio {pfn:#x} unmapped from a PMD more often than mapped")
        zone.m_mapcount[i] -= 1
        zone.m_entire[i] -= 1

    def mm_counter(self, pfn: int) -> int:
        """Return which rss a mapping of page `pfn` counts in (include/linux/mm.h:mm_counter)."""
        zone = self.pages.zone(pfn)
        i = pfn - zone.base
        i -= zone.m_head_off[i]
        if zone.m_mapping[i] > 0:
            return MM_ANONPAGES
        return MM_SHMEMPAGES if zone.m_flags[i] & PG_SWAPBACKED else MM_FILEPAGES

    def small(self, zone: Zone, index: Index) -> bool:
        """Tell whether every page of a batch is a small folio (live pages only)."""
        return all_zero(zone.order[index]) and all_zero(zone.head_off[index])

    def unmap_pages(self, pages: Pfns) -> None:
        """Uncount one PTE mapping of each of many distinct pages and drop its reference (the zap of a table)."""
        for zone, index, _ in self.pages.split(pages):
            if self.small(zone, index):
                left = zone.mapcount[index] - 1
                if left.min() < 0:
                    raise ModelError(f"a page of {zone!r} unmapped more often than mapped")
                zone.mapcount[index] = left
                self.pages.put_selected(zone, index)
                continue
            heads, counts = self._heads(zone, index)
            left = zone.mapcount[heads] - counts
            if left.min() < 0:
                raise ModelError(f"a folio of {zone!r} unmapped more often than mapped")
            zone.mapcount[heads] = left
            for head, n in zip(heads.tolist(), counts.tolist(), strict=True):
                self.pages.folio_put(zone.base + head, n)

    def _heads(self, zone: Zone, index: Index) -> tuple[Pfns, Pfns]:
        # The heads of the folios that have the pages of a batch, and how many pages each has there.
        where = np.arange(index.start, index.stop) if isinstance(index, slice) else index
        if len(where) <= _FEW:
            counts: dict[int, int] = {}
            for i in where.tolist():
                head = i - zone.m_head_off[i]
                counts[head] = counts.get(head, 0) + 1
            heads = sorted(counts)
            return np.array(heads, np.int64), np.array([counts[head] for head in heads], np.int64)
        return np.unique(where - zone.head_off[where], return_counts=True)

    def folio_try_share_anon_rmap(self, page: int) -> bool:
        """Give up AnonExclusive of a page (for a PMD mapping: of the head); False if it may be pinned.

        include/linux/rmap.h:__folio_try_share_anon_rmap. Device-private folios are never considered pinned.
        """
        zone = self.pages.zone(page)
        i = page - zone.base
        if not zone.private and self.pages.folio_maybe_dma_pinned(page - zone.m_head_off[i]):
            return False
        zone.m_flags[i] &= ~PG_ANON_EXCLUSIVE
        return True
