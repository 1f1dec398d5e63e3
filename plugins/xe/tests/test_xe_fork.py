"""A process with device memory forks: who sees what the GPU writes then."""

import pytest

PAGE = 4096
PMD = 512 * PAGE


@pytest.mark.parametrize("thp", ["always", "never"])
def test_mm_s2_lets_the_gpu_write_what_the_child_shares(bench, thp):
    """Recorded on 7.3.4 for drm_gpusvm: the fault after the fork maps the shared device page writable."""
    b = bench(thp=thp, quirks="as_written")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr, 512)
    child = b.mm.fork()
    assert b.mapped_pages(addr, 512) == 0
    b.gpu_write(addr, 16)
    assert b.device_pages(addr, 512) == 512
    for page in range(32):
        b.memory.cpu_read(child, addr + page * PAGE)
    assert b.memory.contents.known == {"mm_s2": 16}
    assert not b.memory.contents.mismatches
    child.exit()


@pytest.mark.parametrize("thp", ["always", "never"])
def test_mm_s2_fixed_breaks_the_share_first(bench, thp):
    b = bench(thp=thp, quirks="fixed")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr, 512)
    child = b.mm.fork()
    b.gpu_write(addr, 16)
    for page in range(32):
        b.memory.cpu_read(child, addr + page * PAGE)
    b.cpu_read(addr, 512)
    assert b.memory.contents.known == {}
    assert not b.memory.contents.mismatches
    child.exit()
