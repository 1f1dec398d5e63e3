"""ioctl() on a dmirror file: what every command checks, and how each of them fails."""

import numpy as np
import pytest
from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel
from gpusvm.mm import MemoryManager
from gpusvm.mm.api import PROT_NONE, PROT_READ, PROT_WRITE, VM_SHARED
from gpusvm_dmirror import (
    HMM_DMIRROR_CHECK_EXCLUSIVE,
    HMM_DMIRROR_EXCLUSIVE,
    HMM_DMIRROR_FLAGS,
    HMM_DMIRROR_MIGRATE_TO_DEV,
    HMM_DMIRROR_MIGRATE_TO_SYS,
    HMM_DMIRROR_READ,
    HMM_DMIRROR_READ_UNLOCKED,
    HMM_DMIRROR_RELEASE,
    HMM_DMIRROR_SNAPSHOT,
    HMM_DMIRROR_WRITE,
    HmmDmirror,
    HmmDmirrorCmd,
)
from gpusvm_dmirror.tunables import DmirrorQuirks, DmirrorTunables
from hmm_harness import PAGE, Hmm, same

COMMANDS = {
    "READ": HMM_DMIRROR_READ,
    "WRITE": HMM_DMIRROR_WRITE,
    "MIGRATE_TO_DEV": HMM_DMIRROR_MIGRATE_TO_DEV,
    "MIGRATE_TO_SYS": HMM_DMIRROR_MIGRATE_TO_SYS,
    "SNAPSHOT": HMM_DMIRROR_SNAPSHOT,
    "EXCLUSIVE": HMM_DMIRROR_EXCLUSIVE,
    "CHECK_EXCLUSIVE": HMM_DMIRROR_CHECK_EXCLUSIVE,
    "RELEASE": HMM_DMIRROR_RELEASE,
    "FLAGS": HMM_DMIRROR_FLAGS,
    "READ_UNLOCKED": HMM_DMIRROR_READ_UNLOCKED,
}
every_command = pytest.mark.parametrize("request_", COMMANDS.values(), ids=COMMANDS)
either_read = pytest.mark.parametrize("name", ["READ", "READ_UNLOCKED"])
DATA = ["READ", "READ_UNLOCKED", "MIGRATE_TO_DEV", "EXCLUSIVE"]


@pytest.fixture
def one():
    made = Hmm(0)
    yield made
    made.teardown()


@pytest.fixture(params=[0, 2], ids=["private", "coherent"])
def either(request):
    made = Hmm(request.param)
    yield made
    made.teardown()


def failure(fd, request, cmd):
    """Return what a command fails with; the argument must come back as it was."""
    before = None if cmd is None else (cmd.addr, cmd.npages, cmd.cpages, cmd.faults)
    with pytest.raises(KernelError) as error:
        fd.ioctl(request, cmd)
    assert before is None or before == (cmd.addr, cmd.npages, cmd.cpages, cmd.faults)
    return str(error.value)


def filled(hmm, npages, **options):
    """Map and write `npages` pages; an argument for them, with a buffer, and what the pages hold."""
    buffer = hmm.buffer(npages, **options)
    values = hmm.fill(buffer.ptr, npages)
    return HmmDmirrorCmd(addr=buffer.ptr, npages=npages, ptr=buffer.mirror, cpages=77, faults=78), values


# --- the argument


def test_the_requests_are_those_of_the_kernel():
    assert [hex(request) for request in COMMANDS.values()] == [f"0xc028480{number:x}" for number in range(10)]


@every_command
@pytest.mark.parametrize(
    ("addr", "npages"),
    [(5, 1), (PAGE, 0), (-PAGE & (1 << 64) - 1, 1), (1 << 63, 1 << 51), (PAGE, 1 << 52)],
    ids=["unaligned", "none", "to the very end", "past the end", "as many as 64 bits hide"],
)
def test_every_command_wants_whole_pages_of_the_address_space(one, request_, addr, npages):
    cmd = HmmDmirrorCmd(addr=addr, npages=npages, ptr=np.zeros(8, np.int64), cpages=77, faults=78)
    assert failure(one.fd, request_, cmd) == f"-EINVAL: {npages} pages at {addr:#x}"


