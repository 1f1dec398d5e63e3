"""Hold the page tables of one mm: PMD entries by 2 MiB block, PTE tables as bit masks plus an array of pfns.

Three levels are enough: is the PUD populated, the PMD entry, the PTE table. There is no object for a
page. Every change goes through a method here, which keeps the masks consistent and tells `kernel.observer`, if there
is one, what is about to change and what has changed. References, rmap and rss are the caller's.

The page-table lock is a rule, not an object: whoever reads or changes entries begins the section with `kernel.step()`
and does not sleep, charge or call back until the section is over.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import frozen

from gpusvm.kernel import Kernel
from gpusvm.mm.api import Geometry, Pfns
from gpusvm.mm.observer import tell
from gpusvm.mm.ptemask import RAMP, indices, is_run, lowest

if TYPE_CHECKING:
    from gpusvm.mm.mm_struct import MmStruct


class PmdKind(IntEnum):
    """Name what a PMD leaf is; a PMD that is none has no leaf, one that points to a table is a `PteTable`."""

    THP = 1
    HUGE_ZERO = 2
    PRIVATE = 3
    MIGRATION = 4
    HUGETLB = 5


class PteKind(IntEnum):
    """Name what a PTE is (include/linux/leafops.h:enum softleaf_type, as far as anonymous memory meets it)."""

    NONE = 0
    PRESENT = 1
    PRIVATE = 2
    MIGRATION = 3
    EXCLUSIVE = 4
    SWAP = 5
    HWPOISON = 6
    MARKER_UFFD_WP = 7
    MARKER_POISONED = 8
    MARKER_GUARD = 9


@frozen
class OtherPte:
    """Be one of the entries that are seldom: swap, hwpoison, a marker (include/linux/leafops.h).

    `value` is the slot of a swap entry, the pfn of a hwpoison entry, else -1. `exclusive` is the bit of a swap entry
    that takes PageAnonExclusive's place (pte_swp_exclusive).
    """

    kind: PteKind
    value: int = -1
    exclusive: bool = False


@frozen
class Pte:
    """Show one PTE, for tests and messages; `rexcl` is MIGRATION_READ_EXCLUSIVE, `pfn` is -1 for none and the zero
    page, and the slot of a swap entry.
    """

    kind: PteKind
    pfn: int = -1
    write: bool = False
    zero: bool = False
    rexcl: bool = False
    dirty: bool = False
    special: bool = False


class PmdLeaf:
    """Be one PMD that maps or names a whole block; `rexcl` only with MIGRATION. Immutable: `PageTable` swaps leaves.

    A leaf keeps a deposited PTE table (mm/pgtable-generic.c:pgtable_trans_huge_deposit): splitting it cannot fail.
    """

    __slots__ = ("dirty", "kind", "pfn", "rexcl", "write")

    def __init__(self, kind: PmdKind, pfn: int, write: bool, rexcl: bool = False, dirty: bool = False) -> None:
        self.kind = kind
        self.pfn = pfn
        self.write = write
        self.rexcl = rexcl
        self.dirty = dirty

    def __repr__(self) -> str:
        """Show what a message needs."""
        marks = ("w" if self.write else "r") + ("x" if self.rexcl else "")
        return f"PmdLeaf({self.kind.name}, pfn={self.pfn:#x}, {marks})"


class PteTable:
    """Be the PTE table of one block: `pfn[i]` and bit i of each mask belong to page i.

    `present`, `private`, `migration`, `devexcl` and `other` exclude each other; a page in none of them is pte none.
    What an entry of `other` is stands in `others`, by position; it maps no page. `zero` is the part of `present` that
    has no normal page (vm_normal_page): it maps the zero page or, with `special`, a pfn that a driver put there, which
    is neither counted nor referenced. `write` is pte_write, the WRITE of a device-private
    or of a migration entry; a device-exclusive entry is not in it. `rexcl` is the READ_EXCLUSIVE of a migration
    entry.

    Where a method takes `pfns`: an int is the pfn of the first page of the mask and the others follow by their
    distance; an array has one pfn for each page of the mask, ascending. `write`, `dirty` and `rexcl` are masks, of
    which the part outside `mask` is ignored.
    """

    __slots__ = (
        "base",
        "block",
        "devexcl",
        "dirty",
        "kernel",
        "m_pfn",
        "migration",
        "mm",
        "other",
        "others",
        "pfn",
        "present",
        "private",
        "rexcl",
        "special",
        "write",
        "zero",
    )

    def __init__(self, page_table: "PageTable", block: int) -> None:
        self.kernel = page_table.kernel
        self.mm = page_table.mm
        self.block = block
        self.base = block << page_table.pmd_shift
        # Not left as found: who explores compares what was in it with what is in it.
        self.pfn: Pfns = np.zeros(page_table.pmd_nr, dtype=np.int64)
        self.m_pfn = self.pfn.data
        self.present = 0
        self.private = 0
        self.migration = 0
        self.devexcl = 0
        self.other = 0
        self.others: dict[int, OtherPte] = {}
        self.zero = 0
        self.special = 0
        self.write = 0
        self.rexcl = 0
        self.dirty = 0

    @property
    def used(self) -> int:
        """Return the mask of the entries that are not none."""
        return self.present | self.private | self.migration | self.devexcl | self.other

    def kind(self, i: int) -> PteKind:
        """Return the kind of page i."""
        bit = 1 << i
        if self.present & bit:
            return PteKind.PRESENT
        if self.private & bit:
            return PteKind.PRIVATE
        if self.migration & bit:
            return PteKind.MIGRATION
        if self.other & bit:
            return self.others[i].kind
        return PteKind.EXCLUSIVE if self.devexcl & bit else PteKind.NONE

    def entry(self, i: int) -> Pte:
        """Show page i."""
        kind = self.kind(i)
        bit = 1 << i
        if self.other & bit:
            return Pte(kind, self.others[i].value)
        return Pte(
            kind,
            -1 if kind is PteKind.NONE else self.m_pfn[i],
            bool(self.write & bit),
            bool(self.zero & ~self.special & bit),
            bool(self.rexcl & bit),
            bool(self.dirty & bit),
            bool(self.special & bit),
        )

    def pfns(self, mask: int) -> Pfns:
        """Return the pfns of the pages of `mask`, ascending; a view of the table where they lie side by side."""
        if is_run(mask):
            return self.pfn[lowest(mask) : mask.bit_length()] if mask else self.pfn[:0]
        return self.pfn[indices(mask)]

    def set_present(self, mask: int, pfns: int | Pfns, write: int, dirty: int = 0) -> None:
        """Map normal pages (set_pte_at with mk_pte)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        self._store(mask, pfns)
        if self.other:
            self._drop_others(mask)
        keep = ~mask
        self.present |= mask
        self.private &= keep
        self.migration &= keep
        self.devexcl &= keep
        self.zero &= keep
        if self.special:
            self.special &= keep
        self.write = (self.write & keep) | (write & mask)
        self.rexcl &= keep
        self.dirty = (self.dirty & keep) | (dirty & mask)
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def set_zero(self, mask: int, zero_pfn: int) -> None:
        """Map the zero page read-only (mm/memory.c:do_anonymous_page, the read fault)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        if mask & (mask - 1) == 0:
            self.m_pfn[lowest(mask)] = zero_pfn
        else:
            self.pfn[indices(mask)] = zero_pfn
        if self.other:
            self._drop_others(mask)
        keep = ~mask
        self.present |= mask
        self.private &= keep
        self.migration &= keep
        self.devexcl &= keep
        self.zero |= mask
        self.write &= keep
        self.rexcl &= keep
        self.dirty &= keep
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def set_special(self, mask: int, pfns: int | Pfns, write: int) -> None:
        """Map pfns without taking note of their pages, in none entries (mm/memory.c:insert_pfn, remap_pte_range)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        self._store(mask, pfns)
        self.present |= mask
        self.zero |= mask
        self.special |= mask
        self.write = (self.write & ~mask) | (write & mask)
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def set_private(self, mask: int, pfns: int | Pfns, write: int) -> None:
        """Install device-private entries (make_{readable,writable}_device_private_entry)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        self._store(mask, pfns)
        keep = ~mask
        self.present &= keep
        self.private |= mask
        self.migration &= keep
        self.devexcl &= keep
        self.zero &= keep
        self.write = (self.write & keep) | (write & mask)
        self.rexcl &= keep
        self.dirty &= keep
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def set_migration(self, mask: int, write: int, rexcl: int, pfns: int | Pfns | None = None) -> None:
        """Turn entries into migration entries; without `pfns` they go on naming the pages they mapped."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        if pfns is not None:
            self._store(mask, pfns)
        keep = ~mask
        self.present &= keep
        self.private &= keep
        self.migration |= mask
        self.devexcl &= keep
        self.zero &= keep
        self.write = (self.write & keep) | (write & mask)
        self.rexcl = (self.rexcl & keep) | (rexcl & mask)
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def set_exclusive(self, mask: int) -> None:
        """Turn present writable entries into device-exclusive ones that name the same pages (mm/rmap.c)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        keep = ~mask
        self.present &= keep
        self.devexcl |= mask
        self.write &= keep
        self.dirty &= keep
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def set_other(self, i: int, entry: OtherPte) -> None:
        """Put a swap entry, a hwpoison entry or a marker in place of whatever page i has."""
        mask = 1 << i
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        keep = ~mask
        self.present &= keep
        self.private &= keep
        self.migration &= keep
        self.devexcl &= keep
        self.other |= mask
        self.others[i] = entry
        self.zero &= keep
        self.write &= keep
        self.rexcl &= keep
        self.dirty &= keep
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def others_of(self, mask: int) -> list[tuple[int, OtherPte]]:
        """List the entries of `other` in a mask, ascending, by position."""
        mask &= self.other
        return [(i, self.others[i]) for i in indices(mask).tolist()] if mask else []

    def _drop_others(self, mask: int) -> None:
        for i, _ in self.others_of(mask):
            del self.others[i]
        self.other &= ~mask

    def set_write(self, mask: int, write: int, rexcl: int = 0) -> None:
        """Change only what the entries of `mask` allow (mprotect, copy-on-write reuse)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        keep = ~mask
        self.write = (self.write & keep) | (write & mask)
        self.rexcl = (self.rexcl & keep) | (rexcl & mask)
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def set_dirty(self, mask: int) -> None:
        """Mark present entries dirty; no observer is told, as nothing but the folio's dirty flag hangs on it."""
        self.dirty |= mask & self.present

    def clear(self, mask: int) -> None:
        """Empty entries (pte_clear)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        if self.other:
            self._drop_others(mask)
        keep = ~mask
        self.present &= keep
        self.private &= keep
        self.migration &= keep
        self.devexcl &= keep
        self.zero &= keep
        if self.special:
            self.special &= keep
        self.write &= keep
        self.rexcl &= keep
        self.dirty &= keep
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def copy(self, source: "PteTable", mask: int, write: int) -> None:
        """Take entries over from the table of the same block of another mm (the child's side of a fork).

        `write` is what of their permissions to write comes along; MIGRATION_READ_EXCLUSIVE does with it.
        """
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
        where = slice(lowest(mask), mask.bit_length()) if is_run(mask) else indices(mask)
        self.pfn[where] = source.pfn[where]
        keep = ~mask
        self.present = (self.present & keep) | (source.present & mask)
        self.private = (self.private & keep) | (source.private & mask)
        self.migration = (self.migration & keep) | (source.migration & mask)
        self.devexcl = (self.devexcl & keep) | (source.devexcl & mask)
        self.zero = (self.zero & keep) | (source.zero & mask)
        self.special = (self.special & keep) | (source.special & mask)
        self.write = (self.write & keep) | (source.write & mask & write)
        self.rexcl = (self.rexcl & keep) | (source.rexcl & mask & write)
        self.dirty = (self.dirty & keep) | (source.dirty & mask)
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)

    def move(self, mask: int, dst: "PteTable", by: int) -> None:
        """Move the entries of `mask` as they are to `dst`, `by` pages further up (mm/mremap.c:move_ptes).

        `dst` has none there; it may be this table.
        """
        observer = self.kernel.observer
        mask &= self.used
        if not mask:
            return
        moved = mask << by if by >= 0 else mask >> -by
        others = self.others_of(mask)
        if observer is not None:
            tell(observer, "ptes_changing", self, mask)
            tell(observer, "ptes_changing", dst, moved)
        first, end = lowest(mask), mask.bit_length()
        if is_run(mask):
            dst.pfn[first + by : end + by] = self.pfn[first:end]
        else:
            pages = indices(mask)
            dst.pfn[pages + by] = self.pfn[pages]
        for name in _MASKS:
            bits: int = getattr(self, name)
            here = bits & mask
            if here:
                setattr(self, name, bits ^ here)
                setattr(dst, name, getattr(dst, name) | (here << by if by >= 0 else here >> -by))
        if others:
            self._drop_others(mask)
            for i, entry in others:
                dst.other |= 1 << (i + by)
                dst.others[i + by] = entry
        if observer is not None:
            tell(observer, "ptes_changed", self, mask)
            tell(observer, "ptes_changed", dst, moved)

    def fill(
        self, kind: PteKind, pfn: int, *, write: bool, rexcl: bool = False, dirty: bool = False, zero: bool = False
    ) -> None:
        """Fill a table that is not installed yet with entries for consecutive pfns, or with the zero page at `pfn`.

        It is the deposited table of a leaf that is being split (mm/pgtable-generic.c:pgtable_trans_huge_withdraw).
        """
        every = (1 << len(self.pfn)) - 1
        if zero:
            self.pfn[:] = pfn
            self.zero = every
        else:
            np.add(RAMP[: len(self.pfn)], pfn, out=self.pfn)
        self.present = every if kind is PteKind.PRESENT else 0
        self.private = every if kind is PteKind.PRIVATE else 0
        self.migration = every if kind is PteKind.MIGRATION else 0
        self.write = every if write else 0
        self.rexcl = every if rexcl else 0
        self.dirty = every if dirty else 0

    def _store(self, mask: int, pfns: int | Pfns) -> None:
        first = lowest(mask)
        if isinstance(pfns, int):
            if mask & (mask - 1) == 0:
                self.m_pfn[first] = pfns
            elif is_run(mask):
                end = mask.bit_length()
                np.add(RAMP[: end - first], pfns, out=self.pfn[first:end])
            else:
                pages = indices(mask)
                self.pfn[pages] = pages + (pfns - first)
        elif is_run(mask):
            self.pfn[first : mask.bit_length()] = pfns
        else:
            self.pfn[indices(mask)] = pfns


# What `PteTable.move` takes along.
_MASKS: Final = ("present", "private", "migration", "devexcl", "zero", "special", "write", "rexcl", "dirty")


class PageTable:
    """Map blocks (`address >> pmd_shift`) to PMD entries; a block without a key is pmd none.

    `puds` has a key for every populated PUD; a PUD stays populated when its last entry goes, until munmap frees its
    tables.
    """

    __slots__ = ("entries", "geometry", "kernel", "mm", "page_shift", "pmd_nr", "pmd_shift", "pud_shift", "puds")

    def __init__(self, kernel: Kernel, mm: "MmStruct", geometry: Geometry) -> None:
        self.kernel = kernel
        self.mm = mm
        self.geometry = geometry
        self.page_shift = geometry.page_shift
        self.pmd_nr = geometry.pmd_nr
        self.pmd_shift = geometry.pmd_shift
        # A table has as many entries at each level, so a PUD covers as many blocks as a block has pages: 1 GiB.
        self.pud_shift = geometry.pmd_shift + geometry.pmd_order
        self.entries: dict[int, PteTable | PmdLeaf] = {}
        self.puds: dict[int, None] = {}

    def lookup(self, address: int) -> PteTable | PmdLeaf | None:
        """Return the PMD entry of an address."""
        return self.entries.get(address >> self.pmd_shift)

    def entry(self, address: int) -> Pte | PmdLeaf:
        """Show what maps an address, for tests and messages: the leaf, or the PTE (NONE where there is no table)."""
        found = self.entries.get(address >> self.pmd_shift)
        if isinstance(found, PteTable):
            return found.entry((address - found.base) >> self.page_shift)
        return Pte(PteKind.NONE) if found is None else found

    def pud_present(self, address: int) -> bool:
        """Tell whether the PUD above an address is populated."""
        return address >> self.pud_shift in self.puds

    def pud_alloc(self, address: int) -> None:
        """Populate the PUD above an address (include/linux/mm.h:pmd_alloc)."""
        self.puds[address >> self.pud_shift] = None

    def table(self, block: int) -> PteTable:
        """Return the PTE table of a block that has no leaf, installing an empty one in pmd none (pte_alloc)."""
        found = self.entries.get(block)
        if found is None:
            self.puds[block >> (self.pud_shift - self.pmd_shift)] = None
            found = self.entries[block] = PteTable(self, block)
        assert isinstance(found, PteTable), found
        return found

    def set_leaf(
        self, block: int, kind: PmdKind, pfn: int, write: bool, *, rexcl: bool = False, dirty: bool = False
    ) -> PmdLeaf:
        """Install a leaf in pmd none or in place of another leaf (set_pmd_at)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "pmd_changing", self, block)
        leaf = PmdLeaf(kind, pfn, write, rexcl, dirty)
        self.puds[block >> (self.pud_shift - self.pmd_shift)] = None
        self.entries[block] = leaf
        if observer is not None:
            tell(observer, "pmd_changed", self, block)
        return leaf

    def install(self, table: PteTable) -> None:
        """Put a table that `PteTable.fill` made in place of its block's leaf, as one change (pmd_populate)."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "pmd_changing", self, table.block)
        self.entries[table.block] = table
        if observer is not None:
            tell(observer, "pmd_changed", self, table.block)

    def move(self, block: int, to: int) -> None:
        """Move what a PMD is, a leaf or a table with all its entries, to another block, which is pmd none."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "pmd_changing", self, block)
            tell(observer, "pmd_changing", self, to)
        entry = self.entries.pop(block)
        if isinstance(entry, PteTable):
            entry.block = to
            entry.base = to << self.pmd_shift
        self.puds[to >> (self.pud_shift - self.pmd_shift)] = None
        self.entries[to] = entry
        if observer is not None:
            tell(observer, "pmd_changed", self, block)
            tell(observer, "pmd_changed", self, to)

    def clear(self, block: int) -> None:
        """Make a leaf pmd none, or free a table whose entries are all none."""
        observer = self.kernel.observer
        if observer is not None:
            tell(observer, "pmd_changing", self, block)
        del self.entries[block]
        if observer is not None:
            tell(observer, "pmd_changed", self, block)

    def hole_end(self, address: int, end: int) -> int:
        """Return where the hole at an address of pmd none ends: the largest absent level's boundary, at most `end`.

        mm/pagewalk.c:walk_pud_range calls pte_hole for the highest level that is none.
        """
        shift = self.pmd_shift if address >> self.pud_shift in self.puds else self.pud_shift
        return min(end, ((address >> shift) + 1) << shift)

    def present_blocks(self, start: int, end: int) -> list[int]:
        """Return the blocks that touch [start, end) and are not pmd none, ascending; cheap also for a vast range."""
        first, last = start >> self.pmd_shift, (end - 1) >> self.pmd_shift
        entries = self.entries
        if last - first < 2 * len(entries):
            return [block for block in range(first, last + 1) if block in entries]
        return sorted(block for block in entries if first <= block <= last)
