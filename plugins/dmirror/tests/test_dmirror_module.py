"""The devices of the module: their chunks, closing and releasing, and what becomes of pages that others have."""

import errno

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import MADV_DONTNEED, MEMORY_DEVICE_COHERENT, MEMORY_DEVICE_PRIVATE, PROT_READ, PROT_WRITE
from gpusvm_dmirror import HMM_DMIRROR_RELEASE, HMM_DMIRROR_WRITE, uapi
from hmm_harness import CHUNK_PAGES, PAGE, PMD, Hmm, same

N = PMD // PAGE


@pytest.fixture(params=[0, 2], ids=["private", "coherent"])
def hmm(request):
    made = Hmm(request.param)
    yield made
    made.teardown()


@pytest.fixture
def private():
    made = Hmm(0)
    yield made
    made.teardown()


@pytest.fixture
def coherent():
    made = Hmm(2)
    yield made
    made.teardown()


def migrated(hmm, npages, fd=None, mm=None):
    """Put new memory on a device; the buffer and what it holds."""
    buffer = hmm.buffer(npages)
    values = hmm.fill(buffer.ptr, npages)
    assert hmm.migrate_to_dev(fd or hmm.fd, buffer, npages) == 0
    return buffer, values


def migrated_huge(hmm):
    """Put 2 MiB of new memory on the device in one piece; the buffer and what it holds."""
    buffer = hmm.buffer(N, mapped=2 * N)
    buffer.ptr = hmm.huge(buffer.ptr)
    values = hmm.fill(buffer.ptr, N)
    assert hmm.migrate_to_dev(hmm.fd, buffer, N) == 0
    return buffer, values


def snapshot(hmm, buffer, npages):
    return list(hmm.fd.ioctl.snapshot(buffer.ptr, npages))


def local(hmm, flags):
    return (uapi.PROT_DEV_COHERENT_LOCAL if hmm.coherent else uapi.PROT_DEV_PRIVATE_LOCAL) | flags


def counters(device):
    return device.calloc, device.cfree


# --- chunks


def test_each_device_begins_with_one_chunk_of_single_pages(private):
    devices = private.module.devices
    assert [repr(device) for device in devices] == [f"<DmirrorDevice 'hmm_dmirror{minor}'>" for minor in range(4)]
    for device in devices:
        assert (len(device.pool.chunks), len(device.pool.free_pages), len(device.pool.free_folios)) == (
            1,
            CHUNK_PAGES,
            0,
        )
    assert [device.pool.chunks[0].pagemap.type for device in devices] == (
        [MEMORY_DEVICE_PRIVATE] * 2 + [MEMORY_DEVICE_COHERENT] * 2
    )
    # Minor 2 has the second SPM range, minor 3 the first.
    assert [device.pool.chunks[0].first * PAGE for device in devices[2:]] == private.spm[::-1]


def test_calloc_and_cfree_count_pages(hmm):
    device = hmm.fd.device
    buffer, _ = migrated(hmm, 8)
    assert counters(device) == (8, 0)
    hmm.fill(buffer.ptr, 3)
    assert counters(device) == (8, 0 if hmm.coherent else 3)
    hmm.mm.munmap(buffer.ptr, buffer.size)
    assert counters(device) == (8, 8)


def test_a_2_mib_folio_is_512_pages_to_the_counters_split_or_not(private):
    device = private.fd.device
    buffer, values = migrated_huge(private)
    assert counters(device) == (N, 0)
    assert same(private.read(buffer.ptr, 1), values[:1])
    assert counters(device) == (N, N)
    buffer, values = migrated_huge(private)
    private.mm.munmap(buffer.ptr + PAGE, PAGE)
    assert same(private.read(buffer.ptr, 1), values[:1])
    assert counters(device) == (2 * N, N + 2)


