"""The checker of the mm's invariants on dmirror, whose device pages have other pages behind them."""

from gpusvm.check import Checker

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
