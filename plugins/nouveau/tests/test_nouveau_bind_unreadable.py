"""SVM_BIND and memory that the process may not read."""

import pytest
from gpusvm.mm.api import PROT_NONE, PROT_READ, PROT_WRITE
from gpusvm.testing import Bench
from gpusvm_nouveau.info import INFO

PAGE = 4096


@pytest.mark.parametrize(("variant", "moved"), [("as_written", 16), ("fixed", 0)])
def test_nobody_looks_at_the_rights_of_an_area(variant, moved):
    bench = Bench(f"nouveau:quirk.bind_unreadable={variant}", drivers={"nouveau": INFO}, thp="never")
    addr = bench.map(16 * PAGE)
    bench.cpu_write(addr, 16)
    bench.mm.mprotect(addr, 16 * PAGE, PROT_NONE)
    bench.vm.populate(addr, addr + 16 * PAGE)
    assert bench.device_pages(addr, 16) == moved
    bench.mm.mprotect(addr, 16 * PAGE, PROT_READ | PROT_WRITE)
    bench.cpu_read(addr, 16)
    bench.close()