def test_a_private_device_gets_a_second_chunk_for_2_mib_folios(private):
    buffer, _ = migrated_huge(private)
    pool = private.fd.device.pool
    assert (len(pool.chunks), len(pool.free_pages), len(pool.free_folios)) == (2, CHUNK_PAGES, CHUNK_PAGES // N - 1)
    assert set(snapshot(private, buffer, N)) == {local(private, uapi.PROT_WRITE | uapi.PROT_PMD)}


def test_a_coherent_device_has_no_second_chunk_and_takes_single_pages(coherent):
    pool = coherent.fd.device.pool
    with pytest.raises(KernelError) as error:
        pool.add_chunk(9)
    first = coherent.spm[1] // PAGE
    assert str(error.value) == f"-ENOMEM: pfns {first:#x}-{first + CHUNK_PAGES:#x} overlap another pagemap's"
    buffer, values = migrated_huge(coherent)
    assert (len(pool.chunks), len(pool.free_pages)) == (1, CHUNK_PAGES - N)
    assert set(snapshot(coherent, buffer, N)) == {local(coherent, uapi.PROT_WRITE)}
    # Hence MIGRATE_TO_SYS finds no 2 MiB folio whose allocation may fail: hmm-tests' migrate_anon_huge_err.
    coherent.fd.ioctl.flags(uapi.HMM_DMIRROR_FLAG_FAIL_ALLOC)
    assert coherent.migrate_to_sys(coherent.fd, buffer, N) == -errno.ENOMEM
    assert same(coherent.read(buffer.ptr, N), values)


def test_the_cpu_uses_coherent_pages_where_they_are(coherent):
    buffer, values = migrated(coherent, 8)
    pfns = [coherent.mm.page_table.entry(buffer.ptr + i * PAGE).pfn for i in range(8)]
    chunk = coherent.fd.device.pool.chunks[0]
    assert all(chunk.first <= pfn < chunk.end for pfn in pfns)
    assert same(coherent.read(buffer.ptr, 8), values)
    values = coherent.fill(buffer.ptr, 8)
    assert pfns == [coherent.mm.page_table.entry(buffer.ptr + i * PAGE).pfn for i in range(8)]
    assert same(coherent.fd.ioctl.read(buffer.ptr, 8).tokens, values)
    assert coherent.fd.ioctl.migrate_to_sys(buffer.ptr, 8).cpages == 8


# --- close


def test_closing_a_file_brings_home_the_pages_of_every_process(hmm):
    minor = hmm.module.devices.index(hmm.fd.device)
    other = hmm.memory.mm_alloc("other")
    others_fd = hmm.module.open(minor, other)
    mine, values = migrated(hmm, 8)
    theirs = hmm.buffer(8)
    other.mmap(theirs.ptr, theirs.size, PROT_READ | PROT_WRITE)
    their_values = hmm.fill(theirs.ptr, 8, other)
    assert hmm.migrate_to_dev(others_fd, theirs, 8) == 0
    second = hmm.module.open(minor, hmm.mm)
    second.close()
    assert counters(hmm.fd.device) == (16, 16)
    assert snapshot(hmm, mine, 8) == [uapi.PROT_WRITE] * 8
    assert list(others_fd.ioctl.snapshot(theirs.ptr, 8)) == [uapi.PROT_WRITE] * 8
    assert same(hmm.read(mine.ptr, 8), values)
    assert same(hmm.read(theirs.ptr, 8, other), their_values)
    # The eviction was seen as CLEAR, so the mirror has nothing left of the pages.
    assert hmm.fd.page_table.mapped_pages == 0
    other.exit()
    others_fd.close()


def test_closing_one_device_leaves_the_other_alone(hmm):
    minor = hmm.module.devices.index(hmm.fd.device)
    other = hmm.module.open(minor + 1, hmm.mm)
    buffer, values = migrated(hmm, 8, other)
    hmm.module.open(minor, hmm.mm).close()
    assert list(other.ioctl.snapshot(buffer.ptr, 8)) == [local(hmm, uapi.PROT_WRITE)] * 8
    other.close()
    assert same(hmm.read(buffer.ptr, 8), values)


def test_a_file_outlives_its_process(hmm):
    minor = hmm.module.devices.index(hmm.fd.device)
    child = hmm.mm.fork("child")
    file = hmm.module.open(minor, child)
    child.exit()
    assert file.page_table.mapped_pages == 0
    file.close()
    assert child not in hmm.memory.mms


# --- RELEASE


def test_a_released_device_has_no_chunk_until_it_needs_one(hmm):
    device = hmm.fd.device
    buffer, values = migrated(hmm, 8)
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_RELEASE, buffer, 8) == 0
    assert (device.pool.chunks, len(device.pool.free_pages), len(device.pool.free_folios)) == ([], 0, 0)
    assert counters(device) == (8, 0)  # what goes with its chunk is not counted as freed
    assert snapshot(hmm, buffer, 8) == [uapi.PROT_WRITE] * 8
    assert hmm.cmd(hmm.fd, HMM_DMIRROR_RELEASE, buffer, 8) == 0
    assert hmm.migrate_to_dev(hmm.fd, buffer, 8) == 0
    assert same(buffer.mirror, values)
    assert (len(device.pool.chunks), len(device.pool.free_pages)) == (1, CHUNK_PAGES - 8)
    assert snapshot(hmm, buffer, 8) == [local(hmm, uapi.PROT_WRITE)] * 8


