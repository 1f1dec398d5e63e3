"""Every row of the tables of mm.md §4.3, asked for in every way; and what §4.2, §4.4 and §4.5 say around them.

Rows that Linux has and the model has no entries for: a bad PMD, a PMD that is another soft leaf than migration and
device-private (softleaf_is_valid_pmd_entry), PUD leaves, pte_protnone (no NUMA balancing).
"""

from collections.abc import Callable
from errno import EBUSY, EFAULT, EINVAL, ENOMEM, EPERM
from errno import errorcode as names

import numpy as np
import pytest
from attrs import frozen
from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_ERROR,
    HMM_PFN_ORDER_MASK,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_P2PDMA,
    HMM_PFN_P2PDMA_BUS,
    HMM_PFN_PFN_MASK,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_SYSTEM,
    PROT_NONE,
    PROT_READ,
    VM_HUGETLB,
    VM_IO,
    VM_MIXEDMAP,
    VM_PFNMAP,
    HmmRange,
)
from gpusvm.mm.insert_page import vm_insert_mixed
from gpusvm.mm.pgtable import OtherPte, PteKind
from gpusvm.mm.swap import swap_out

PAGE = 4096
BASE = 1 << 30
V, W, E = HMM_PFN_VALID, HMM_PFN_WRITE, HMM_PFN_ERROR
STICKY = HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA | HMM_PFN_P2PDMA_BUS
READ = HMM_PFN_REQ_FAULT
WRITE = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE
ORDER = 3 << HMM_PFN_ORDER_SHIFT


class Asker:
    """A subscription that filters everything, so that only the walk is seen."""

    def __init__(self, one) -> None:
        self.one = one
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq) -> bool:
        return True

    def ask(self, page: int, n: int, default: int = 0, *, mask: int = 0, words=None, owner=None) -> list[int]:
        one = self.one
        words = np.zeros(n, np.uint64) if words is None else np.array(words, np.uint64)
        self.range = HmmRange(self.sub, one.va(page), one.va(page + n), words, default, mask, owner)
        self.range.notifier_seq = one.memory.mmu_interval_read_begin(self.sub)
        with one.mm.mmap_lock.read():
            one.memory.hmm_range_fault(self.range)
        return words.tolist()


def shown(word: int) -> str:
    """Show the flags of a word as the table of rows does."""
    flags = word & ~(HMM_PFN_PFN_MASK | STICKY)
    known = {V: "V", V | W: "VW", V | ORDER: "Vo", V | W | ORDER: "VWo", E: "E", 0: "0", ORDER: "o"}
    return known.get(flags, hex(flags))


# --- how entries come about; each leaves page 2 as the row says, and says what hmm_range_fault shall take for its owner


def present(one) -> None:
    one.map(8)


def present_read_only(one) -> None:
    one.map(8)
    one.mm.fork("c").exit()


def zero(one) -> None:
    one.map(8, write=False)
    one.read(*range(8))


def area(flag: int) -> Callable:
    def build(one) -> None:
        one.map(8)
        one.mm.vmas[0].flags |= flag

    return build


def unreadable(one) -> None:
    one.map(8)
    one.mm.mprotect(BASE, 8 * PAGE, PROT_NONE)


def read_only_area(one) -> None:
    one.map(8)
    one.mm.mprotect(BASE, 8 * PAGE, PROT_READ)


def no_area(one) -> None:
    one.map(2)
    one.map(4, at=4)


def hole(one) -> None:
    one.map(8, write=False)


def none(one) -> None:
    one.map(8, write=False)
    one.write(7)


def other(kind: PteKind) -> Callable:
    def build(one) -> None:
        none(one)
        one.mm.page_table.lookup(BASE).set_other(2, OtherPte(kind))

    return build


def swapped(one) -> None:
    one.map(8)
    swap_out(one.memory, one.mm, one.va(2))


def exclusive(one) -> None:
    one.map(8)
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, one.va(2), None)
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)


def private(*, own: bool, write: bool = True) -> Callable:
    def build(one) -> object | None:
        one.map(8)
        one.device.migrate(one.mm, BASE, one.va(8), flags=MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND)
        if not write:
            one.mm.mprotect(BASE, 8 * PAGE, PROT_READ)
            one.mm.mprotect(BASE, 8 * PAGE, 3)
        return one.device.owner if own else None

    return build


