"""The 39 tests of hmm-tests.c, of any driver that does what they are about, and not of test_hmm's commands alone.

Where a test reads and writes through ioctls, the GPU does here; MIGRATE_TO_DEV is the driver's own way to bring memory,
EXCLUSIVE an atomic, SNAPSHOT a look with hmm_range_fault that faults nothing in. Sizes are those of a small machine.
What the tests say of device memory that is coherent with the CPUs needs such a device, and there is no capability for
that.
"""

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.conformance.agreement import agree, errno_of, is_refused
from gpusvm.conformance.areas import AREAS, brought, fork, huge, written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.hand import HandFirst, after_look
from gpusvm.conformance.scene import pinned
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_READ, ACCESS_WRITE
from gpusvm.errors import CpuSignal, errno_name
from gpusvm.mm.api import (
    FOLL_LONGTERM,
    FOLL_WRITE,
    HMM_PFN_ERROR,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MADV_COLLAPSE,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    VM_HUGETLB,
    VM_SHARED,
    HmmRange,
    MmuNotifierRange,
)
from gpusvm.mm.pgtable import PmdKind
from gpusvm.mm.userfaultfd import Userfaultfd

if TYPE_CHECKING:
    from gpusvm.mm import MmStruct
    from gpusvm.testing import Bench

_TESTS: Final = "tools/testing/selftests/mm/hmm-tests.c"
_RW: Final = PROT_READ | PROT_WRITE
_ROUNDS: Final = 5


class _Deaf:
    """Watch an address range without caring what happens to it."""

    def invalidate(self, sub: object, range_: MmuNotifierRange, cur_seq: int) -> bool:
        return True


def snapshot(bench: "Bench", addr: int, pages: int, owner: object | None) -> list[int]:
    """Look at pages as a device of that owner would, and fault nothing in; HMM's flags of each."""
    memory = bench.memory
    sub = memory.mmu_interval_notifier_insert(bench.mm, addr, pages * PAGE, _Deaf())
    words = np.zeros(pages, np.uint64)
    with bench.mm.mmap_lock.read():
        memory.hmm_range_fault(
            HmmRange(
                notifier=sub,
                start=addr,
                end=addr + pages * PAGE,
                hmm_pfns=words,
                dev_private_owner=owner,
                notifier_seq=memory.mmu_interval_read_begin(sub),
            )
        )
    memory.mmu_interval_notifier_remove(sub)
    return [int(word) & (HMM_PFN_VALID | HMM_PFN_WRITE | HMM_PFN_ERROR) for word in words]


def _owner(bench: "Bench") -> object | None:
    return bench.driver.dev_pagemaps()[0].owner


def _touch(bench: "Bench", mm: "MmStruct", addr: int, pages: int, *, write: bool) -> None:
    first = addr // PAGE
    bench.memory.cpu_access(mm, np.arange(first, first + pages), np.full(pages, write))


# ---- reading and writing where memory is


@check("hmm.open-close", since="1.0", ref=f"{_TESTS}:open_close")
def test_open_close(lab: Lab) -> None:
    """A device can be opened and closed, again and again, and nothing of it is left."""
    bench = small(lab)
    for _ in range(_ROUNDS):
        bench.machine.close(bench.process)
        bench.kernel.settle()
        bench.vm = bench.vms[0] = bench.machine.open(bench.process)
    agree(lab, bench, written(bench))


@check("hmm.anon-read", since="1.0", ref=f"{_TESTS}:anon_read")
def test_anon_read(lab: Lab) -> None:
    """The GPU reads pages that were written, one that was only read, and one that nobody has touched."""
    bench = small(lab)
    addr = bench.map(BLOCK)
    bench.cpu_write(addr + 2 * PAGE, BLOCK_PAGES - 2)
    bench.cpu_read(addr + PAGE)
    bench.gpu_read(addr, BLOCK_PAGES)
    assert bench.mapped_pages(addr, BLOCK_PAGES) == BLOCK_PAGES


