"""Every switch of MmQuirks: what comes of it as written, and that it does not when it is fixed."""

from errno import EAGAIN, EBUSY, ENOMEM, ENXIO

import attrs
import numpy as np
import pytest
from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    FAULT_FLAG_USER,
    HMM_PFN_ERROR,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MADV_DONTNEED,
    MEMORY_DEVICE_COHERENT,
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_COHERENT,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    MMU_NOTIFY_CLEAR,
    PROT_READ,
    PROT_WRITE,
    HmmRange,
    MmuNotifierRange,
)
from gpusvm.mm.gup import get_dump_page
from gpusvm.mm.page import PG_LOCKED
from gpusvm.mm.quirks import MmQuirks

PAGE = 4096
READ = HMM_PFN_REQ_FAULT
WRITE = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE
V, W, ERROR = HMM_PFN_VALID, HMM_PFN_WRITE, HMM_PFN_ERROR
SYSTEM, COMPOUND = MIGRATE_VMA_SELECT_SYSTEM, MIGRATE_VMA_SELECT_COMPOUND
PRIVATE, COHERENT = MIGRATE_VMA_SELECT_DEVICE_PRIVATE, MIGRATE_VMA_SELECT_DEVICE_COHERENT

both = pytest.mark.parametrize("variant", ["as_written", "fixed"])


@pytest.fixture
def quirk(lab, request):
    """Build machines with one quirk, the one that the test is named after, in a variant; the rest as written."""
    name = "_".join(request.node.originalname.split("_")[1:3])

    def build(variant, **options):
        return lab(quirks=MmQuirks(**{name: variant}), **options)

    return build


class Everything:
    """Subscribe to everything and hear all but what the device itself does."""

    def __init__(self, one):
        self.owner = one.device.owner
        self.sub = one.memory.mmu_interval_notifier_insert(one.mm, 0, 1 << 46, self)

    def invalidate(self, sub, range_, cur_seq):
        if range_.owner is not self.owner:
            sub.invalidate_seq = cur_seq
        return True


def ask(one, page, n, default=0, *, words=None, mask=0, owner=None):
    """Call hmm_range_fault on pages; the words."""
    if not hasattr(one, "everything"):
        one.everything = Everything(one)
    sub = one.everything.sub
    words = np.zeros(n, np.uint64) if words is None else np.array(words, np.uint64)
    range_ = HmmRange(sub, one.va(page), one.va(page + n), words, default, mask, owner)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
    with one.mm.mmap_lock.read():
        one.memory.hmm_range_fault(range_)
    return words.tolist()


def protect(one, first, n, prot):
    one.mm.mprotect(one.va(first), n * PAGE, prot)


def read_only_and_back(one, n):
    protect(one, 0, n, PROT_READ)
    protect(one, 0, n, PROT_READ | PROT_WRITE)


def to_device(one, n):
    one.device.migrate(one.mm, one.va(0), one.va(n))


def kinds(one, n):
    return [one.entry(i).kind.name for i in range(n)]


def huge(one):
    return one.memory.geometry.pmd_order << HMM_PFN_ORDER_SHIFT


def test_every_switch_has_a_test_of_its_name():
    tested = {"_".join(name.split("_")[1:3]) for name in globals() if name.startswith("test_mm_")}
    assert tested == {each.name for each in attrs.fields(MmQuirks)}


@pytest.mark.parametrize(("variant", "offset"), [("as_written", 0), ("fixed", 5)])
def test_mm_s1_a_walk_that_starts_inside_an_own_leaf_gets_the_head(quirk, variant, offset):
    one = quirk(variant, thp="always")
    one.map(8)
    to_device(one, 8)
    head, owner = one.entry(0).pfn, one.device.owner
    assert ask(one, 0, 8, WRITE, owner=owner) == [V | W | huge(one) | head + i for i in range(8)]
    assert ask(one, 5, 2, owner=owner) == [V | W | huge(one) | head + offset + i for i in range(2)]


