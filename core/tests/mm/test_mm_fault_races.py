"""What a fault finds when it has slept, and what must be held meanwhile."""

import numpy as np
import pytest
from gpusvm.errors import ModelError
from gpusvm.mm.api import HMM_PFN_REQ_FAULT, HmmRange
from gpusvm.mm.page import PG_ANON_EXCLUSIVE
from gpusvm.mm.pgtable import PmdKind
from gpusvm.mm.zap import zap_range

PAGE = 4096
BASE = 1 << 30


def test_a_huge_page_that_left_while_a_write_waited_for_its_lock(lab):
    """mm/huge_memory.c:do_huge_pmd_wp_page unlocks before it puts: its reference may be the last."""
    one = lab(thp="always")
    one.map(8)
    head = one.entry(0).pfn
    one.mm.page_table.set_leaf(BASE >> 15, PmdKind.THP, head, write=False)
    one.pages.ram.m_flags[head] &= ~PG_ANON_EXCLUSIVE
    one.memory.folio_lock(head)
    writer = one.kernel.spawn(one.write, 0, name="writer")
    one.kernel.settle()
    with one.mm.mmap_lock.read():
        zap_range(one.memory, one.mm.vmas[0], BASE, BASE + 8 * PAGE, [])
    assert one.counts(head) == "1/0"
    one.memory.folio_unlock(head)
    writer.join()
    assert one.entry(0).write
    one.check_quiescent()
    one.finish()


def test_hmm_and_exclusive_access_need_mmap_lock(lab):
    one = lab()
    one.map(1)
    one.watch()
    sub = one.watchers[0].sub
    range_ = HmmRange(sub, BASE, BASE + PAGE, np.zeros(1, np.uint64), default_flags=HMM_PFN_REQ_FAULT)
    range_.notifier_seq = one.memory.mmu_interval_read_begin(sub)
    with pytest.raises(ModelError, match=r"^hmm_range_fault without the mmap_lock of p$"):
        one.memory.hmm_range_fault(range_)
    with pytest.raises(ModelError, match=r"^make_device_exclusive without the mmap_lock of p$"):
        one.memory.make_device_exclusive(one.mm, BASE, None)
    one.finish()