@check("hmm.anon-read-prot", since="1.0", ref=f"{_TESTS}:anon_read_prot")
def test_anon_read_prot(lab: Lab) -> None:
    """The GPU cannot read what the process may not, and what was there is there when it may again."""
    bench = small(lab)
    addr = written(bench)
    bench.mm.mprotect(addr, BLOCK, PROT_NONE)
    is_refused(lambda: bench.gpu_read(addr), lab.info.refusals.access.forbidden, "the GPU's read")
    assert not bench.mapped_pages(addr, BLOCK_PAGES)
    bench.mm.mprotect(addr, BLOCK, PROT_READ)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("hmm.anon-write", since="1.0", ref=f"{_TESTS}:anon_write")
def test_anon_write(lab: Lab) -> None:
    """What the GPU writes to memory that nobody has touched is what a CPU reads."""
    bench = small(lab)
    addr = bench.map(BLOCK)
    bench.gpu_write(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("hmm.anon-write-prot", since="1.0", ref=f"{_TESTS}:anon_write_prot")
def test_anon_write_prot(lab: Lab) -> None:
    """The zero page of read-only memory stays zero under the GPU's write, and gives way when it may write."""
    bench = small(lab)
    addr = bench.map(BLOCK, prot=PROT_READ)
    bench.cpu_read(addr)
    is_refused(lambda: bench.gpu_write(addr), lab.info.refusals.access.forbidden, "the GPU's write")
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.mm.mprotect(addr, BLOCK, _RW)
    bench.gpu_write(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)


@family("hmm.anon-write-child.{size}", every(size=("small", "huge")), since="1.0", ref=f"{_TESTS}:anon_write_child")
def test_anon_write_child(lab: Lab, size: str) -> None:
    """What a forked child's own GPU context writes to {size} pages the parent does not see."""
    bench = small(lab)
    addr = AREAS[size](bench)
    _child_writes(bench, addr)
    bench.cpu_read(addr, BLOCK_PAGES)


@family(
    "hmm.anon-write-child.device-{size}",
    every(size=("small", "huge")),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:anon_write_child",
)
def test_anon_write_child_device(lab: Lab, size: str) -> None:
    """What a forked child's own GPU context writes to {size} pages that were on the device the parent does not see."""
    bench = small(lab)
    addr = brought(bench, AREAS[size](bench))
    _child_writes(bench, addr)
    bench.cpu_read(addr, BLOCK_PAGES)


def _child_writes(bench: "Bench", addr: int) -> None:
    child = fork(bench)
    process = bench.machine.processes[-1]
    _touch(bench, child, addr, BLOCK_PAGES, write=False)
    mine, bench.vm = bench.vm, bench.machine.open(process)
    bench.gpu_write(addr, BLOCK_PAGES)
    _touch(bench, child, addr, BLOCK_PAGES, write=False)
    bench.vm = mine


@check("hmm.anon-write-child-shared", since="1.0", ref=f"{_TESTS}:anon_write_child_shared")
def test_anon_write_child_shared(lab: Lab) -> None:
    """What a child's GPU context writes to shared memory the parent, and the parent's GPU, see."""
    bench = small(lab)
    addr = AREAS["shared"](bench)
    _child_writes(bench, addr)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.gpu_read(addr, BLOCK_PAGES)


@check("hmm.anon-write-huge", since="1.0", ref=f"{_TESTS}:anon_write_huge")
def test_anon_write_huge(lab: Lab) -> None:
    """The GPU writes an untouched block for which a huge page was asked, and a CPU reads it."""
    bench = small(lab)
    addr = bench.map(2 * BLOCK)
    bench.mm.madvise(addr, BLOCK, MADV_HUGEPAGE)
    bench.gpu_write(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("hmm.anon-write-hugetlbfs", since="1.0", ref=f"{_TESTS}:anon_write_hugetlbfs")
def test_anon_write_hugetlbfs(lab: Lab) -> None:
    """The GPU writes a page of hugetlbfs, and a CPU reads it."""
    bench = small(lab)
    bench.memory.set_nr_hugepages(2)
    addr = bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, _RW, flags=VM_HUGETLB)
    bench.gpu_write(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("hmm.file-read", since="1.0", ref=f"{_TESTS}:file_read")
def test_file_read(lab: Lab) -> None:
    """The GPU reads what was written to a file that the process maps."""
    bench = small(lab)
    file = bench.memory.tmpfile(BLOCK_PAGES)
    for page in range(BLOCK_PAGES):
        file.pwrite(page)
    rights = _RW if lab.info.refusals.read_needs_write else PROT_READ
    addr = bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, rights, flags=VM_SHARED, file=file)
    bench.gpu_read(addr, BLOCK_PAGES)
    file.close()


@check("hmm.file-write", since="1.0", ref=f"{_TESTS}:file_write")
def test_file_write(lab: Lab) -> None:
    """What the GPU writes to a shared mapping of a file is what the file holds."""
    bench = small(lab)
    file = bench.memory.tmpfile(BLOCK_PAGES)
    before = [file.pwrite(page) for page in range(BLOCK_PAGES)]
    addr = bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, _RW, flags=VM_SHARED, file=file)
    bench.gpu_write(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)
    unwritten = [page for page in range(BLOCK_PAGES) if file.pread(page) == before[page]]
    assert not unwritten, f"the file holds in page {unwritten[0]} what it did before the GPU wrote"
    file.close()