@every_command
def test_every_command_wants_an_argument_that_can_be_read(one, request_):
    assert failure(one.fd, request_, None) == "-EFAULT: the argument cannot be read"


@every_command
def test_a_closed_file_takes_no_command(one, request_):
    file = one.module.open(1, one.mm)
    file.close()
    assert failure(file, request_, HmmDmirrorCmd(addr=PAGE, npages=1)) == "-EBADF: the file is closed"


def test_an_unknown_command_is_refused_after_its_argument_was_checked(one):
    unknown = HMM_DMIRROR_READ_UNLOCKED + 1
    assert failure(one.fd, unknown, HmmDmirrorCmd(addr=5, npages=1)) == "-EINVAL: 1 pages at 0x5"
    assert (
        failure(one.fd, unknown, HmmDmirrorCmd(addr=PAGE, npages=1))
        == f"-EINVAL: no command has the number {unknown:#x}"
    )


def test_a_number_of_pages_is_cut_to_what_64_bits_of_bytes_hold(one):
    cmd, values = filled(one, 1)
    cmd.npages += 1 << 52
    one.fd.ioctl(HMM_DMIRROR_READ, cmd)
    assert (cmd.cpages, cmd.faults, cmd.ptr.tolist()) == (1, 1, values.tolist())


# --- the buffer


@pytest.mark.parametrize("name", DATA)
def test_data_needs_a_buffer_to_go_to_when_all_is_done(one, name):
    cmd, values = filled(one, 4)
    cmd.ptr = None
    assert failure(one.fd, COMMANDS[name], cmd) == "-EFAULT: the buffer has no room for 4 pages"
    cmd.ptr = np.zeros(3, np.int64)
    assert failure(one.fd, COMMANDS[name], cmd) == "-EFAULT: the buffer has no room for 4 pages"
    assert same(cmd.ptr, values[:3])
    cmd.ptr = np.zeros(4, np.int64)
    one.fd.ioctl(HMM_DMIRROR_READ, cmd)
    assert (cmd.cpages, cmd.faults, cmd.ptr.tolist()) == (4, 0, values.tolist())


def test_what_is_to_be_written_is_fetched_before_the_first_fault(one):
    cmd, values = filled(one, 4)
    cmd.ptr = np.zeros(3, np.int64)
    assert failure(one.fd, HMM_DMIRROR_WRITE, cmd) == "-EFAULT: the buffer does not hold 4 pages"
    cmd.ptr = None
    assert failure(one.fd, HMM_DMIRROR_WRITE, cmd) == "-EFAULT: the buffer does not hold 4 pages"
    assert one.fd.page_table.mapped_pages == 0
    assert same(one.read(cmd.addr, 4), values)


def test_a_snapshot_is_copied_out_window_by_window(one):
    cmd, _ = filled(one, 80)
    cmd.ptr = np.full(70, 0xAA, np.uint8)
    assert failure(one.fd, HMM_DMIRROR_SNAPSHOT, cmd) == "-EFAULT: the buffer has no room for 80 pages"
    assert cmd.ptr.tolist() == [2] * 70
    cmd.ptr = None
    assert failure(one.fd, HMM_DMIRROR_SNAPSHOT, cmd) == "-EFAULT: the buffer has no room for 32 pages"


@pytest.mark.parametrize("name", [*DATA, "WRITE"])
def test_data_passes_through_memory_that_may_not_be_had(one, name):
    cmd, values = filled(one, 4)
    cmd.ptr[:] = new = one.new_data(4)
    one.kernel.arm("dmirror.bounce")
    assert failure(one.fd, COMMANDS[name], cmd) == "-ENOMEM: no memory for the bounce buffer"
    assert same(cmd.ptr, new)
    assert same(one.read(cmd.addr, 4), values)