@both
def test_mm_s2_a_read_only_own_entry_answers_a_write_request(quirk, variant):
    one = quirk(variant)
    one.map(2)
    to_device(one, 2)
    pfns = [one.pfn(i) for i in range(2)]
    read_only_and_back(one, 2)
    one.device.window = PAGE
    assert ask(one, 0, 2, READ, owner=one.device.owner) == [V | pfn for pfn in pfns]
    words = ask(one, 0, 2, WRITE, owner=one.device.owner)
    if variant == "as_written":
        assert words == [V | pfn for pfn in pfns]
        assert one.device.faults == []
    else:
        assert words == [V | W | one.pfn(i) for i in range(2)]
        assert len(one.device.faults) == 2
    one.check_quiescent()


@pytest.mark.parametrize(("variant", "kind", "write"), [("as_written", "PRIVATE", 0), ("fixed", "THP", W)])
def test_mm_s2_holds_for_leaves_too(quirk, variant, kind, write):
    one = quirk(variant, thp="always")
    one.map(8)
    to_device(one, 8)
    read_only_and_back(one, 8)
    assert {word & W for word in ask(one, 0, 8, WRITE, owner=one.device.owner)} == {write}
    assert one.entry(0).kind.name == kind


def mapped_by_ptes(one):
    """Make a device block whose PMD is split."""
    one.map(8)
    to_device(one, 8)
    protect(one, 1, 1, PROT_READ)
    protect(one, 1, 1, PROT_READ | PROT_WRITE)


@pytest.mark.parametrize(("variant", "rounds"), [("as_written", 2), ("fixed", 1)])
def test_mm_s3_a_fault_on_a_tail_takes_two_rounds(quirk, variant, rounds):
    one = quirk(variant, thp="always")
    mapped_by_ptes(one)
    one.read(5)
    assert len(one.device.faults) == rounds
    one.check_quiescent()


@both
def test_mm_s3_a_round_that_fails_locks_the_head_for_ever(quirk, variant):
    one = quirk(variant, thp="always")
    mapped_by_ptes(one)
    head = one.pfn(0)
    vma = one.mm.vma_lookup(one.va(5))
    one.device.fail_copies = 1
    with one.mm.mmap_lock.read():
        assert one.memory.handle_mm_fault(one.mm, vma, one.va(5), FAULT_FLAG_USER) != 0
    assert bool(one.flags(head) & PG_LOCKED) is (variant == "as_written")


@pytest.mark.parametrize(("variant", "moved"), [("as_written", 8), ("fixed", 16)])
def test_mm_s4_only_the_first_block_of_a_hole_of_two_is_populated(quirk, variant, moved):
    one = quirk(variant)
    one.map(16, write=False)
    to_device(one, 16)
    assert sum(1 << order for order in one.device.live.values()) == moved
    assert one.read(*range(16)) == [0] * 16


@pytest.mark.parametrize(("variant", "left"), [("as_written", 1), ("fixed", 0)])
def test_mm_s5_a_failing_classic_notifier_leaves_the_interval_side_open(quirk, variant, left):
    class No:
        release = None
        invalidate_range_end = None

        def invalidate_range_start(self, range_):
            return -EAGAIN

    one = quirk(variant)
    one.watch()
    one.memory.mmu_notifier_register(No(), one.mm)
    range_ = MmuNotifierRange(one.mm, one.va(0), one.va(1), MMU_NOTIFY_CLEAR, flags=0)
    assert one.memory.invalidate_range_start(range_) == -EAGAIN
    assert one.mm.notifiers.active_invalidate_ranges == left
    readers = [one.kernel.spawn(one.memory.mmu_interval_read_begin, one.watchers[0].sub, name="reader", daemon=True)]
    one.kernel.settle()
    assert [reader.done for reader in readers] == [variant == "fixed"]


