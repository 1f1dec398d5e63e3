"""A PTE table keeps its kinds apart, whichever way entries change."""

import numpy as np
import pytest
from gpusvm.kernel import Kernel
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, Pte, PteKind, PteTable
from hypothesis import given, settings
from hypothesis import strategies as st

NR = 8


def fresh_table() -> PteTable:
    memory = MemoryManager(Kernel(), ram_pages=64, geometry=Geometry(pmd_order=3))
    return memory.mm_alloc("p").page_table.table(5)


changes = st.lists(
    st.tuples(
        st.sampled_from(["present", "zero", "private", "migration", "exclusive", "write", "clear"]),
        st.integers(1, 255),
        st.integers(0, 255),
        st.integers(0, 255),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=150)
@given(changes)
def test_the_table_is_what_a_list_of_entries_is(steps) -> None:
    table = fresh_table()
    model = [Pte(PteKind.NONE)] * NR
    pfn = 100
    for kind, mask, write, extra, scattered in steps:
        pages = [i for i in range(NR) if mask >> i & 1]
        if kind in {"present", "private"}:
            pfns = [pfn + (k * 7 if scattered else i - pages[0]) for k, i in enumerate(pages)]
            given_pfns = np.array(pfns) if scattered else pfn
            for page, number in zip(pages, pfns, strict=True):
                w, d = bool(write >> page & 1), bool(extra >> page & 1)
                if kind == "present":
                    model[page] = Pte(PteKind.PRESENT, number, w, dirty=d)
                else:
                    model[page] = Pte(PteKind.PRIVATE, number, w)
            if kind == "present":
                table.set_present(mask, given_pfns, write, extra)
            else:
                table.set_private(mask, given_pfns, write)
            pfn += 100
        elif kind == "zero":
            table.set_zero(mask, 64)
            for page in pages:
                model[page] = Pte(PteKind.PRESENT, 64, zero=True)
        elif kind == "clear":
            table.clear(mask)
            for page in pages:
                model[page] = Pte(PteKind.NONE)
        elif kind == "migration":
            # Of what has a page only, as collect does.
            mask = sum(1 << i for i in pages if model[i].kind is not PteKind.NONE and not model[i].zero)
            if not mask:
                continue
            table.set_migration(mask, write, extra & ~write)
            for page in pages:
                if mask >> page & 1:
                    w, x = bool(write >> page & 1), bool(extra & ~write & 1 << page)
                    model[page] = Pte(PteKind.MIGRATION, model[page].pfn, w, rexcl=x, dirty=model[page].dirty)
        elif kind == "exclusive":
            mask = sum(1 << i for i in pages if model[i].kind is PteKind.PRESENT and not model[i].zero)
            if not mask:
                continue
            table.set_exclusive(mask)
            for page in pages:
                if mask >> page & 1:
                    model[page] = Pte(PteKind.EXCLUSIVE, model[page].pfn)
        else:
            mask = sum(1 << i for i in pages if model[i].kind is not PteKind.NONE and not model[i].zero)
            table.set_write(mask, write)
            for page in pages:
                if mask >> page & 1:
                    old = model[page]
                    model[page] = Pte(old.kind, old.pfn, bool(write >> page & 1), dirty=old.dirty)
        assert [table.entry(i) for i in range(NR)] == model
        assert table.used == sum(1 << i for i in range(NR) if model[i].kind is not PteKind.NONE)


def test_pfns_of_a_run_are_a_view_and_of_others_a_copy() -> None:
    table = fresh_table()
    table.set_present(0b11111111, 40, 0)
    assert table.pfns(0b00111100).tolist() == [42, 43, 44, 45]
    assert np.shares_memory(table.pfns(0b00111100), table.pfn)
    assert table.pfns(0b10000001).tolist() == [40, 47]


def test_an_observer_sees_before_and_after() -> None:
    kernel = Kernel()
    memory = MemoryManager(kernel, ram_pages=64, geometry=Geometry(pmd_order=3))
    seen = []

    class Listener:
        def ptes_changing(self, table, mask) -> None:
            seen.append(("changing", table.block, mask, table.present, table.private))

        def ptes_changed(self, table, mask) -> None:
            seen.append(("changed", table.block, mask, table.present, table.private))

    table = memory.mm_alloc("p").page_table.table(2)
    kernel.observer = Listener()
    table.set_present(0b11, 7, 0)
    table.set_private(0b10, 70, 0)
    assert seen == [
        ("changing", 2, 0b11, 0, 0),
        ("changed", 2, 0b11, 0b11, 0),
        ("changing", 2, 0b10, 0b11, 0),
        ("changed", 2, 0b10, 0b01, 0b10),
    ]


def test_a_leaf_is_one_entry_and_a_filled_table_takes_its_place() -> None:
    page_table = fresh_table().mm.page_table
    leaf = page_table.set_leaf(9, PmdKind.PRIVATE, 4096, write=True)
    assert isinstance(page_table.entry(9 * 8 * 4096 + 4096), PmdLeaf)
    assert repr(leaf) == "PmdLeaf(PRIVATE, pfn=0x1000, w)"
    table = PteTable(page_table, 9)
    table.fill(PteKind.PRIVATE, 4096, write=True)
    page_table.install(table)
    assert page_table.entry((9 * 8 + 3) * 4096) == Pte(PteKind.PRIVATE, 4099, write=True)
    page_table.clear(9)
    assert page_table.entry(9 * 8 * 4096) == Pte(PteKind.NONE)


@pytest.mark.parametrize(
    ("at", "end", "expected"),
    [
        (0, 64 * 4096, 64 * 4096),  # the PUD is none: all of it is one hole
        (8 * 4096, 1000 * 4096, 64 * 4096),  # to the end of the PUD
        (64 * 4096, 1000 * 4096, 72 * 4096),  # the PUD is populated: one PMD
        (65 * 4096, 70 * 4096, 70 * 4096),
    ],
)
def test_a_hole_ends_with_the_highest_level_that_is_none(at: int, end: int, expected: int) -> None:
    page_table = fresh_table().mm.page_table
    page_table.puds.clear()
    page_table.table(15)  # in the second PUD, which covers blocks 8 to 15
    assert page_table.pud_present(64 * 4096)
    assert not page_table.pud_present(0)
    assert page_table.hole_end(at, end) == expected


def test_present_blocks_are_found_in_a_vast_range() -> None:
    page_table = fresh_table().mm.page_table
    page_table.table(1 << 30)
    assert page_table.present_blocks(0, 1 << 62) == [5, 1 << 30]
    assert page_table.present_blocks(5 * 8 * 4096 + 4096, 6 * 8 * 4096) == [5]
    assert page_table.present_blocks(6 * 8 * 4096, 7 * 8 * 4096) == []
