"""What dmirror is charged for: the same as any driver that does the same."""

from gpusvm.run.costs import load_profile

PAGE, PMD = 4096, 2 << 20


def test_making_a_page_exclusive_is_charged_as_reading_one_entry(bench):
    b = bench(costs=load_profile("h100-pcie5").costs)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    assert b.gpu_atomic(addr) == 1
    assert b.kernel.charged["get_pages_base"] == b.kernel.costs.get_pages_base
    assert b.kernel.charged["get_pages_per_entry"] == b.kernel.costs.get_pages_per_entry


def test_what_moved_is_stored_entry_by_entry(bench):
    for thp in ("always", "never"):
        b = bench(costs=load_profile("h100-pcie5").costs, thp=thp)
        addr = b.map(PMD)
        b.cpu_write(addr, 512)
        assert b.vm.populate(addr, addr + PMD) == PMD
        assert b.kernel.charged["bind_per_pte"] == 512 * b.kernel.costs.bind_per_pte
