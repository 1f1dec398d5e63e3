"""Files of ramfs and of shmem, where they are unlike others."""

from errno import EFAULT

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE, VM_SHARED
from gpusvm.mm.pgtable import PteKind
from gpusvm.mm.ramfs import RamfsFile

PAGE = 4096
BASE = 1 << 30
RW = PROT_READ | PROT_WRITE


def ramfs(one, pages: int = 16, *, mapped: int = 8, shared: bool = True):
    file = RamfsFile(one.memory, "ramfs", pages)
    one.mm.mmap(BASE, mapped * PAGE, RW, flags=VM_SHARED if shared else 0, file=file)
    return file


def move(one, first: int, n: int, to: int) -> None:
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    one.mm.mremap(BASE + first * PAGE, n * PAGE, n * PAGE, flags=flags, new_addr=BASE + to * PAGE)


def end(one, file) -> None:
    file.close()
    one.check_quiescent()
    one.finish()


def test_a_read_fault_of_a_shared_mapping_may_not_write_yet(lab):
    one = lab()
    file = ramfs(one)
    one.read(0)
    assert not one.entry(0).write
    one.write(0)
    assert one.entry(0).write
    end(one, file)


@pytest.mark.parametrize("pages", [2, 4, 6])
def test_every_truncate_unmaps_behind_the_end(lab, pages):
    one = lab()
    file = ramfs(one, 4)
    one.watch()
    file.truncate(pages)
    assert [event[1:4] for event in one.events] == [("CLEAR", pages, 8)] * 2
    end(one, file)


def test_a_write_behind_the_end_unmaps_nothing(lab):
    one = lab()
    file = ramfs(one, 2)
    one.watch()
    file.extend(6)
    file.extend(3)
    assert (file.nr_pages, len(file.tokens), one.events) == (6, 6, [])
    token = file.pwrite(5)
    assert (file.pread(5), file.pread(4)) == (token, 0)
    end(one, file)


def test_an_area_moves_alone(lab):
    """mm/mremap.c:vma_multi_allowed: ramfs has a get_unmapped_area that is not known to be good."""
    one = lab()
    file = ramfs(one)
    one.mm.mmap(BASE + 8 * PAGE, 4 * PAGE, RW)
    with pytest.raises(KernelError) as refused:
        move(one, 4, 8, 32)
    assert refused.value.errno == EFAULT
    assert one.mm.vma_lookup(BASE + 32 * PAGE) is None
    move(one, 4, 4, 32)
    assert one.mm.vma_lookup(BASE + 32 * PAGE).file is file
    end(one, file)


@pytest.mark.parametrize(("kind", "mapped"), [("ramfs", [5]), ("shmem", [5, 7])])
def test_the_last_page_of_a_file_is_not_mapped_around_a_fault_without_a_page_table(lab, kind, mapped):
    """mm/filemap.c:filemap_map_pages: only for a folio that ends before the file does it brings a table."""
    one = lab()
    file = RamfsFile(one.memory, "ramfs", 8) if kind == "ramfs" else one.memory.memfd_create(8)
    file.pwrite(7)
    one.mm.mmap(BASE, 8 * PAGE, RW, flags=VM_SHARED, file=file)
    one.read(5)
    assert [i for i in range(8) if one.entry(i).kind is PteKind.PRESENT] == mapped
    file.pwrite(6)
    one.read(4)  # there is a table now
    assert [i for i in range(8) if one.entry(i).kind is PteKind.PRESENT] == [4, 5, 6, 7]
    end(one, file)


def test_reading_a_hole_of_shmem_leaves_it(lab):
    """mm/shmem.c:shmem_file_read_iter reads the zero page; a file of ramfs gets a page."""
    one = lab()
    shmem, file = one.memory.memfd_create(4), RamfsFile(one.memory, "ramfs", 4)
    assert (shmem.pread(2), file.pread(2)) == (0, 0)
    assert ([*shmem.pages], [*file.pages]) == ([], [2])
    token = shmem.pwrite(2)
    assert (shmem.pread(2), [*shmem.pages]) == (token, [2])
    shmem.close()
    end(one, file)


@pytest.mark.parametrize("copied", [False, True])
def test_private_copies_that_moved_keep_their_area_apart(lab, copied):
    """mm/vma.c:needs_adjacent_anon_pgoff: what is written before the move has the offsets of the old place."""
    one = lab()
    file = one.memory.memfd_create(8)
    for at in (0, 32):
        one.mm.mmap(BASE + at * PAGE, 8 * PAGE, RW, file=file)
    if copied:
        one.write(33)
    move(one, 32, 4, 0)
    first = one.mm.vma_lookup(BASE)
    assert (first.end - BASE) // PAGE == (4 if copied else 8)
    move(one, 0, 4, 32)  # home again, where the offsets go on
    home = one.mm.vma_lookup(BASE + 32 * PAGE)
    assert (home.end - home.start) // PAGE == 8
    end(one, file)


@pytest.mark.parametrize("batch", [False, True])
def test_around_a_fault_as_many_pages_are_mapped_where_the_area_begins_in_a_window(lab, batch):
    """mm/memory.c:do_fault_around: from the area's start on, and not to where the aligned window ends."""
    one = lab(pmd_order=6)
    file = one.memory.memfd_create(64)
    for index in range(30):
        file.pwrite(index)
    one.mm.mmap(BASE + 10 * PAGE, 40 * PAGE, RW, flags=VM_SHARED, file=file)
    if batch:
        one.read(49)  # there is a table, so that what follows need not go page by page
    one.read(*((12, 13) if batch else (12,)))
    assert [i for i in range(40) if one.entry(i).kind is PteKind.PRESENT] == list(range(10, 26))
    one.mm.munmap(BASE, 64 * PAGE)
    end(one, file)