def migrating(one) -> Callable[[], None]:
    """Leave a migration half done; the rest of it, to be done later."""
    one.map(8)
    flags = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND
    args = one.device.setup(one.mm, BASE, one.va(8), flags=flags)

    def finish() -> None:
        one.memory.migrate_vma_pages(args)
        one.memory.migrate_vma_finalize(args)

    one.mm.mmap_lock.up_read()
    return finish


def special(one) -> None:
    """Map a pfn that has no struct page into an area that may have such."""
    one.mm.mmap(BASE, 8 * PAGE, 3, flags=VM_MIXEDMAP)
    with one.mm.mmap_lock.write():
        vm_insert_mixed(one.memory, one.mm.vmas[0], one.va(2), 1 << 30)


def hugetlb(one) -> None:
    one.memory.hugetlb.set_nr(2)
    one.mm.mmap(BASE, 8 * PAGE, 3, flags=VM_HUGETLB)
    one.write(0)


@frozen
class Row:
    """What a snapshot, a request to read and a request to write get for page 2."""

    name: str
    build: Callable
    snapshot: str
    read: str
    write: str
    thp: bool = False


ROWS = [
    # The area: hmm_vma_walk_test, hmm_vma_walk_hole.
    Row("no area", no_area, "E", "EFAULT", "EFAULT"),
    Row("area with VM_IO", area(VM_IO), "E", "EFAULT", "EFAULT"),
    Row("area with VM_PFNMAP", area(VM_PFNMAP), "E", "EFAULT", "EFAULT"),
    Row("area without VM_READ", unreadable, "E", "EFAULT", "EFAULT"),
    Row("area with VM_MIXEDMAP", area(VM_MIXEDMAP), "VW", "VW", "VW"),
    Row("hole", hole, "0", "V", "VW"),
    Row("hole that a block fits", hole, "0", "Vo", "VWo", thp=True),
    # The PMD: hmm_vma_walk_pmd.
    Row("pmd migration", migrating, "0", "wait", "wait", thp=True),
    Row("pmd device-private, own", private(own=True), "VWo", "VWo", "VWo", thp=True),
    Row("pmd device-private, own, READ", private(own=True, write=False), "Vo", "Vo", "Vo", thp=True),
    Row("pmd device-private, foreign", private(own=False), "E", "VWo", "VWo", thp=True),
    Row("pmd present", present, "VWo", "VWo", "VWo", thp=True),
    Row("pmd present, read-only", present_read_only, "Vo", "Vo", "VWo", thp=True),
    Row("pmd huge zero", zero, "Vo", "Vo", "VWo", thp=True),
    # The PTE: hmm_vma_handle_pte.
    Row("pte none", none, "0", "V", "VW"),
    Row("pte marker, uffd-wp", other(PteKind.MARKER_UFFD_WP), "0", "V", "VW"),
    Row("pte device-private, own", private(own=True), "VW", "VW", "VW"),
    Row("pte device-private, own, READ", private(own=True, write=False), "V", "V", "V"),
    Row("pte device-private, foreign", private(own=False), "0", "VW", "VW"),
    Row("pte device-exclusive", exclusive, "0", "VW", "VW"),
    Row("pte swap", swapped, "0", "VW", "VW"),
    Row("pte migration", migrating, "0", "wait", "wait"),
    Row("pte hwpoison", other(PteKind.HWPOISON), "0", "EFAULT", "EFAULT"),
    Row("pte marker, poisoned", other(PteKind.MARKER_POISONED), "0", "EFAULT", "EFAULT"),
    Row("pte marker, guard", other(PteKind.MARKER_GUARD), "0", "EFAULT", "EFAULT"),
    Row("pte present", present, "VW", "VW", "VW"),
    Row("pte present, read-only", present_read_only, "V", "V", "VW"),
    Row("pte present, read-only area", read_only_area, "V", "V", "EPERM"),
    Row("pte zero page", zero, "V", "V", "VW"),
    # A write fault comes before the look for a page, and copies what the pfn holds.
    Row("pte without a normal page", special, "E", "EFAULT", "VW"),
    # hmm_vma_walk_hugetlb_entry
    Row("hugetlb", hugetlb, "VWo", "VWo", "VWo"),
]