# --- the process


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (["READ", "READ_UNLOCKED", "WRITE"], "EFAULT"),
        (["MIGRATE_TO_DEV", "MIGRATE_TO_SYS", "SNAPSHOT", "EXCLUSIVE"], "EINVAL"),
    ],
)
def test_of_a_dead_process_nothing_is_left_to_do(one, names, number):
    child = one.mm.fork("child")
    file = one.module.open(0, child)
    child.exit()
    for name in names:
        cmd = HmmDmirrorCmd(addr=PAGE, npages=1, ptr=np.zeros(1, np.int64))
        assert failure(file, COMMANDS[name], cmd) == f"-{number}: child is gone"
    for name in ("CHECK_EXCLUSIVE", "RELEASE", "FLAGS"):
        file.ioctl(COMMANDS[name], HmmDmirrorCmd(addr=PAGE, npages=1))
    file.close()


@either_read
def test_a_read_needs_readable_memory_and_keeps_what_it_had_done(one, name):
    cmd, values = filled(one, 40)
    one.mm.mprotect(cmd.addr + 36 * PAGE, PAGE, PROT_NONE)
    message = failure(one.fd, COMMANDS[name], cmd)
    assert message.startswith("-EFAULT: Vma(")
    assert message.endswith("cannot be read by a device")
    assert cmd.ptr.tolist() == [-1] * 40
    assert one.fd.page_table.mapped_pages == 32  # the first window
    one.mm.munmap(cmd.addr + 36 * PAGE, PAGE)
    assert failure(one.fd, COMMANDS[name], cmd) == f"-EFAULT: nothing is mapped at {cmd.addr + 36 * PAGE:#x}"
    one.mm.munmap(cmd.addr, 40 * PAGE)
    assert not same(values, cmd.ptr)


def test_a_write_has_written_the_pages_before_the_one_that_it_may_not_write(one):
    cmd, values = filled(one, 8)
    cmd.ptr[:] = new = one.new_data(8)
    one.mm.mprotect(cmd.addr + 4 * PAGE, 4 * PAGE, PROT_READ)
    one.fd.ioctl(HMM_DMIRROR_WRITE, HmmDmirrorCmd(addr=cmd.addr, npages=2, ptr=new[:2]))
    message = failure(one.fd, HMM_DMIRROR_WRITE, cmd)
    assert message.startswith("-EPERM: Vma(")
    assert message.endswith("cannot be written")
    assert same(one.read(cmd.addr, 8), np.concatenate([new[:2], values[2:]]))


@pytest.mark.parametrize("name", ["MIGRATE_TO_DEV", "MIGRATE_TO_SYS"])
def test_a_migration_ends_at_the_first_page_without_a_readable_vma(either, name):
    cmd, values = filled(either, 8)
    if name == "MIGRATE_TO_SYS":
        either.fd.ioctl.migrate_to_dev(cmd.addr, 8)
    either.mm.mprotect(cmd.addr + 4 * PAGE, PAGE, PROT_NONE)
    assert failure(either.fd, COMMANDS[name], cmd) == f"-EINVAL: no readable VMA at {cmd.addr + 4 * PAGE:#x}"
    either.mm.mprotect(cmd.addr + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE)
    local = 0x42 if either.coherent else 0x22
    there = [local] * 4 + [2] * 4
    if name == "MIGRATE_TO_SYS":
        # The right to write does not come back to a device-private entry.
        there = [2] * 4 + [local if either.coherent else 0x21] + [local] * 3
    assert list(either.fd.ioctl.snapshot(cmd.addr, 8)) == there
    assert same(either.read(cmd.addr, 8), values)


def test_what_cannot_go_to_the_device_is_missing_when_all_is_read_back(either):
    cmd, values = filled(either, 4)
    held = either.mm.page_table.entry(cmd.addr + PAGE).pfn
    locked = either.mm.page_table.entry(cmd.addr + 2 * PAGE).pfn
    either.memory.folio_get(held)
    either.memory.folio_lock(locked)
    message = failure(either.fd, HMM_DMIRROR_MIGRATE_TO_DEV, cmd)
    assert message == "-ENOENT: a page of the range is not in the mirror table"
    local = 0x42 if either.coherent else 0x22
    assert list(either.fd.ioctl.snapshot(cmd.addr, 4)) == [local, 2, 2, local]
    either.memory.folio_unlock(locked)
    either.memory.folio_put(held)
    either.fd.ioctl(HMM_DMIRROR_MIGRATE_TO_DEV, cmd)
    assert (cmd.cpages, cmd.faults, cmd.ptr.tolist()) == (4, 0, values.tolist())


