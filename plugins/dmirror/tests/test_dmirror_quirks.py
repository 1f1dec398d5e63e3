"""The quirks of dmirror that are about several files: what comes of them as written, and what when they are fixed."""

import pytest
from gpusvm.errors import DriverError

PAGE, PMD = 4096, 2 << 20


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_other_files_a_childs_own_file_keeps_pages_that_went_home(bench, quirk, thp):
    b = bench(f"dmirror:quirk.other_files={quirk}", thp=thp)
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    mm = b.mm.fork("child")
    file = b.driver.vm_create(mm, start=0, end=1 << 47)
    file.ioctl.read(addr, 512)
    assert b.memory.cpu_read(mm, addr + 3 * PAGE) != 0
    moved = 1 if thp == "never" else 512
    kept = int((file.page_table.perms(addr // PAGE, addr // PAGE + 512) != 0).sum())
    assert kept == (512 if quirk == "as_written" else 512 - moved)
    file.ioctl.read(addr, 512)
    b.memory.cpu_write(mm, addr + 3 * PAGE)
    file.close()
    mm.exit()


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_other_files_a_second_file_keeps_pages_that_left_for_the_device(bench, quirk):
    b = bench(f"dmirror:quirk.other_files={quirk}", thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    second = b.driver.vm_create(b.mm, start=0, end=1 << 47)
    second.ioctl.read(addr, 8)
    b.vm.populate(addr + 2 * PAGE, addr + 4 * PAGE)
    b.vm.ioctl.write(addr, 8)
    second.ioctl.read(addr, 8)
    assert b.memory.contents.known == ({"other_files": 2} if quirk == "as_written" else {})
    second.close()


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_evict_unchecked_without_a_large_page_to_come_home_to(bench, quirk):
    b = bench(f"dmirror:quirk.evict_unchecked={quirk}")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + PMD)
    b.kernel.arm("alloc.folio")
    if quirk == "as_written":
        with pytest.raises(DriverError) as raised:
            b.driver.evict()
        assert str(raised.value) == (
            "dmirror_device_evict_chunk: no page of order 9 for a folio that goes home: a NULL pointer"
        )
        b.kernel.close()
        b.close = b.kernel.close
        return
    b.driver.evict()
    assert b.device_pages(addr, 512) == 0
    b.cpu_read(addr, 512)
