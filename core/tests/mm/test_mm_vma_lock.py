"""One area locked instead of the address space: who waits for whom (mm/mmap_lock.c)."""

from errno import ENOMEM

import pytest
from gpusvm.check import Checker, InvariantError
from gpusvm.errors import CpuSignal, KernelError, ModelError
from gpusvm.kernel import FirstChoice
from gpusvm.mm.api import (
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
)
from gpusvm.mm.mmap_lock import lock_vma_under_rcu, vma_end_read, vma_start_write
from gpusvm.mm.zap import zap_vma_range

PAGE = 4096
BASE = 1 << 30
SIGSEGV = 11
FIXED = MREMAP_MAYMOVE | MREMAP_FIXED


def blocked(one, change) -> None:
    """Lock the area for reading: a change of it has to wait, and nobody else gets in meanwhile."""
    vma = lock_vma_under_rcu(one.mm, one.va(4))
    assert vma is not None
    task = one.kernel.spawn(change, name="writer")
    one.kernel.settle()
    assert not task.done
    assert one.mm.mmap_lock.is_write_locked
    assert lock_vma_under_rcu(one.mm, one.va(4)) is None
    vma_end_read(vma)
    task.join()
    assert not one.mm.mmap_lock.is_locked


def error_of(call, *args):
    with pytest.raises((KernelError, CpuSignal)) as caught:
        call(*args)
    return caught.value


WRITERS = {
    "mprotect": lambda one: one.mm.mprotect(BASE, 8 * PAGE, PROT_READ),
    "mprotect of a part": lambda one: one.mm.mprotect(one.va(6), PAGE, PROT_READ),
    "munmap": lambda one: one.mm.munmap(BASE, 8 * PAGE),
    "munmap of a part": lambda one: one.mm.munmap(one.va(6), PAGE),
    "mmap over it": lambda one: one.mm.mmap(one.va(6), PAGE, PROT_READ),
    "mmap beside it": lambda one: one.mm.mmap(one.va(8), PAGE, 3),
    "mremap": lambda one: one.mm.mremap(BASE, 8 * PAGE, 8 * PAGE, flags=FIXED, new_addr=one.va(32)),
    "mremap that leaves it": lambda one: one.mm.mremap(
        BASE, 8 * PAGE, 8 * PAGE, flags=MREMAP_MAYMOVE | MREMAP_DONTUNMAP
    ),
    "mremap that grows it": lambda one: one.mm.mremap(BASE, 8 * PAGE, 9 * PAGE),
    "madvise": lambda one: one.mm.madvise(BASE, 8 * PAGE, MADV_HUGEPAGE),
    "madvise of a part": lambda one: one.mm.madvise(one.va(6), PAGE, MADV_DONTFORK),
}


@pytest.mark.parametrize("name", WRITERS)
def test_who_changes_an_area_waits_for_its_readers(lab, name: str) -> None:
    one = lab()
    one.map(8)
    blocked(one, lambda: WRITERS[name](one))
    one.check_quiescent()
    one.finish()


def test_fork_waits_too(lab) -> None:
    one = lab()
    one.map(8)
    children = []
    blocked(one, lambda: children.append(one.mm.fork("q")))
    children[0].exit()
    one.finish()


def test_an_area_that_nobody_changes_can_be_read(lab) -> None:
    """What is changed is one area, though the whole address space is locked for write."""
    one = lab()
    one.map(8)
    one.map(8, at=16)
    with one.mm.mmap_lock.write():
        first, second = one.mm.vmas
        vma_start_write(first)
        vma_start_write(first)
        assert lock_vma_under_rcu(one.mm, BASE) is None
        assert lock_vma_under_rcu(one.mm, one.va(16)) is second
        vma_end_read(second)
    assert lock_vma_under_rcu(one.mm, BASE) is first
    vma_end_read(first)
    # The mark of an earlier hold means nothing.
    with one.mm.mmap_lock.write():
        assert lock_vma_under_rcu(one.mm, BASE) is first
        vma_end_read(first)
    one.finish()


def test_a_downgrade_ends_the_marks(lab) -> None:
    one = lab()
    one.map(8)
    lock = one.mm.mmap_lock
    lock.down_write()
    vma = one.mm.vmas[0]
    vma_start_write(vma)
    lock.downgrade_write()
    assert lock_vma_under_rcu(one.mm, BASE) is vma
    vma_end_read(vma)
    lock.up_read()
    one.finish()


def test_what_is_not_mapped_cannot_be_locked(lab) -> None:
    one = lab()
    one.map(8)
    assert lock_vma_under_rcu(one.mm, one.va(8)) is None
    one.finish()


def test_an_area_is_changed_under_mmap_lock(lab) -> None:
    one = lab()
    one.map(8)
    vma = one.mm.vmas[0]
    message = r"^Vma\(0x40000000-0x40008000 rw-\) of p is written without the mmap_lock held for write$"
    with pytest.raises(ModelError, match=message):
        vma_start_write(vma)
    with one.mm.mmap_lock.read(), pytest.raises(ModelError, match=message):
        vma_start_write(vma)
    one.finish()


# --- what goes on under it