@pytest.mark.parametrize("request_", ["snapshot", "read", "write"])
@pytest.mark.parametrize("by", ["default_flags", "pfn_flags_mask"])
@pytest.mark.parametrize("row", ROWS, ids=[row.name.replace(" ", "-") for row in ROWS])
def test_row(lab, row: Row, by: str, request_: str) -> None:
    one = lab(thp="always" if row.thp else "never")
    one.device.window = PAGE
    built = row.build(one)
    finish = built if callable(built) else None
    owner = None if finish else built
    asker = Asker(one)
    before = one.entry(2)
    flags = {"snapshot": 0, "read": READ, "write": WRITE}[request_]
    # Sticky bits stay whatever happens; all others of the input go.
    word = STICKY | 0x1234 | E
    if by == "default_flags":
        arguments = {"default": flags, "words": [word]}
    else:
        arguments = {"mask": WRITE, "words": [word | flags]}
    expected = getattr(row, request_)
    if expected == "wait":
        assert finish is not None
        task = one.kernel.spawn(lambda: asker.ask(2, 1, owner=owner, **arguments), name="device")
        one.kernel.settle()
        assert not task.done
        finish()
        (found,) = task.join()
        # It has gone to the device, whose owner did not ask: it comes home.
        assert shown(found) in {"VW", "VWo"}
        return
    if expected in names.values():
        with pytest.raises(KernelError) as caught:
            asker.ask(2, 1, owner=owner, **arguments)
        assert names[caught.value.errno] == expected
        assert int(asker.range.hmm_pfns[0]) == arguments["words"][0]  # still an input
    else:
        (found,) = asker.ask(2, 1, owner=owner, **arguments)
        assert (shown(found), found & STICKY) == (expected, STICKY)
        if found & V:
            # MM-S1: the walk starts inside the block.
            own_leaf = "pmd device-private, own" in row.name
            entry = one.entry(2)
            inside = type(entry).__name__ == "PmdLeaf" and not own_leaf
            assert found & HMM_PFN_PFN_MASK == entry.pfn + (2 if inside else 0)
    if request_ == "snapshot":
        assert one.entry(2) is before or one.entry(2) == before
    if finish is not None:
        finish()


def test_the_rows_need_their_words_once(lab) -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) == 31


# --- §4.2: requests


@pytest.mark.parametrize(
    ("default", "mask", "word", "faulted"),
    [
        (0, 0, WRITE, False),  # the mask makes what is in the array harmless
        (0, READ, READ, True),
        (0, READ, HMM_PFN_REQ_WRITE, False),
        (0, HMM_PFN_REQ_WRITE, WRITE, False),  # REQ_WRITE alone asks for nothing
        (HMM_PFN_REQ_WRITE, 0, 0, False),
        (HMM_PFN_REQ_WRITE, READ, READ, True),
        (READ, 0, 0, True),
    ],
)
def test_the_request_is_what_mask_and_default_make_of_the_word(lab, default, mask, word, faulted) -> None:
    one = lab()
    none(one)
    (found,) = Asker(one).ask(2, 1, default, mask=mask, words=[word])
    assert bool(found & V) is faulted
    write = faulted and (default | (word & mask)) & HMM_PFN_REQ_WRITE
    assert one.entry(2).write is bool(write)


def test_pages_may_ask_for_different_things(lab) -> None:
    one = lab()
    one.map(8)
    one.mm.fork("c").exit()
    words = [READ, 0, WRITE, 0, READ, 0, 0, 0]
    found = Asker(one).ask(0, 8, mask=WRITE, words=words)
    # Page 2 needs a fault, and every page behind it gets one like it (MM-Q7).
    assert [shown(word) for word in found] == ["V", "V", "VW", "VW", "VW", "VW", "VW", "VW"]


# --- §4.4, §4.5: faults and errors