@both
def test_mm_s6_a_core_dump_has_a_hole_for_a_device_private_block(quirk, variant):
    one = quirk(variant, thp="always")
    one.map(8)
    to_device(one, 8)
    found = get_dump_page(one.memory, one.mm, one.va(3))
    if variant == "as_written":
        assert (found, kinds(one, 1), one.device.faults) == (None, ["PRIVATE"], [])
    else:
        assert (found, kinds(one, 1)) == (one.pfn(3), ["THP"])
        assert one.memory.contents.token(one.pfn(3)) == one.memory.contents.expected(one.mm, one.va(3) // PAGE)
        one.memory.folio_put(one.memory.folio_head(one.pfn(3)))
    one.check_quiescent()


@both
def test_mm_s6_a_core_dump_has_no_hole_for_device_private_pages(quirk, variant):
    one = quirk(variant)
    one.map(9, write=False)
    one.write(0)
    one.read(1)
    to_device(one, 1)
    found = [get_dump_page(one.memory, one.mm, one.va(i)) for i in (0, 1, 2, 8)]
    # Holes are where nothing was ever written.
    assert found == [one.pfn(0), None, None, None]
    one.memory.folio_put(one.pfn(0))
    one.check_quiescent()


@both
def test_mm_s7_the_failure_of_device_memory_looks_at_a_mapping_that_is_none(quirk, variant):
    one = quirk(variant)
    one.map(1)
    to_device(one, 1)
    mapped, free = one.pfn(0), one.pfn(0) + 1
    one.kernel.tracer.on = True
    errors = []
    for pfn in (mapped, free):
        with pytest.raises(KernelError) as caught:
            one.memory.memory_failure(pfn)
        errors.append(caught.value.errno)
    warnings = [event[3:] for event in one.kernel.tracer.events if event[2] == "warn"]
    if variant == "as_written":
        assert errors == [ENXIO, EBUSY]
        assert warnings == [("dax_lock_folio", "anon_vma taken for an address_space", mapped)]
    else:
        assert errors == [ENXIO, ENXIO]
        assert warnings == []
    assert kinds(one, 1) == ["PRIVATE"]
    one.read(0)
    one.check_quiescent()


@pytest.mark.parametrize(("variant", "word"), [("as_written", ERROR), ("fixed", 0)])
def test_mm_q2_a_foreign_leaf_is_an_error_where_a_foreign_pte_is_not(quirk, variant, word):
    one = quirk(variant, thp="always")
    one.map(10)
    to_device(one, 10)
    assert ask(one, 2, 3) == [word] * 3
    assert ask(one, 8, 2) == [0] * 2
    assert ask(one, 2, 3, READ) == [V | W | huge(one) | one.pfn(2) + i for i in range(3)]
    one.check_quiescent()


@pytest.mark.parametrize(("variant", "cpages", "holes"), [("as_written", 6, [2, 3, 4, 5]), ("fixed", 2, [])])
def test_mm_q3_a_migration_home_collects_holes(quirk, variant, cpages, holes):
    one = quirk(variant)
    one.map(6, write=False)
    one.write(0, 1)
    to_device(one, 2)
    args = one.device.setup(one.mm, one.va(0), one.va(6), flags=PRIVATE)
    assert args.cpages == cpages
    assert [i for i, word in enumerate(args.src.tolist()) if word == MIGRATE_PFN_MIGRATE] == holes
    one.device.fill_to_ram(args.src, args.dst, 6)
    one.memory.migrate_vma_pages(args)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert kinds(one, 6) == ["PRESENT"] * 2 + ["NONE"] * 4
    one.check_quiescent()


@pytest.mark.parametrize("part", [False, True], ids=["small", "part"])
@both
def test_mm_q5_a_fault_that_must_split_a_leaf_never_gets_anywhere(quirk, variant, part):
    one = quirk(variant, thp="always")
    one.map(8)
    to_device(one, 8)
    rounds = []

    def migrate_to_ram(vmf):
        rounds.append(vmf.pte_level)
        end = 4 if part else 8
        one.device.bring_home(
            vmf.mm, one.va(0), one.va(end), fault_page=vmf.page, flags=PRIVATE | (COMPOUND if part else 0)
        )
        return 0

    one.device.migrate_to_ram = migrate_to_ram
    vma = one.mm.vma_lookup(one.va(3))
    for _ in range(3):
        with one.mm.mmap_lock.read():
            assert one.memory.handle_mm_fault(one.mm, vma, one.va(3), FAULT_FLAG_USER) == 0
    one.check_quiescent()
    if variant == "as_written":
        assert rounds == [False] * 3
        assert one.entry(3).kind.name == "PRIVATE"
    else:
        assert rounds == [False]
        assert kinds(one, 8) == (["PRESENT"] * 4 + ["PRIVATE"] * 4 if part else ["PRESENT"] * 8)
    del one.device.migrate_to_ram
    one.read(*range(8))
    one.finish()


@both
def test_mm_q6_metadata_moves_though_migrate_is_clear(quirk, variant):
    one = quirk(variant)
    one.map(6)
    args = one.device.setup(one.mm, one.va(0), one.va(6), flags=SYSTEM)
    one.device.fill_to_device(args)
    dst = int(args.dst[2]) >> MIGRATE_PFN_SHIFT
    args.src[2] &= ~np.uint64(MIGRATE_PFN_MIGRATE)
    one.memory.migrate_vma_pages(args)
    zone = one.pages.zone(dst)
    assert bool(zone.m_mapping[dst - zone.base]) is (variant == "as_written")
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert kinds(one, 6) == ["PRIVATE"] * 2 + ["PRESENT"] + ["PRIVATE"] * 3
    assert one.device.freed == [(dst, 0)]
    one.check_quiescent()


@pytest.mark.parametrize("thp", ["never", "always"])
@both
def test_mm_q7_pages_that_nobody_asked_for_are_faulted_in(quirk, variant, thp):
    one = quirk(variant, thp=thp)
    one.map(4, at=8, write=False)  # too small for a block
    one.write(8)
    words = ask(one, 8, 4, mask=READ, words=[0, READ, 0, READ])
    assert [bool(word & V) for word in words] == [True, True, variant == "as_written", True]
    # A write fault of one page, and read faults of the others.
    one.map(4, at=16, write=False)
    words = ask(one, 16, 4, mask=WRITE, words=[WRITE, READ, READ, READ])
    assert [bool(word & W) for word in words] == [True] + [variant == "as_written"] * 3


@both
def test_mm_q7_an_error_on_such_a_page_fails_the_call(quirk, variant):
    one = quirk(variant, mode="explored")
    one.map(4, write=False)
    one.write(3)
    one.kernel.arm("alloc.folio", nth=2)
    if variant == "as_written":
        with pytest.raises(KernelError) as error:
            ask(one, 0, 4, mask=WRITE, words=[WRITE, 0, 0, 0])
        assert error.value.errno == ENOMEM
    else:
        words = ask(one, 0, 4, mask=WRITE, words=[WRITE, 0, 0, 0])
        assert [bool(word & V) for word in words] == [True, False, False, True]


@both
def test_mm_q7_the_device_loses_its_own_pages_behind_a_fault(quirk, variant):
    one = quirk(variant)
    one.map(4, write=False)
    one.write(1, 2, 3)
    one.device.migrate(one.mm, one.va(1), one.va(4))
    one.device.window = PAGE
    ask(one, 0, 4, READ, owner=one.device.owner)
    assert kinds(one, 4) == ["PRESENT"] + (["PRESENT"] if variant == "as_written" else ["PRIVATE"]) * 3


@pytest.mark.parametrize("thp", ["always", "never"])
@both
def test_mm_q8_a_coherent_block_comes_home_only_as_system_memory(quirk, variant, thp):
    one = quirk(variant, thp=thp)
    one.map(8)
    device = type(one.device)(one.memory, 64, type=MEMORY_DEVICE_COHERENT)
    device.migrate(one.mm, one.va(0), one.va(8))
    stays = variant == "as_written" and thp == "always"
    with one.mm.mmap_lock.read():
        one.device.bring_home(one.mm, one.va(0), one.va(8), flags=COHERENT | COMPOUND)
        assert len(device.live) == (1 if thp == "always" else 8)  # another owner's
        device.bring_home(one.mm, one.va(0), one.va(8), flags=COHERENT | COMPOUND)
    assert bool(device.live) is stays
    with one.mm.mmap_lock.read():
        one.device.bring_home(one.mm, one.va(0), one.va(8), flags=SYSTEM | COMPOUND)
    assert not device.live
    one.read(*range(8))


@pytest.mark.parametrize(("variant", "faults"), [("as_written", 10), ("fixed", 1)])
def test_mm_q9_a_fault_on_a_locked_block_is_taken_again_and_again(quirk, variant, faults):
    one = quirk(variant, thp="always")
    one.map(8)
    to_device(one, 8)
    head = one.entry(0).pfn
    one.memory.folio_lock(head)
    before = one.kernel.stats.cpu_minor_faults
    reader = one.kernel.spawn(one.read, 3, name="reader")
    one.kernel.sleep_ns(9_500)
    one.memory.folio_unlock(head)
    reader.join()
    assert one.kernel.stats.cpu_minor_faults - before == faults
    assert one.entry(3).kind.name == "THP"


@pytest.mark.parametrize(("variant", "levels"), [("as_written", [False, True]), ("fixed", [False])])
def test_mm_q10_a_fault_folio_with_small_destinations_stays(quirk, variant, levels):
    one = quirk(variant, thp="always")
    one.map(8)
    to_device(one, 8)
    one.device.compound_home = False
    one.read(0)  # the head, of which MM-S3 keeps its hands off
    assert [pte_level for _, _, pte_level in one.device.faults] == levels
    assert kinds(one, 8) == ["PRESENT"] * 8
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize(("variant", "cpages"), [("as_written", 2), ("fixed", 16)])
def test_mm_q11_a_block_counts_once(quirk, variant, cpages):
    one = quirk(variant, thp="always")
    one.map(8)
    one.map(8, at=8, write=False)
    args = one.device.migrate(one.mm, one.va(0), one.va(16))
    assert (args.cpages, args.npages) == (cpages, 16)
    assert [bool(args.src[i] & np.uint64(MIGRATE_PFN_COMPOUND)) for i in (0, 8)] == [True] * 2
    one.check_quiescent()


@both
def test_mm_q12_a_fork_meets_a_locked_exclusive_page(quirk, variant):
    one = quirk(variant)
    one.map(3)
    tokens = one.read(0, 1, 2)
    with one.mm.mmap_lock.read():
        page = one.memory.make_device_exclusive(one.mm, one.va(1), one)

    def forker():
        try:
            return one.mm.fork()
        except KernelError as error:
            return error.errno

    task = one.kernel.spawn(forker, name="forker")
    one.kernel.settle()
    assert task.done == (variant == "as_written")
    one.memory.folio_unlock(page)
    one.memory.folio_put(page)
    child = task.join()
    if variant == "as_written":
        assert child == ENOMEM
    else:
        assert [one.memory.cpu_read(child, one.va(i)) for i in range(3)] == tokens
        child.exit()
    one.check_quiescent()
    one.finish()


@pytest.mark.parametrize("thp", ["always", "never"])
@both
def test_mm_q13_a_device_page_stays_read_only(quirk, variant, thp):
    one = quirk(variant, thp=thp)
    one.map(8)
    to_device(one, 8)
    read_only_and_back(one, 8)
    assert kinds(one, 8) == ["PRIVATE"] * 8
    assert [one.entry(i).write for i in range(8)] == [variant == "fixed"] * 8
    one.check_quiescent()


@both
def test_mm_q16_a_new_boundary_invalidates_a_block_that_no_pmd_maps(quirk, variant):
    one = quirk(variant)
    one.map(24)
    one.watch()
    protect(one, 3, 10, PROT_READ)
    spurious = [("p", "CLEAR", 0, 8, "-"), ("p", "CLEAR", 8, 16, "-")] if variant == "as_written" else []
    assert one.events == [*spurious, ("p", "PROTECTION_VMA", 3, 13, "-")]


@both
def test_mm_q16_a_block_that_a_pmd_maps_is_invalidated_in_any_case(quirk, variant):
    one = quirk(variant, thp="always")
    one.map(24)
    one.watch()
    protect(one, 3, 10, PROT_READ)
    assert one.events == [
        ("p", "CLEAR", 0, 8, "-"),
        ("p", "CLEAR", 8, 16, "-"),
        ("p", "PROTECTION_VMA", 3, 13, "-"),
    ]


@both
def test_mm_q17_a_shared_block_gets_small_destinations(quirk, variant):
    one = quirk(variant, thp="always")
    one.map(8)
    tokens = one.read(*range(8))
    child = one.mm.fork()
    one.device.migrate(one.mm, one.va(0), one.va(8), small=True)
    assert kinds(one, 8) == ["PRIVATE"] * 8
    # The child has a leaf over the first of eight pages, or eight entries of its own.
    assert one.entry(0, child).kind.name == "PRIVATE"
    assert hasattr(one.entry(0, child), "zero") == (variant == "fixed")
    assert [one.counts(one.pfn(i)) for i in range(8)] == ["2/2", *["1/1" if variant == "as_written" else "2/2"] * 7]
    assert len(one.memory.contents.tainted_vpns) == (8 if variant == "as_written" else 0)
    if variant == "fixed":
        one.check_quiescent()
        assert [one.memory.cpu_read(child, one.va(i)) for i in range(8)] == tokens
        child.exit()
        one.check_quiescent()
    assert one.read(*range(8)) == tokens


def test_mm_q17_what_the_other_process_reads_is_known(quirk):
    """As written it maps a block from the first small page on: what it finds there is put down to the quirk."""
    one = quirk("as_written", thp="always")
    one.map(8)
    to_device(one, 8)
    child = one.mm.fork()
    one.device.compound_home = False
    with one.mm.mmap_lock.read():
        one.device.bring_home(one.mm, one.va(0), one.va(8))
    assert kinds(one, 8) == ["PRESENT"] * 8
    assert one.entry(0, child).kind.name == "THP"
    one.write(*range(1, 8))
    for i in range(1, 8):
        one.memory.cpu_read(child, one.va(i))
    assert one.memory.contents.known == {"mm_q17": 7}
    assert not one.memory.contents.mismatches


@both
def test_mm_q18_a_fault_page_that_goes_while_its_folio_is_split(quirk, variant):
    one = quirk(variant, thp="always")
    one.map(8)
    tokens = one.read(*range(8))
    to_device(one, 8)
    one.mm.mprotect(one.va(0), 2 * PAGE, PROT_READ)
    one.mm.mprotect(one.va(0), 2 * PAGE, PROT_READ | PROT_WRITE)  # PTEs map the folio now
    bring_home = one.device.migrate_to_ram

    def migrate_to_ram(vmf):
        if vmf.address == one.va(3):
            # Another thread, which needs no mmap_lock for it.
            one.mm.madvise(one.va(3), PAGE, MADV_DONTNEED)
        return bring_home(vmf)

    one.device.migrate_to_ram = migrate_to_ram
    page = one.pfn(3)
    if variant == "as_written":
        message = (
            rf"^folio_get of page {page:#x}, which was freed when its folio was split: nothing maps it any more, and "
            r"the reference of its fault was the head's \(MM-Q18\)$"
        )
        with pytest.raises(ModelError, match=message):
            one.read(3)
        return
    assert one.read(3) == [0]
    assert one.read(*range(8)) == [*tokens[:3], 0, *tokens[4:]]
    one.check_quiescent()
    one.finish()