def test_a_released_coherent_device_may_have_2_mib_folios(coherent):
    coherent.fd.ioctl.release()
    buffer, values = migrated_huge(coherent)
    assert set(snapshot(coherent, buffer, N)) == {local(coherent, uapi.PROT_WRITE | uapi.PROT_PMD)}
    assert same(coherent.read(buffer.ptr, N), values)
    # They cannot be asked to come home (mm Q8), but the device can be evacuated.
    assert coherent.fd.ioctl.migrate_to_sys(buffer.ptr, N).cpages == 0
    coherent.fd.ioctl.release()
    assert set(snapshot(coherent, buffer, N)) == {uapi.PROT_WRITE | uapi.PROT_PMD}
    assert same(coherent.read(buffer.ptr, N), values)


def test_release_waits_for_a_page_that_somebody_holds(private):
    buffer, values = migrated(private, 4)
    pfn = private.mm.page_table.entry(buffer.ptr + PAGE).pfn
    private.memory.folio_get(pfn)
    task = private.kernel.spawn(private.fd.ioctl.release, name="release")
    private.kernel.settle()
    assert not task.done
    # The extra reference keeps this page from migrating.
    assert snapshot(private, buffer, 4) == [2, 0x22, 2, 2]
    private.memory.folio_put(pfn)
    # The CPU brings it home, and that was the last page of the chunk.
    assert same(private.read(buffer.ptr, 4), values)
    task.join()
    assert private.fd.device.pool.chunks == []


# --- device pages under system calls


def test_the_right_to_write_does_not_come_back_to_device_private_entries(private):
    buffer, values = migrated(private, 4)
    private.mm.mprotect(buffer.ptr, buffer.size, PROT_READ)
    assert snapshot(private, buffer, 4) == [0x21] * 4
    private.mm.mprotect(buffer.ptr, buffer.size, PROT_READ | PROT_WRITE)
    assert snapshot(private, buffer, 4) == [0x21] * 4
    # The device cannot write to such an entry of its own (mm S2), the CPU can.
    buffer.mirror[:] = private.new_data(4)
    assert private.cmd(private.fd, HMM_DMIRROR_WRITE, buffer, 4) == -errno.EFAULT
    assert same(private.read(buffer.ptr, 4), values)
    private.fill(buffer.ptr, 4)


def test_coherent_pages_follow_mprotect_like_any_others(coherent):
    buffer, values = migrated(coherent, 4)
    coherent.mm.mprotect(buffer.ptr, buffer.size, PROT_READ)
    assert snapshot(coherent, buffer, 4) == [0x41] * 4
    buffer.mirror[:] = coherent.new_data(4)
    assert coherent.cmd(coherent.fd, HMM_DMIRROR_WRITE, buffer, 4) == -errno.EPERM
    coherent.mm.mprotect(buffer.ptr, buffer.size, PROT_READ | PROT_WRITE)
    assert same(coherent.read(buffer.ptr, 4), values)
    assert coherent.cmd(coherent.fd, HMM_DMIRROR_WRITE, buffer, 4) == 0
    assert same(coherent.read(buffer.ptr, 4), buffer.mirror)
    assert snapshot(coherent, buffer, 4) == [0x42] * 4