def test_an_error_on_a_page_that_nobody_asked_for_fails_the_call(lab) -> None:
    # MM-Q7: the piece is faulted to its end.
    one = lab()
    none(one)
    one.mm.page_table.lookup(BASE).set_other(5, OtherPte(PteKind.HWPOISON))
    asker = Asker(one)
    with pytest.raises(KernelError) as caught:
        asker.ask(0, 8, mask=READ, words=[0, 0, READ, 0, 0, 0, 0, 0])
    assert caught.value.errno == EFAULT
    # Pages before the first that needed a fault are outputs, from there on inputs; those faulted in stay so.
    assert [shown(word) for word in asker.range.hmm_pfns.tolist()] == ["0", "0", "V"] + ["0"] * 5
    assert int(asker.range.hmm_pfns[2]) == READ
    assert [one.entry(i).kind is PteKind.PRESENT for i in range(8)] == [i in {2, 3, 4, 7} for i in range(8)]


def test_a_hole_is_faulted_as_a_whole_and_ends_with_its_area(lab) -> None:
    one = lab()
    one.map(4, write=False)
    one.map(4, at=4, write=False, prot=PROT_READ)
    asker = Asker(one)
    found = asker.ask(0, 8, mask=WRITE, words=[0, 0, WRITE, 0, 0, 0, 0, 0])
    # There is a table now, in which the second area's entries are none.
    assert [shown(word) for word in found] == ["VW"] * 4 + ["0"] * 4
    found = asker.ask(0, 8, mask=WRITE, words=[0, 0, 0, 0, 0, 0, READ, 0])
    assert [shown(word) for word in found] == ["VW"] * 4 + ["0", "0", "V", "V"]


def test_two_areas_and_the_gap_between_them(lab) -> None:
    one = lab()
    one.map(3)
    one.map(3, at=5)
    asker = Asker(one)
    assert [shown(word) for word in asker.ask(0, 8)] == ["VW"] * 3 + ["E"] * 2 + ["VW"] * 3
    assert [shown(word) for word in asker.ask(0, 8, mask=WRITE, words=[WRITE] * 3 + [0] * 2 + [WRITE] * 3)] == [
        "VW",
        "VW",
        "VW",
        "E",
        "E",
        "VW",
        "VW",
        "VW",
    ]
    with pytest.raises(KernelError) as caught:
        asker.ask(0, 8, WRITE)
    assert caught.value.errno == EFAULT
    # The first area was done before that.
    assert [shown(word) for word in asker.range.hmm_pfns.tolist()] == ["VW"] * 3 + ["0"] * 5


@pytest.mark.parametrize(
    ("what", "errno"),
    [
        ("the range is empty before anything", EINVAL),
        ("an invalidation before the walk", EBUSY),
        ("no area before permission", EFAULT),
        ("permission before memory", EPERM),
        ("memory at last", ENOMEM),
    ],
)
def test_which_error_comes_first(lab, what: str, errno: int) -> None:
    one = lab()
    one.map(4, write=False)
    one.write(3)
    if errno in {EPERM, EFAULT, EBUSY, EINVAL}:
        one.mm.mprotect(BASE, 4 * PAGE, PROT_READ)
    one.kernel.arm("alloc.folio", times=9)
    asker = Asker(one)
    first = 4 if errno in {EFAULT, EBUSY} else 0
    n = 0 if errno == EINVAL else 1
    range_ = HmmRange(asker.sub, one.va(first), one.va(first + n), np.zeros(1, np.uint64), WRITE)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(asker.sub)
    if errno in {EBUSY, EINVAL}:
        asker.sub.invalidate_seq += 2
    with one.mm.mmap_lock.read(), pytest.raises(KernelError) as caught:
        one.memory.hmm_range_fault(range_)
    assert caught.value.errno == errno, what


def test_ptes_of_a_large_folio_have_no_order(lab) -> None:
    one = lab(thp="always")
    one.map(8)
    one.mm.munmap(one.va(7), PAGE)
    found = Asker(one).ask(0, 7)
    assert [word & HMM_PFN_ORDER_MASK for word in found] == [0] * 7
    assert [word & HMM_PFN_PFN_MASK for word in found] == [one.pfn(i) for i in range(7)]
