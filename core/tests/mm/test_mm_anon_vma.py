"""Which areas share an anon_vma, and in what order rmap visits them."""

import pytest
from gpusvm.mm.api import PROT_READ, PROT_WRITE

PAGE = 4096
BASE = 1 << 30


@pytest.mark.parametrize("thp", ["never", "always"])
def test_a_filled_hole_shares_the_anon_vma_of_a_neighbour(lab, thp):
    """mm/migrate_device.c:migrate_vma_insert_page takes the anon_vma as a fault does, and the areas merge again."""
    one = lab(thp=thp)
    one.map(8)
    one.map(8, at=8, prot=PROT_READ, write=False)
    one.device.migrate(one.mm, BASE + 8 * PAGE, BASE + 16 * PAGE)
    first, second = one.mm.vmas
    assert first.anon_vma is not None
    assert second.anon_vma is first.anon_vma
    one.mm.mprotect(BASE, 16 * PAGE, PROT_READ | PROT_WRITE)
    assert [(vma.start, vma.end) for vma in one.mm.vmas] == [(BASE, BASE + 16 * PAGE)]
    one.check_quiescent()
    one.finish()


def test_an_area_whose_boundary_moved_is_visited_behind_its_equals(lab):
    """mm/vma.c:vma_complete puts the area into the anon_vma's tree again: by pgoff, then by who came last."""
    one = lab()
    one.map(4)
    two = one.share(4)
    rmap = one.memory.rmap
    head = one.pfn(0)

    def order():
        return [vma.mm.name for vma, _, _ in rmap.places(head)]

    assert order() == ["p", "q"]
    one.mm.mprotect(BASE + 2 * PAGE, 2 * PAGE, PROT_READ)
    assert order() == ["q", "p"]
    anon_vma = one.mm.vmas[0].anon_vma
    one.mm.munmap(BASE, PAGE)
    assert [(vma.mm.name, vma.pgoff - BASE // PAGE) for vma in anon_vma.vmas] == [("q", 0), ("p", 1), ("p", 2)]
    two.exit()
    one.finish()


def test_an_area_is_cut_under_its_anon_vma_s_lock(lab):
    """mm/vma.c:vma_prepare locks it before vma_adjust_trans_huge, whose CLEAR callbacks so run under it."""
    one = lab(thp="always")
    one.map(24)
    one.watch()
    lock = one.mm.vmas[0].anon_vma.lock
    held = []
    log = one.watchers[0].invalidate

    def invalidate(sub, range_, cur_seq):
        held.append(lock.is_write_locked)
        return log(sub, range_, cur_seq)

    one.watchers[0].invalidate = invalidate
    one.mm.mprotect(BASE + 4 * PAGE, 8 * PAGE, PROT_READ)
    assert [(event, held[i]) for i, (_, event, _, _, _) in enumerate(one.events)] == [
        ("CLEAR", True),
        ("CLEAR", True),
        ("PROTECTION_VMA", False),
    ]
    held.clear()
    one.events.clear()
    # The boundary between two areas moves.
    one.mm.mprotect(BASE + 12 * PAGE, 8 * PAGE, PROT_READ)
    assert [(event, held[i]) for i, (_, event, _, _, _) in enumerate(one.events)] == [
        ("CLEAR", True),
        ("PROTECTION_VMA", False),
    ]
    one.check_quiescent()
    one.finish()
