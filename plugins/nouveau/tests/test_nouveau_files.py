"""Two files of one process: what a migration for the one leaves in the page table of the other."""

import pytest

PAGE = 4096


def two_files(bench, quirk):
    b = bench(f"nouveau:quirk.other_files={quirk},quirk.pfns_map_rejected=fixed", thp="never")
    return b, b.driver.vm_create(b.mm, start=0, end=1 << 47)


def mapped(vm, addr, pages):
    return (vm.page_table.perms(addr // PAGE, addr // PAGE + pages) != 0).tolist()


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_other_files_a_second_file_keeps_pages_that_left_for_the_device(bench, quirk):
    b, second = two_files(bench, quirk)
    addr = b.map(4 * PAGE)
    b.gpu_write(addr, 4)
    second.populate(addr + PAGE, addr + 2 * PAGE)
    kept = quirk == "as_written"
    assert mapped(b.vm, addr, 4) == [True, kept, True, True]
    assert mapped(second, addr, 4) == [False, True, False, False]
    second.close()


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_other_files_a_second_file_keeps_pages_that_went_home(bench, quirk):
    b, second = two_files(bench, quirk)
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    second.populate(addr, addr + 4 * PAGE)
    b.gpu_write(addr, 4)
    b.cpu_write(addr)
    assert mapped(b.vm, addr, 4) == [quirk == "as_written", True, True, True]
    b.gpu_read(addr, 4)
    assert b.memory.contents.known == ({"other_files": 1} if quirk == "as_written" else {})
    second.close()