def test_to_have_nothing_to_bring_home_is_success(either):
    cmd, _ = filled(either, 4)
    either.fd.ioctl(HMM_DMIRROR_MIGRATE_TO_SYS, cmd)
    assert (cmd.cpages, cmd.faults) == (0, 0)


def test_exclusive_pages_before_the_one_that_fails_stay_exclusive(one):
    cmd, _ = filled(one, 4)
    one.mm.mprotect(cmd.addr + 2 * PAGE, PAGE, PROT_READ)
    assert failure(one.fd, HMM_DMIRROR_EXCLUSIVE, cmd).startswith("-EFAULT: ")
    first = HmmDmirrorCmd(addr=cmd.addr, npages=2)
    assert failure(one.fd, HMM_DMIRROR_CHECK_EXCLUSIVE, first) == "-EPERM: a page is still device-exclusive"
    one.fd.ioctl(HMM_DMIRROR_CHECK_EXCLUSIVE, HmmDmirrorCmd(addr=cmd.addr + 2 * PAGE, npages=2))
    one.mm.munmap(cmd.addr + 2 * PAGE, PAGE)
    assert failure(one.fd, HMM_DMIRROR_EXCLUSIVE, cmd).startswith("-EFAULT: ")


def test_shared_memory_can_be_read_and_written_but_not_be_exclusive_or_migrate(one):
    cmd, values = filled(one, 4, flags=VM_SHARED)
    message = failure(one.fd, HMM_DMIRROR_EXCLUSIVE, cmd)
    assert message.startswith("-EOPNOTSUPP: ")
    assert failure(one.fd, HMM_DMIRROR_MIGRATE_TO_DEV, cmd).startswith("-ENOENT: ")
    one.fd.ioctl(HMM_DMIRROR_READ, cmd)
    assert same(cmd.ptr, values)
    # What the table has by now, MIGRATE_TO_DEV can read back, though nothing moved.
    one.fd.ioctl(HMM_DMIRROR_MIGRATE_TO_DEV, cmd)
    assert (cmd.cpages, list(one.fd.ioctl.snapshot(cmd.addr, 4))) == (4, [2] * 4)


@pytest.mark.parametrize("name", ["READ", "READ_UNLOCKED", "WRITE", "EXCLUSIVE"])
def test_without_memory_for_the_mirror_table_there_is_no_access(one, name):
    cmd, values = filled(one, 4)
    one.kernel.arm("dmirror.pt")
    assert failure(one.fd, COMMANDS[name], cmd) == "-ENOMEM: no memory for the mirror table"
    assert same(one.read(cmd.addr, 4), values)


def test_without_memory_for_the_mirror_table_a_migration_is_done_but_not_found(one):
    cmd, _ = filled(one, 4)
    one.kernel.arm("dmirror.pt")
    assert failure(one.fd, HMM_DMIRROR_MIGRATE_TO_DEV, cmd).startswith("-ENOENT: ")
    assert list(one.fd.ioctl.snapshot(cmd.addr, 4)) == [0x22] * 4


class Interrupting:
    """Invalidate the range whenever hmm_range_fault has read it, so many times, and let time go by."""

    def __init__(self, hmm, ms):
        self.hmm, self.ms, self.left = hmm, ms, 0
        memory = hmm.memory
        for name in ("mmu_interval_read_begin",):
            setattr(memory, name, self.wrap(getattr(memory, name)))

    def wrap(self, function):
        def begin(sub):
            seq = function(sub)
            if self.left:
                self.left -= 1
                self.hmm.kernel.sleep_ns(self.ms * 1_000_000)
                self.hmm.mm.madvise(self.addr, PAGE, 4)
            return seq

        return begin