def test_a_part_of_a_2_mib_device_folio_can_be_thrown_away(private):
    buffer, values = migrated_huge(private)
    private.mm.madvise(buffer.ptr + 16 * PAGE, 16 * PAGE, MADV_DONTNEED)
    assert snapshot(private, buffer, 48) == [0x22] * 16 + [0] * 16 + [0x22] * 16
    assert not private.read(buffer.ptr + 16 * PAGE, 16).any()
    assert same(private.read(buffer.ptr, 16), values[:16])
    assert same(private.read(buffer.ptr + 32 * PAGE, N - 32), values[32:])
    assert counters(private.fd.device) == (N, N)


@pytest.mark.parametrize("huge", [False, True], ids=["small", "huge"])
def test_device_pages_stay_with_the_process_that_is_left(hmm, huge):
    buffer, values = migrated_huge(hmm) if huge else migrated(hmm, N)
    child = hmm.mm.fork("child")
    child.exit()
    assert counters(hmm.fd.device) == (N, 0)
    assert {byte & 0xF0 for byte in snapshot(hmm, buffer, N)} == {local(hmm, 0)}
    assert same(hmm.read(buffer.ptr, N), values)


def test_a_child_uses_device_pages_after_its_parent_is_gone(hmm):
    buffer, values = migrated(hmm, 8)
    child = hmm.mm.fork("child")
    hmm.mm.munmap(buffer.ptr, buffer.size)
    assert counters(hmm.fd.device) == (8, 0)
    assert same(hmm.read(buffer.ptr, 8, child), values)
    hmm.fill(buffer.ptr, 8, child)
    child.exit()
    assert counters(hmm.fd.device) == (8, 8)


@pytest.mark.parametrize("huge", [False, True], ids=["small", "huge"])
def test_after_a_fork_the_device_cannot_write_to_its_own_private_pages(private, huge):
    buffer, values = migrated_huge(private) if huge else migrated(private, N)
    child = private.mm.fork("child")
    buffer.mirror[:] = private.new_data(N)
    # They are found read-only and nothing faults them (mm S2).
    assert private.cmd(private.fd, HMM_DMIRROR_WRITE, buffer, N) == -errno.EFAULT
    assert same(private.read(buffer.ptr, N), values)
    assert private.cmd(private.fd, HMM_DMIRROR_WRITE, buffer, N) == 0
    assert same(private.read(buffer.ptr, N), buffer.mirror)
    assert same(private.read(buffer.ptr, N, child), values)
    child.exit()


# --- mmap


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_a_mapping_of_the_device_has_zeroed_pages_that_are_there_at_once(private, shared):
    addr = private.fd.mmap(4 * PAGE, PROT_READ | PROT_WRITE, shared=shared)
    # A private page is mapped read-only, until it is copied.
    assert list(private.fd.ioctl.snapshot(addr, 4)) == [uapi.PROT_WRITE if shared else uapi.PROT_READ] * 4
    assert private.fd.ioctl.read(addr, 4).tokens.tolist() == [0] * 4
    values = private.fill(addr, 4)
    assert list(private.fd.ioctl.snapshot(addr, 4)) == [uapi.PROT_WRITE] * 4
    assert same(private.read(addr, 4), values)
    private.mm.munmap(addr, 4 * PAGE)


def test_a_mapping_of_the_device_goes_again_when_a_page_cannot_be_had(private):
    private.kernel.arm("alloc.folio", nth=3)
    with pytest.raises(KernelError) as error:
        private.fd.mmap(4 * PAGE, PROT_READ)
    assert str(error.value) == "-ENOMEM: no memory for a page to map"
    assert private.mm.vmas == []


def test_the_module_stays_while_a_file_is_open(private):
    with pytest.raises(KernelError, match=r"1 files of the module are open") as error:
        private.module.unload()
    assert error.value.errno == errno.EAGAIN
    assert len(private.module.devices) == 4
