"""What the GPU may do with memory is no more than what the process may do without a fault."""

from gpusvm.conformance.scene import PAGE, perms, written
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_READ
from gpusvm.gpu import WRITE
from gpusvm.mm.api import PROT_READ

_PAGES = 16


@check("rights.read-only.read", since="1.0", ref="mm/hmm.c:pte_to_hmm_pfn_flags")
def test_read_only(lab: Lab) -> None:
    """After a read of memory that the process may only read, served or refused, the GPU cannot write it."""
    bench = lab.bench(thp="never")
    addr = written(bench, _PAGES)
    bench.mm.mprotect(addr, _PAGES * PAGE, PROT_READ)
    for page in range(_PAGES):
        bench.fault(addr + page * PAGE, ACCESS_READ)
    writable = [page for page in range(_PAGES) if perms(bench, addr + page * PAGE) & WRITE]
    assert not writable, f"the GPU may write pages {writable}, which the process may only read"


@check("rights.zero-page.read", since="1.0", ref="mm/memory.c:do_anonymous_page")
def test_zero_page(lab: Lab) -> None:
    """Where a CPU has only read the GPU cannot write the zero page that is there, which all processes share."""
    bench = lab.bench(thp="never")
    addr = bench.map(_PAGES * PAGE)
    bench.cpu_read(addr, _PAGES)
    zero = bench.memory.zero_pfn
    for page in range(_PAGES):
        bench.fault(addr + page * PAGE, ACCESS_READ)
    first = addr // PAGE
    table = bench.vm.page_table
    seen = zip(table.pfns(first, first + _PAGES), table.perms(first, first + _PAGES), strict=True)
    shared = [page for page, (pfn, perm) in enumerate(seen) if pfn == zero and perm & WRITE]
    assert not shared, f"the GPU may write the zero page as pages {shared}"
