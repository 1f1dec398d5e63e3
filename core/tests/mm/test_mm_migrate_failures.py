"""Where filling a hole runs out of memory, and what setup says of a folio that somebody unlocked under it."""

import pytest
from gpusvm.errors import ModelError
from gpusvm.mm.api import FAULT_FLAG_WRITE, MIGRATE_PFN_MIGRATE, MIGRATE_VMA_SELECT_SYSTEM, VM_FAULT_OOM

PAGE = 4096
BASE = 1 << 30


@pytest.mark.parametrize("thp", ["never", "always"])
def test_no_memory_for_the_page_table_of_a_hole(lab, thp):
    """mm/migrate_device.c:migrate_vma_insert_page and _huge_pmd_page give up; the driver's pages are dropped."""
    one = lab(thp=thp)
    one.map(8, write=False)
    one.kernel.arm("alloc.pte_table")
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert not (args.src & MIGRATE_PFN_MIGRATE).any()
    assert not one.device.live
    assert one.mm.rss == [0, 0, 0]
    assert one.mm.page_table.lookup(BASE) is None
    one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert one.mm.rss == [8, 0, 0]
    one.check_quiescent()
    one.finish()


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("pages", [1, 8])
def test_setup_finds_out_who_lost_a_lock(lab, pages):
    """Whatever MM-S3 does to a fault folio, without one every collected folio is locked when setup ends."""
    one = lab()
    one.map(8)
    two = one.share(8)
    one.watch(two)
    watcher = one.watchers[0]
    log = watcher.invalidate

    def invalidate(sub, range_, cur_seq):
        one.memory.folio_unlock(head)
        watcher.invalidate = log
        return log(sub, range_, cur_seq)

    head = one.pfn(0)
    watcher.invalidate = invalidate
    with pytest.raises(ModelError, match=r"^setup left a folio of .* unlocked, mapped or on the LRU$"):
        one.device.setup(one.mm, BASE, BASE + pages * PAGE, flags=MIGRATE_VMA_SELECT_SYSTEM)


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("flags", [0, FAULT_FLAG_WRITE])
def test_no_memory_for_the_page_table_of_a_fault(lab, thp, flags):
    """mm/memory.c:do_anonymous_page and mm/huge_memory.c:do_huge_pmd_anonymous_page: out of memory, nothing mapped."""
    one = lab(thp=thp)
    one.map(8, write=False)
    vma = one.mm.vmas[0]
    with one.mm.mmap_lock.read():
        one.kernel.arm("alloc.pte_table")
        assert one.memory.handle_mm_fault(one.mm, vma, BASE, flags) == VM_FAULT_OOM
        assert one.mm.page_table.lookup(BASE) is None
        assert one.memory.handle_mm_fault(one.mm, vma, BASE, flags) == 0
    assert one.mm.page_table.lookup(BASE) is not None
    one.check_quiescent()
    one.finish()
