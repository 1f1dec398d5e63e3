"""A fault on a range of which a part was protected (docs/case-studies/xe-endless-retry.md)."""

import pytest
from gpusvm.errors import ModelError
from gpusvm.mm.api import PROT_READ
from gpusvm.testing import Bench
from gpusvm_xe.plugin import INFO

PAGE, PMD = 4096, 2 << 20


def protected(variant, prot):
    """Let the GPU write a block, and protect a page in the middle of it: the range stays, its mappings are gone.

    What is in VRAM would be mapped all the same where it is only write-protected (MM-S2), so it is brought home.
    """
    b = Bench(f"xe:quirk.endless_retry={variant}", drivers={"xe": INFO}, vram_bytes=64 << 20)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr)
    b.mm.mprotect(addr + 100 * PAGE, PAGE, prot)
    b.cpu_read(addr)
    return b, addr


@pytest.mark.parametrize("prot", [PROT_READ, 0], ids=["read-only", "no access"])
def test_fixed_the_range_gives_way_to_one_that_fits(prot):
    b, addr = protected("fixed", prot)
    assert b.gpu_write(addr) == 1
    assert b.gpu_write(addr + 300 * PAGE) == 1
    b.close()


@pytest.mark.parametrize(("prot", "error"), [(PROT_READ, "EPERM"), (0, "EFAULT")], ids=["read-only", "no access"])
def test_as_written_the_worker_never_ends(prot, error):
    b, addr = protected("as_written", prot)
    with pytest.raises(ModelError) as caught:
        b.gpu_write(addr)
    assert f"no end: the fault on {addr:#x} began again 2000 times (-{error}: " in str(caught.value)


def test_where_it_ends_can_be_said():
    b, addr = protected("as_written", PROT_READ)
    b.kernel.restarts_max = 5
    before = b.kernel.stats.retries
    with pytest.raises(ModelError, match=f"no end: the fault on {addr:#x} began again 5 times"):
        b.gpu_write(addr)
    assert b.kernel.stats.retries - before == 6