@check("hmm.anon-read-multiple", since="1.0", ref=f"{_TESTS}:anon_read_multiple")
def test_anon_read_multiple(lab: Lab) -> None:
    """Buffer after buffer, each mapped, read by the GPU and unmapped: what is read is what was written last."""
    bench = small(lab)
    addr = bench.map(BLOCK)
    for _ in range(_ROUNDS):
        bench.mm.mmap(addr, BLOCK, _RW)
        bench.cpu_write(addr, BLOCK_PAGES)
        bench.gpu_read(addr, BLOCK_PAGES)
        bench.mm.munmap(addr, BLOCK)
        assert not bench.mapped_pages(addr, BLOCK_PAGES)


@check("hmm.anon-teardown", since="1.0", ref=f"{_TESTS}:anon_teardown")
def test_anon_teardown(lab: Lab) -> None:
    """While a thread unmaps half of a buffer, the GPU reads it or is refused, and then has nothing of that half."""
    bench = small(lab, mode="explored", choices=HandFirst())
    addr = written(bench)
    half = BLOCK // 2
    with after_look(bench, lambda: bench.mm.munmap(addr + half, half)) as looked:
        for page in range(addr, addr + BLOCK, PAGE):
            errno = bench.fault(page, ACCESS_READ).errno
            assert not errno or errno in lab.info.refusals.access.unmapped, f"answered with errno {errno}"
    assert looked.times
    assert not bench.mapped_pages(addr + half, BLOCK_PAGES // 2)
    agree(lab, bench, addr)


@check("hmm.userfaultfd-read", since="1.0", ref=f"{_TESTS}:userfaultfd_read")
def test_userfaultfd_read(lab: Lab) -> None:
    """Memory that a monitor fills on demand is filled for the GPU, or the GPU is refused; no access waits for ever."""
    bench = small(lab)
    addr = bench.map(4 * PAGE)
    uffd = Userfaultfd(bench.memory, bench.mm)
    uffd.register(addr, 4 * PAGE)

    def monitor() -> None:
        while (message := uffd.read()) is not None:
            uffd.copy(message.address, bench.memory.contents.new_tokens(1))

    thread = bench.kernel.spawn(monitor, name="monitor")
    for page in range(addr, addr + 4 * PAGE, PAGE):
        errno = bench.fault(page, ACCESS_READ).errno
        stated = lab.info.refusals.access
        assert not errno or errno in stated.contended | stated.unfit, f"answered with errno {errno}"
    bench.cpu_read(addr, 4)
    uffd.close()
    thread.join()
    agree(lab, bench, addr, 4)


# ---- memory goes to the device and comes home


@check("hmm.migrate", since="1.0", profile="device-memory", requires=("explicit_populate",), ref=f"{_TESTS}:migrate")
def test_migrate(lab: Lab) -> None:
    """A written buffer goes to the device whole, and the GPU reads there what was written."""
    bench = small(lab)
    addr = written(bench, 4 * BLOCK_PAGES)
    bench.vm.populate(addr, addr + 4 * BLOCK)
    assert bench.device_pages(addr, 4 * BLOCK_PAGES) == 4 * BLOCK_PAGES
    bench.gpu_read(addr, 4 * BLOCK_PAGES)


@check(
    "hmm.migrate-file-private",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:migrate_file_private",
)
def test_migrate_file_private(lab: Lab) -> None:
    """Of a private file mapping, copied page by page, nothing is lost whether its pages can go to the device or not."""
    bench = small(lab)
    addr = AREAS["private-file"](bench)
    bench.cpu_write(addr, BLOCK_PAGES)
    _try_to_bring(lab, bench, addr)
    agree(lab, bench, addr)


def _try_to_bring(lab: Lab, bench: "Bench", addr: int) -> None:
    errno = errno_of(lambda: bench.vm.populate(addr, addr + BLOCK))
    stated = lab.info.refusals.populate
    assert not errno or errno in stated.unfit | stated.forbidden, f"populate was refused with {errno_name(errno)}"


@check(
    "hmm.migrate-fault",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:migrate_fault",
)
def test_migrate_fault(lab: Lab) -> None:
    """Half of what was brought is touched by a CPU; asked for again, all of it is used, wherever it then is."""
    bench = small(lab)
    addr = brought(bench, written(bench))
    bench.cpu_read(addr, BLOCK_PAGES // 2)
    _try_to_bring(lab, bench, addr)
    bench.gpu_read(addr, BLOCK_PAGES)
    agree(lab, bench, addr)


@check(
    "hmm.migrate-release",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:migrate_release",
)
def test_migrate_release(lab: Lab) -> None:
    """When the driver lets go of the device, what processes have there comes home, and is what it was."""
    bench = small(lab)
    addr = brought(bench, written(bench))
    bench.gpu_write(addr, BLOCK_PAGES)
    bench.machine.close(bench.process)
    bench.process.vms.clear()
    bench.machine.remove(0)
    assert not bench.device_pages(addr, BLOCK_PAGES), "the device is gone, and the process has pages on it"
    bench.cpu_read(addr, BLOCK_PAGES)


@check(
    "hmm.migrate-shared",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:migrate_shared",
)
def test_migrate_shared(lab: Lab) -> None:
    """Shared memory that nobody has touched does not go to the device, and is used where it is."""
    bench = small(lab)
    addr = bench.map(BLOCK)
    bench.mm.mmap(addr, BLOCK, _RW, flags=VM_SHARED)
    _try_to_bring(lab, bench, addr)
    assert not bench.device_pages(addr, BLOCK_PAGES)
    agree(lab, bench, addr)


@check(
    "hmm.migrate-mixed",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:migrate_mixed",
)
def test_migrate_mixed(lab: Lab) -> None:
    """Of pages without rights, a hole, read-only and written ones, only what may move does, and nothing is lost."""
    bench = small(lab, thp="never")
    addr = bench.map(BLOCK, prot=PROT_NONE)
    bench.mm.munmap(addr + PAGE, PAGE)
    bench.mm.mprotect(addr + 2 * PAGE, PAGE, PROT_READ)
    bench.cpu_read(addr + 2 * PAGE)
    bench.mm.mprotect(addr + 3 * PAGE, 3 * PAGE, _RW)
    bench.cpu_write(addr + 3 * PAGE, 3)
    bench.mm.mprotect(addr + 3 * PAGE, PAGE, PROT_READ)
    for first, end in ((0, 6), (0, 3), (2, 6)):
        errno = errno_of(partial(bench.vm.populate, addr + first * PAGE, addr + end * PAGE))
        stated = lab.info.refusals.populate
        allowed = stated.unmapped | stated.forbidden | stated.unfit
        assert not errno or errno in allowed, f"populate was refused with {errno_name(errno)}"
        assert bench.where(addr + PAGE) == "none"
    for page in range(6):
        agree(lab, bench, addr + page * PAGE, 1)


@check(
    "hmm.migrate-multiple",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:migrate_multiple",
)
def test_migrate_multiple(lab: Lab) -> None:
    """Buffer after buffer goes to the device, is read there and by a CPU, and goes: no device memory is lost."""
    bench = small(lab, vram_pages=8 * BLOCK_PAGES)
    for _ in range(3 * _ROUNDS):
        addr = brought(bench, written(bench))
        bench.gpu_read(addr, BLOCK_PAGES)
        bench.cpu_read(addr, BLOCK_PAGES)
        bench.mm.munmap(addr, BLOCK)
        bench.kernel.settle()


@check("hmm.snapshot", since="1.0", profile="device-memory", requires=("explicit_populate",), ref=f"{_TESTS}:snapshot")
def test_snapshot(lab: Lab) -> None:
    """HMM shows each owner its own device pages, and pages of RAM to all; a look brings nothing home."""
    bench = small(lab, thp="never")
    addr, ram = brought(bench, written(bench)), written(bench)
    seen = [HMM_PFN_VALID | HMM_PFN_WRITE] * BLOCK_PAGES
    assert snapshot(bench, addr, BLOCK_PAGES, _owner(bench)) == seen
    assert snapshot(bench, addr, BLOCK_PAGES, object()) == [0] * BLOCK_PAGES
    assert snapshot(bench, ram, BLOCK_PAGES, object()) == seen
    assert bench.device_pages(addr, BLOCK_PAGES) == BLOCK_PAGES, "a look has brought pages home"


@check("hmm.compound", since="1.0", ref=f"{_TESTS}:compound")
def test_compound(lab: Lab) -> None:
    """A huge page is mapped for the GPU with the rights of its area, and loses them as a whole."""
    bench = small(lab)
    addr = huge(bench)
    bench.gpu_write(addr, BLOCK_PAGES)
    assert bench.mapped_pages(addr, BLOCK_PAGES) == BLOCK_PAGES
    bench.mm.mprotect(addr, BLOCK, PROT_READ)
    agree(lab, bench, addr)


@check("hmm.double-map", since="1.0", ref=f"{_TESTS}:double_map")
def test_double_map(lab: Lab) -> None:
    """Two address spaces of one process on one device map the same pages, and both see each other's writes."""
    bench = small(lab)
    addr = written(bench)
    first, second = bench.vm, bench.machine.open_file(bench.process, 0, 1)
    for vm in (first, second, first, second):
        bench.vm = vm
        bench.gpu_read(addr, BLOCK_PAGES)
        bench.gpu_write(addr, BLOCK_PAGES)
    bench.mm.munmap(addr, BLOCK)
    assert not first.page_table.mapped_pages
    assert not second.page_table.mapped_pages
    bench.vm = first


@check(
    "hmm.double-map.device",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:double_map",
)
def test_double_map_device(lab: Lab) -> None:
    """One device has pages in its memory, another reads and writes them: nothing is lost on the way."""
    bench = small(lab, hardware="dual")
    addr = written(bench)
    first, second = bench.vms
    for vm in (first, second):
        bench.vm = vm
        bench.gpu_read(addr, BLOCK_PAGES)
    second.populate(addr, addr + BLOCK)
    for vm in (first, second):
        bench.vm = vm
        bench.gpu_read(addr, BLOCK_PAGES)
        bench.gpu_write(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)


# ---- atomics


@check("hmm.exclusive", since="1.0", profile="atomics", ref=f"{_TESTS}:exclusive")
def test_exclusive(lab: Lab) -> None:
    """A CPU gets a page back that the GPU did atomics on, finds what they came to, and the GPU gets it again."""
    bench = small(lab)
    addr = written(bench)
    for page in range(addr, addr + 4 * PAGE, PAGE):
        bench.gpu_atomic(page)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.cpu_write(addr, BLOCK_PAGES)
    bench.gpu_atomic(addr)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("hmm.exclusive-mprotect", since="1.0", profile="atomics", ref=f"{_TESTS}:exclusive_mprotect")
def test_exclusive_mprotect(lab: Lab) -> None:
    """A page that the GPU did atomics on is not written any more once the process may not write it."""
    bench = small(lab)
    addr = written(bench)
    bench.gpu_atomic(addr)
    bench.mm.mprotect(addr, BLOCK, PROT_READ)
    is_refused(lambda: bench.gpu_write(addr), lab.info.refusals.access.forbidden, "the GPU's write")
    is_refused(lambda: bench.gpu_atomic(addr), lab.info.refusals.atomic.forbidden, "the GPU's atomic")
    bench.cpu_read(addr, BLOCK_PAGES)


@check("hmm.exclusive-cow", since="1.0", profile="atomics", ref=f"{_TESTS}:exclusive_cow")
def test_exclusive_cow(lab: Lab) -> None:
    """After a fork of pages that the GPU did atomics on, parent, child and GPU each write what only they see."""
    bench = small(lab)
    addr = written(bench)
    for page in range(addr, addr + 4 * PAGE, PAGE):
        bench.gpu_atomic(page)
    child = fork(bench)
    _touch(bench, child, addr, BLOCK_PAGES, write=True)
    bench.cpu_write(addr, BLOCK_PAGES)
    _touch(bench, child, addr, BLOCK_PAGES, write=False)
    bench.gpu_atomic(addr)
    _touch(bench, child, addr, BLOCK_PAGES, write=False)
    bench.cpu_read(addr, BLOCK_PAGES)


# ---- others want the pages


GUP: Final = {"slow": 0, "fast": 1, "pin-fast-longterm": 2, "pin-longterm": 3}


@family(
    "hmm.gup.{how}",
    every(how=GUP),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:hmm_gup_test",
)
def test_gup(lab: Lab, how: str) -> None:
    """Whoever takes references on device pages, here by {how}, gets pages of RAM with what was written."""
    bench = small(lab)
    addr = brought(bench, written(bench, 4), 4)
    memory, mm = bench.memory, bench.mm
    if how == "slow":
        with mm.mmap_lock.read():
            pages = memory.get_user_pages(mm, addr, 4, flags=FOLL_WRITE)
    elif how == "fast":
        pages = memory.get_user_pages_fast(mm, addr, 4, flags=FOLL_WRITE)
    elif how == "pin-fast-longterm":
        pages = memory.pin_user_pages_fast(mm, addr, 4, flags=FOLL_WRITE | FOLL_LONGTERM)
    else:
        with mm.mmap_lock.read():
            pages = memory.pin_user_pages(mm, addr, 4, flags=FOLL_WRITE | FOLL_LONGTERM)
    assert not any(memory.is_device_private(pfn) for pfn in pages.tolist())
    bench.gpu_write(addr, 4)
    assert not bench.device_pages(addr, 4), "pages left the RAM that somebody holds"
    if how.startswith("pin"):
        memory.unpin_user_pages(pages)
    else:
        memory.folios_put(pages)
    agree(lab, bench, addr, 4)


@check(
    "hmm.pinned.stays",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref="mm/migrate_device.c:migrate_vma_check_page",
)
def test_pinned(lab: Lab) -> None:
    """A page that is pinned stays where it is, whatever the program asks, and is used there."""
    bench = small(lab)
    addr = written(bench)
    with pinned(bench, addr + 7 * PAGE, 1):
        _try_to_bring(lab, bench, addr)
        assert bench.where(addr + 7 * PAGE) == "system"
        bench.gpu_write(addr, BLOCK_PAGES)
        assert bench.where(addr + 7 * PAGE) == "system"
        bench.cpu_read(addr, BLOCK_PAGES)
    agree(lab, bench, addr)


@check(
    "hmm.cow-in-device",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:hmm_cow_in_device",
)
def test_cow_in_device(lab: Lab) -> None:
    """A parent writes device pages that it shares with a child, which ends: both had what was theirs."""
    bench = small(lab)
    addr = brought(bench, written(bench))
    child = fork(bench)
    bench.cpu_write(addr, BLOCK_PAGES)
    _touch(bench, child, addr, BLOCK_PAGES // 2, write=False)
    bench.machine.processes.pop()
    child.mmput()
    bench.kernel.settle()
    assert [bench.where(addr + i * PAGE) for i in range(BLOCK_PAGES)] == ["system"] * BLOCK_PAGES
    agree(lab, bench, addr)


# ---- huge pages


_HUGE: Final = ("explicit_populate", "large_folios")


def _huge_zero(bench: "Bench", *, touched: bool) -> int:
    addr = bench.map(2 * BLOCK, prot=PROT_READ)
    bench.mm.madvise(addr, BLOCK, MADV_HUGEPAGE)
    if touched:
        bench.cpu_read(addr)
    return addr


@family(
    "hmm.anon-huge-{what}",
    every(what=("empty", "zero")),
    since="1.0",
    profile="device-memory",
    requires=_HUGE,
    ref=f"{_TESTS}:migrate_anon_huge_empty, migrate_anon_huge_zero",
)
def test_huge_empty(lab: Lab, what: str) -> None:
    """A read-only block that is {what} and goes to the device reads as zeros, there and at home."""
    bench = small(lab)
    addr = _huge_zero(bench, touched=what == "zero")
    _try_to_bring(lab, bench, addr)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.mm.mprotect(addr, BLOCK, _RW)
    agree(lab, bench, addr)


@check(
    "hmm.anon-huge-free", since="1.0", profile="device-memory", requires=_HUGE, ref=f"{_TESTS}:migrate_anon_huge_free"
)
def test_huge_free(lab: Lab) -> None:
    """MADV_FREE of a huge page on the device is allowed, and loses nothing that is written afterwards."""
    bench = small(lab)
    addr = brought(bench, huge(bench))
    bench.mm.madvise(addr, BLOCK, MADV_FREE)
    bench.gpu_write(addr, BLOCK_PAGES)
    agree(lab, bench, addr)


@check(
    "hmm.anon-huge-fault", since="1.0", profile="device-memory", requires=_HUGE, ref=f"{_TESTS}:migrate_anon_huge_fault"
)
def test_huge_fault(lab: Lab) -> None:
    """A collapsed block goes to the device as one huge page, and comes home when a CPU touches it."""
    bench = small(lab)
    addr = written(bench)
    bench.mm.madvise(addr, BLOCK, MADV_COLLAPSE)
    brought(bench, addr)
    assert bench.mm.page_table.entry(addr).kind is PmdKind.PRIVATE, "it was huge, and is not on the device"
    assert snapshot(bench, addr, BLOCK_PAGES, _owner(bench)) == [HMM_PFN_VALID | HMM_PFN_WRITE] * BLOCK_PAGES
    bench.cpu_read(addr, BLOCK_PAGES)
    assert not bench.device_pages(addr, BLOCK_PAGES)


@family(
    "hmm.partial-unmap-fault.{size}-{offset}",
    every(size=("small", "huge"), offset=("0", "1", "2")),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:migrate_partial_unmap_fault",
)
def test_partial_unmap(lab: Lab, size: str, offset: str) -> None:
    """Half of a {size} block on the device is unmapped, from quarter {offset}; the rest is what it was."""
    bench = small(lab)
    addr = brought(bench, AREAS[size](bench))
    bench.mm.munmap(addr + int(offset) * BLOCK // 4, BLOCK // 2)
    for page in range(addr, addr + BLOCK, PAGE):
        if bench.mm.vma_lookup(page) is not None:
            bench.cpu_read(page)
    agree(lab, bench, addr)


@family(
    "hmm.remap-fault.{when}-{size}-{offset}{keep}",
    every(when=("before", "after"), size=("small", "huge"), offset=("0", "1", "2"), keep=("", "-dontunmap")),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:migrate_remap_fault",
)
def test_remap(lab: Lab, when: str, size: str, offset: str, keep: str) -> None:
    """A {size} block that mremap moves {when} it goes to the device is found at its new place, offset {offset}/4."""
    bench = small(lab)
    window = bench.map(4 * BLOCK)
    bench.mm.madvise(window, BLOCK, MADV_HUGEPAGE if size == "huge" else MADV_NOHUGEPAGE)
    bench.gpu_write(window, BLOCK_PAGES)
    to = window + BLOCK + int(offset) * BLOCK // 4
    flags = MREMAP_MAYMOVE | MREMAP_FIXED | (MREMAP_DONTUNMAP if keep else 0)
    if when == "before":
        bench.mm.mremap(window, BLOCK, BLOCK, flags=flags, new_addr=to)
        bench.vm.populate(to, to + BLOCK)
    else:
        brought(bench, window)
        bench.mm.mremap(window, BLOCK, BLOCK, flags=flags, new_addr=to)
    bench.cpu_read(to, BLOCK_PAGES)
    agree(lab, bench, to)
    bench.mm.munmap(to, BLOCK)


@family(
    "hmm.anon-huge-err.{way}",
    every(way=("to-device", "home")),
    since="1.0",
    profile="device-memory",
    requires=_HUGE,
    ref=f"{_TESTS}:migrate_anon_huge_err",
)
def test_huge_error(lab: Lab, way: str) -> None:
    """A huge page for which an allocation fails {way} stays, or goes in small pages; nothing of it is lost."""
    bench = small(lab)
    addr = huge(bench)
    if way == "home":
        brought(bench, addr)
    for site in ("alloc.folio", "bo.alloc", "alloc.pages"):
        bench.kernel.injector.arm(site)
    if way == "to-device":
        errno = errno_of(lambda: bench.vm.populate(addr, addr + BLOCK))
        stated = lab.info.refusals.populate.failed
        assert not errno or errno in stated, f"populate was refused with {errno_name(errno)}"
    else:
        _survive(bench, addr + 2 * PAGE)
    _disarm(bench)
    bench.cpu_read(addr + 2 * PAGE)
    agree(lab, bench, addr)


def _survive(bench: "Bench", addr: int) -> None:
    """Read from a CPU for which there is no memory; a driver may let it have SIGBUS then."""
    with suppress(CpuSignal):
        bench.cpu_read(addr)


def _disarm(bench: "Bench") -> None:
    injector = bench.kernel.injector
    for site in injector.armed:
        while site in injector.armed:
            injector.passing(site)


@check(
    "hmm.anon-huge-zero-err",
    since="1.0",
    profile="device-memory",
    requires=_HUGE,
    ref=f"{_TESTS}:migrate_anon_huge_zero_err",
)
def test_huge_zero_error(lab: Lab) -> None:
    """An empty block for which the huge page on the device cannot be had reads as zeros all the same."""
    bench = small(lab)
    for touched in (False, True):
        addr = _huge_zero(bench, touched=touched)
        for site in ("alloc.folio", "bo.alloc", "alloc.pages"):
            bench.kernel.injector.arm(site)
        errno = errno_of(partial(bench.vm.populate, addr, addr + BLOCK))
        stated = lab.info.refusals.populate
        assert not errno or errno in stated.failed | stated.forbidden, f"populate was refused with {errno_name(errno)}"
        _disarm(bench)
        bench.cpu_read(addr, BLOCK_PAGES)


@family(
    "hmm.there-and-back.{blocks}-{size}",
    every(blocks=("1", "2", "8"), size=("small", "huge")),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate",),
    ref=f"{_TESTS}:benchmark_thp_migration",
)
def test_there_and_back(lab: Lab, blocks: str, size: str) -> None:
    """{blocks} blocks of {size} pages go to the device and come home three times, and are what they were."""
    bench = small(lab)
    n = int(blocks)
    addr = bench.map(n * BLOCK)
    bench.mm.madvise(addr, n * BLOCK, MADV_HUGEPAGE if size == "huge" else MADV_NOHUGEPAGE)
    bench.cpu_write(addr, n * BLOCK_PAGES)
    for _ in range(3):
        bench.vm.populate(addr, addr + n * BLOCK)
        assert bench.device_pages(addr, n * BLOCK_PAGES) == n * BLOCK_PAGES
        bench.cpu_read(addr, n * BLOCK_PAGES)
        assert not bench.device_pages(addr, n * BLOCK_PAGES)
    is_whole = bench.fault(addr, ACCESS_WRITE).errno
    assert not is_whole
