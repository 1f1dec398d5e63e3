"""What becomes of data when the device sleeps under its pages."""

import pytest

PAGE, PMD, CHUNK = 4096, 2 << 20, 8 << 20
SECOND = 1_000_000_000


def asleep(bench, chunks, **quirks):
    """Bring a page and a block to the device, into as many chunks, map them by the GPU, and let the device sleep."""
    spec = ",".join(["nouveau:chunk_bytes=8M", *(f"quirk.{name}={value}" for name, value in quirks.items())])
    b = bench(spec, vram_bytes=4 * CHUNK, thp="always", quirks="fixed")
    small, large = b.map(PAGE), b.map(PMD)
    for addr, pages in [(small, 1), (large, 512)][:chunks]:
        b.cpu_write(addr, pages)
        b.vm.populate(addr, addr + pages * PAGE)
        b.gpu_write(addr, pages)
    assert len(b.driver.dmem.pool.chunks) == chunks
    b.kernel.sleep_ns(6 * SECOND)
    return b, small, large


def offsets(b):
    dmem = b.driver.dmem
    return [dmem.offset(chunk) for chunk in dmem.pool.chunks]


def wake(b):
    b.driver.pm.rpm.get("test")
    b.driver.pm.rpm.put("test")


@pytest.mark.parametrize("how", ["runtime", "system"])
def test_a_resume_pins_the_newest_chunk_first_so_that_two_change_places(bench, how):
    b, _, _ = asleep(bench, 2, moved_chunks="as_written")
    pages = CHUNK // PAGE
    assert [chunk.bo.blocks for chunk in b.driver.dmem.pool.chunks] == [[], []]
    wake(b)
    assert offsets(b) == [pages, 0]
    if how == "system":
        b.machine.sleep(1)
    else:
        b.kernel.sleep_ns(6 * SECOND)
        wake(b)
    assert offsets(b) == [pages, 0]  # the order of the list stays, and so do they


def test_moved_chunks_the_gpu_reads_what_lies_now_where_its_page_lay(bench):
    b, small, large = asleep(bench, 2, moved_chunks="as_written")
    wake(b)
    first, second = b.driver.dmem.pool.chunks
    where = b.mm.page_table.entry(small).pfn - first.first
    assert b.vm.page_table.pfns(small // PAGE, small // PAGE + 1).tolist() == [second.first + where]
    assert b.gpu_read(small) == 0  # no fault: the entry is there
    b.gpu_read(large, 4)
    contents = b.memory.contents
    assert (contents.known, contents.mismatch_count) == ({"moved_chunks": 5}, 0)
    b.cpu_read(small)  # by the CPU's page table all is well
    b.cpu_read(large, 512)
    assert contents.known == {"moved_chunks": 5}


def test_moved_chunks_fixed_the_gpu_faults_again_and_reads_what_it_wrote(bench):
    b, small, large = asleep(bench, 2)
    assert b.vm.page_table.mapped_pages == 0
    wake(b)
    assert (b.gpu_read(small), b.gpu_read(large, 512)) == (1, 1)
    assert b.memory.contents.known == {}


def test_moved_chunks_a_single_chunk_returns_to_its_place(bench):
    b, small, _ = asleep(bench, 1, moved_chunks="as_written")
    wake(b)
    assert b.gpu_read(small) == 0
    assert b.memory.contents.known == {}


def test_sleeping_copy_a_cpu_fault_waits_for_a_fence_in_vain_and_finds_zeros(bench):
    b, small, _ = asleep(bench, 1, sleeping_copy="as_written")
    before = b.kernel.now_ns
    b.cpu_read(small)
    assert b.kernel.now_ns - before == 15 * SECOND
    assert b.memory.contents.token(b.mm.page_table.entry(small).pfn) == 0
    assert b.memory.contents.known == {"sleeping_copy": 1}


def test_sleeping_copy_fixed_the_fault_wakes_the_device_and_finds_what_was_written(bench):
    b, small, _ = asleep(bench, 1)
    b.cpu_read(small)
    assert (b.driver.device.pm.resumes, b.memory.contents.known) == (1, {})


def test_closing_a_file_wakes_the_device(bench):
    b, _, _ = asleep(bench, 1)
    b.vm.close()
    assert b.driver.device.pm.resumes == 1


def test_a_chunk_that_finds_no_room_on_resume_is_warned_of(bench):
    b, _, _ = asleep(bench, 1)
    taken = b.driver.dmem.bos.buddy.alloc(4 * CHUNK // PAGE, contiguous=False)
    b.kernel.tracer.on = True
    wake(b)
    b.driver.dmem.bos.buddy.free(taken)
    warned = [event[3:] for event in b.kernel.tracer.events if event[2] == "warn"]
    assert [where for where, _ in warned] == ["nouveau_dmem_resume"]
    assert warned[0][1].startswith("a chunk cannot be pinned again: -ENOMEM: gpu0: no room for 2048 pages")