def test_dontneed_of_one_area_needs_no_mmap_lock(lab) -> None:
    one = lab()
    one.map(8)
    one.map(8, at=16)
    lock = one.mm.mmap_lock
    lock.down_write()
    one.kernel.spawn(one.mm.madvise, BASE, 4 * PAGE, MADV_DONTNEED, name="one area").join()
    assert one.mm.rss[0] == 12
    # Over two areas it does, and if a writer has the area.
    two = one.kernel.spawn(error_of, one.mm.madvise, BASE, 24 * PAGE, MADV_DONTNEED, name="two areas")
    one.kernel.settle()
    assert not two.done
    vma_start_write(one.mm.vmas[1])
    changed = one.kernel.spawn(one.mm.madvise, one.va(16), PAGE, MADV_DONTNEED, name="a changed area")
    one.kernel.settle()
    assert not changed.done
    assert one.mm.rss[0] == 12
    lock.up_write()
    changed.join()
    assert two.join().errno == ENOMEM
    assert one.mm.rss[0] == 0
    one.finish()


def test_dontneed_goes_on_beside_a_migration(lab) -> None:
    """mmap_lock is held for read from setup to finalize, and even a waiting writer does not stop it."""
    one = lab()
    one.map(8)
    args = one.device.setup(one.mm, BASE, one.va(8), flags=1)
    writer = one.kernel.spawn(one.mm.mmap, one.va(32), PAGE, 3, name="writer")
    one.kernel.settle()
    assert not writer.done
    # Its migration entries are zapped, and what they stood for is gone.
    one.kernel.spawn(one.mm.madvise, one.va(2), 3 * PAGE, MADV_DONTNEED, name="dontneed").join()
    assert one.mm.rss[0] == 5
    one.device.fill_to_device(args)
    one.memory.migrate_vma_pages(args)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    writer.join()
    # Nothing maps their destinations, so those are free again (mm.md 6.8).
    assert len(one.device.live) == 5
    assert one.read(*range(2, 5)) == [0, 0, 0]
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


def test_dontneed_takes_a_device_entry_before_finalize(lab) -> None:
    """A filled hole is mapped by migrate_vma_pages already."""
    one = lab()
    one.map(8, write=False)
    one.write(0)
    args = one.device.setup(one.mm, BASE, one.va(8), flags=1)
    one.device.fill_to_device(args)
    one.memory.migrate_vma_pages(args)
    one.kernel.spawn(one.mm.madvise, one.va(2), 3 * PAGE, MADV_DONTNEED, name="dontneed").join()
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert len(one.device.live) == 5
    one.read(*range(8))
    one.check_quiescent()
    one.finish()


# --- faults, in explored mode


def explored(lab, **options):
    return lab(mode="explored", choices=FirstChoice(), **options)


def test_a_fault_needs_no_mmap_lock(lab) -> None:
    one = explored(lab)
    one.map(8, write=False)
    one.write(0)
    one.mm.mmap_lock.down_write()
    one.kernel.spawn(one.write, 3, name="cpu").join()
    one.mm.mmap_lock.up_write()
    assert one.mm.rss[0] == 2
    one.finish()


@pytest.mark.parametrize("what", ["pte", "pmd", "anon_vma"])
def test_a_fault_that_does_goes_back_for_it(lab, what: str) -> None:
    one = explored(lab, thp="always" if what == "pmd" else "never")
    one.map(8, write=what != "anon_vma")
    if what != "anon_vma":
        one.device.migrate(one.mm, BASE, one.va(8))
    one.mm.mmap_lock.down_write()
    cpu = one.kernel.spawn(one.write, 3, name="cpu")
    one.kernel.settle()
    assert not cpu.done
    assert not one.device.faults
    assert one.mm.vmas[0].lock is None or not one.mm.vmas[0].lock.is_locked
    one.mm.mmap_lock.up_write()
    cpu.join()
    one.check_quiescent()
    one.finish()


def test_a_device_exclusive_page_that_is_locked_is_waited_for_with_mmap_lock(lab) -> None:
    one = explored(lab)
    one.map(8)
    with one.mm.mmap_lock.read():
        pfn = one.memory.make_device_exclusive(one.mm, one.va(3), "owner")
    cpu = one.kernel.spawn(one.read, 3, name="cpu")
    one.kernel.settle()
    assert not cpu.done
    assert not one.mm.vmas[0].lock.is_locked
    one.memory.folio_unlock(pfn)
    one.memory.folio_put(pfn)
    cpu.join()
    one.check_quiescent()
    one.finish()


def test_an_access_that_is_not_allowed_is_refused_at_once(lab) -> None:
    one = explored(lab)
    one.map(8)
    one.mm.mprotect(BASE, 8 * PAGE, PROT_READ)
    one.mm.mmap_lock.down_write()
    assert one.kernel.spawn(error_of, one.write, 3, name="cpu").join().signal == SIGSEGV
    assert not one.mm.vmas[0].lock.is_locked
    one.mm.mmap_lock.up_write()
    one.finish()


def test_a_table_goes_only_with_its_area_locked(lab) -> None:
    """Invariant 48, of MADV_DONTNEED."""
    one = explored(lab)
    one.map(16)
    checker = Checker(one.memory).attach()
    one.mm.madvise(BASE, 8 * PAGE, MADV_DONTNEED)
    assert one.mm.page_table.lookup(BASE) is None
    message = (
        r"^invariant 48 \(vma-locked\): the table under Vma\(0x40000000-0x40010000 rw-\) is freed without mmap_lock "
        r"held for write \[p:0x40008000, task 'main'\]$"
    )
    with pytest.raises(InvariantError, match=message):
        zap_vma_range(one.memory, one.mm.vmas[0], one.va(8), one.va(16), reclaim_pt=True)
    checker.detach()
    one.finish()