@pytest.mark.parametrize("name", ["READ", "SNAPSHOT"])
def test_after_a_second_of_invalidations_a_command_gives_up(one, name):
    cmd, _ = filled(one, 4)
    if name == "SNAPSHOT":
        cmd.ptr = np.zeros(4, np.uint8)
    interrupting = Interrupting(one, 300)
    interrupting.addr = cmd.addr
    interrupting.left = 3
    one.fd.ioctl(COMMANDS[name], cmd)
    one.fd.page_table.unmap(0, 1 << 36)
    interrupting.left = 1000
    assert failure(one.fd, COMMANDS[name], cmd) == "-EBUSY: invalidated for 1000 ms"


def test_as_written_an_access_to_the_own_page_that_is_missing_in_the_table_oopses():
    hmm = Hmm(0, quirks=DmirrorQuirks(device_page="as_written"))
    cmd, _ = filled(hmm, 4)
    page = HmmDmirrorCmd(addr=cmd.addr + PAGE, npages=1, ptr=np.zeros(1, np.int64))
    hmm.fd.ioctl(HMM_DMIRROR_MIGRATE_TO_DEV, page)
    pfn = hmm.mm.page_table.entry(page.addr).pfn
    # Found in the table it can be read, but to read page 0 faults pages 0 and 1 in again.
    hmm.fd.ioctl(HMM_DMIRROR_READ, page)
    with pytest.raises(ModelError) as error:
        hmm.fd.ioctl(HMM_DMIRROR_READ, cmd)
    assert str(error.value) == (
        f"dmirror_do_read would oops: the mirror table has device page {pfn:#x} itself for page "
        f"{page.addr // PAGE:#x}, put there by dmirror_do_fault (quirk device_page)"
    )
    hmm.fd.page_table.unmap(0, 1 << 36)
    with pytest.raises(ModelError, match=r"^dmirror_do_write would oops: "):
        hmm.fd.ioctl(HMM_DMIRROR_WRITE, cmd)
    hmm.teardown()


@pytest.mark.parametrize(("quirk", "cpages"), [("as_written", 1), ("fixed", 512)])
def test_a_2_mib_folio_counts_as_one_on_its_way_home_as_written(quirk, cpages):
    hmm = Hmm(0, quirks=DmirrorQuirks(compound_count=quirk))
    buffer = hmm.buffer(512, mapped=1024)
    buffer.ptr = hmm.huge(buffer.ptr)
    hmm.fill(buffer.ptr, 512)
    assert hmm.migrate_to_dev(hmm.fd, buffer, 512) == 0
    assert hmm.migrate_to_sys(hmm.fd, buffer, 512) == 0
    assert buffer.cpages == cpages
    hmm.teardown()


def test_a_device_writes_what_it_has_read_elsewhere(one):
    cmd, values = filled(one, 4)
    one.fd.ioctl(HMM_DMIRROR_READ, cmd)
    to = one.buffer(4)
    one.fd.ioctl(HMM_DMIRROR_WRITE, HmmDmirrorCmd(addr=to.ptr, npages=4, ptr=cmd.ptr))
    assert same(one.read(to.ptr, 4), values)


# --- open


def test_open_may_fail(one):
    with pytest.raises(KernelError) as error:
        one.module.open(4, one.mm)
    assert str(error.value) == "-ENXIO: there is no device 4"
    one.kernel.arm("dmirror.open")
    with pytest.raises(KernelError) as error:
        one.module.open(1, one.mm)
    assert str(error.value) == "-ENOMEM: no memory for the file"


def test_devices_2_and_3_want_both_spm_ranges():
    kernel = Kernel()
    memory = MemoryManager(kernel, ram_pages=1 << 12)
    module = HmmDmirror(kernel, memory, spm_addr_dev0=memory.request_free_mem_region(1 << 16) * PAGE)
    assert len(module.devices) == 2
    module.unload()
    small = DmirrorTunables(chunk_bytes=2 << 20)
    with pytest.raises(KernelError) as error:
        HmmDmirror(kernel, memory, spm_addr_dev0=PAGE, spm_addr_dev1=PAGE, tunables=small)
    assert str(error.value) == "-ENXIO: pfns 0x1-0x201 overlap system RAM"
    kernel.ledger.assert_empty()
