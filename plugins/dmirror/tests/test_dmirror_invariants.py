"""The checker of the mm's invariants on dmirror, whose device pages have other pages behind them."""

from gpusvm.check import Checker
from gpusvm.mm.api import MADV_HUGEPAGE, PROT_READ, PROT_WRITE
from hmm_harness import Hmm

PAGE, PMD = 4096, 2 << 20


def test_what_mm_s1_misplaces_stays_put_down_to_it_wherever_the_folio_moves(bench):
    b = bench()
    addr, to = b.map(PMD), 1 << 45
    ioctl = b.vm.ioctl
    ioctl.migrate_to_dev(addr, 512)
    b.vm.page_table.unmap(addr // PAGE, addr // PAGE + 512)  # as an invalidation would
    checker = Checker(b.memory).attach()
    ioctl.write(addr + 300 * PAGE, 2)  # lands in pages 0 and 1 of the folio
    b.mm.mremap(addr, PMD, PMD, flags=3, new_addr=to)
    checker.check_quiescent()
    checker.detach()
    there = {to, to + PAGE}
    found = {(each.addresses, each.known) for each in checker.known if each.addresses and each.addresses[0][1] in there}
    assert found == {((("bench", to),), "mm_s1"), ((("bench", to + PAGE),), "mm_s1")}
    assert checker.findings == []


def test_what_mm_q17_leaves_in_a_child_is_known_and_no_end_of_the_check():
    """The child's block reaches beyond the pages that the device has."""
    machine = Hmm(0)
    addr = machine.mm.mmap(None, PMD, PROT_READ | PROT_WRITE)
    machine.mm.madvise(addr, PMD, MADV_HUGEPAGE)
    machine.memory.cpu_write(machine.mm, addr)
    child = machine.mm.fork("child")
    checker = Checker(machine.memory, collect=True).attach()
    machine.fd.ioctl.flags(1)
    machine.fd.ioctl.migrate_to_dev(addr, 512)
    checker.flush()
    checker.detach()
    assert checker.findings == []
    first = child.page_table.entries[addr >> 21].pfn
    assert [(each.invariant, each.addresses, each.pfns, each.known) for each in checker.known] == [
        (35, (("child", addr),), (first,), "mm_q17")
    ]
