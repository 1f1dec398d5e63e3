"""Files: shared mappings that tell the file system of writes, private ones that copy, and what else can read them."""

from errno import EINVAL

import numpy as np
import pytest
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import MADV_DONTNEED, PROT_READ, PROT_WRITE, VM_SHARED, HmmRange
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_DIRTY, PG_SWAPBACKED
from gpusvm.mm.pgtable import PteKind

PAGE = 4096
BASE = 1 << 30
RW = PROT_READ | PROT_WRITE
READ, READ_WRITE = 1 << 63, 3 << 62


def mapped(one, n: int = 8, *, prot: int = RW, shared: bool = True, offset: int = 0, pages: int = 16):
    file = one.memory.tmpfile(pages)
    one.mm.mmap(BASE, n * PAGE, prot, flags=VM_SHARED if shared else 0, file=file, offset=offset * PAGE)
    return file


def letters(one, n: int, mm=None) -> str:
    kinds = {PteKind.NONE: ".", PteKind.PRESENT: "r", PteKind.PRIVATE: "d", PteKind.MIGRATION: "m"}
    entries = [one.entry(i, mm) for i in range(n)]
    return "".join("w" if e.write and e.kind is PteKind.PRESENT else kinds[e.kind] for e in entries)


def fault(one, n: int, request: int) -> list[int]:
    """hmm_range_fault of the first pages by a device; the words."""
    sub = one.memory.mmu_interval_notifier_insert(one.mm, BASE, n * PAGE, one.watchers[0])
    words = np.zeros(n, np.uint64)
    range_ = HmmRange(
        notifier=sub,
        start=BASE,
        end=BASE + n * PAGE,
        hmm_pfns=words,
        default_flags=request,
        dev_private_owner=one.device,
        notifier_seq=one.memory.mmu_interval_read_begin(sub),
    )
    one.mm.mmap_lock.down_read()
    try:
        one.memory.hmm_range_fault(range_)
    finally:
        one.mm.mmap_lock.up_read()
        one.memory.mmu_interval_notifier_remove(sub)
    return words.tolist()


def end(one, *files) -> None:
    for file in files:
        file.close()
    one.check_quiescent()
    one.finish()


def test_a_device_reads_what_was_written_to_a_file(lab):
    """hmm-tests file_read: a shared read-only mapping, read without a fault by the process itself."""
    one = lab()
    file = mapped(one, prot=PROT_READ)
    one.watch()
    tokens = [file.pwrite(i) for i in range(8)]
    words = fault(one, 8, READ)
    assert [word >> 62 for word in words] == [2] * 8
    pfns = [word & ((1 << 53) - 1) for word in words]
    assert [one.memory.contents.token(pfn) for pfn in pfns] == tokens
    assert one.mm.rss == [0, 8, 0]
    assert {one.counts(pfn) for pfn in pfns} == {"2/1"}
    assert not one.flags(pfns[0]) & PG_SWAPBACKED
    end(one, file)


def test_a_device_writes_a_file(lab):
    """hmm-tests file_write: the process and pread(2) see what the device wrote."""
    one = lab()
    file = mapped(one)
    one.watch()
    words = fault(one, 8, READ_WRITE)
    assert [word >> 62 for word in words] == [3] * 8
    pfns = [word & ((1 << 53) - 1) for word in words]
    vpns = np.arange(8) + BASE // PAGE
    one.memory.contents.write_many(one.mm, vpns, np.array(pfns), writer=1)
    tokens = [one.memory.contents.token(pfn) for pfn in pfns]
    assert one.read(*range(8)) == tokens
    assert [file.pread(i) for i in range(8)] == tokens
    assert all(one.flags(pfn) & PG_DIRTY for pfn in pfns)
    assert one.events == []
    end(one, file)


def test_the_file_system_hears_of_the_first_write(lab):
    """vma_wants_writenotify: a page that is only read is mapped read-only, and becomes writable without an event."""
    one = lab()
    file = mapped(one)
    one.watch()
    one.read(0)
    assert letters(one, 3) == "r.."
    assert one.counts(one.pfn(0)) == "2/1"
    token = one.write(0)[0]
    one.write(1)
    assert letters(one, 3) == "ww."
    assert file.pread(0) == token
    assert one.events == []
    end(one, file)


def test_mprotect_gives_write_back_only_where_the_file_system_knows(lab):
    one = lab()
    file = mapped(one)
    one.write(0)
    one.read(1)
    one.mm.mprotect(BASE, 8 * PAGE, PROT_READ)
    assert letters(one, 3) == "rr."
    one.mm.mprotect(BASE, 8 * PAGE, RW)
    assert letters(one, 3) == "wr."
    end(one, file)


def test_a_private_mapping_reads_the_file_until_it_writes(lab):
    one = lab()
    file = mapped(one, shared=False)
    first = file.pwrite(0)
    assert one.read(0, 1) == [first, 0]
    assert letters(one, 3) == "rr."
    second = file.pwrite(0)
    assert one.read(0) == [second]
    assert one.mm.vmas[0].anon_vma is None
    own = one.write(0)
    file.pwrite(0)
    assert one.read(0) == own
    assert letters(one, 3) == "wr."
    assert one.mm.rss == [1, 1, 0]
    pfn = one.pfn(0)
    assert one.flags(pfn) & PG_ANON_EXCLUSIVE
    assert one.pages.folio_test_anon(pfn)
    assert one.memory.contents.mismatches == []
    end(one, file)


def test_a_copy_over_a_mapped_page_clears_it_and_one_over_nothing_does_not(lab):
    """wp_page_copy opens a CLEAR window; do_cow_fault maps the copy where nothing was."""
    one = lab()
    file = mapped(one, shared=False)
    one.watch()
    one.read(2)
    one.write(2, 3)
    assert [event[1:4] for event in one.events] == [("CLEAR", 2, 3)]
    assert letters(one, 5) == "..ww."
    end(one, file)


def test_what_was_copied_and_never_written_keeps_what_the_file_had(lab):
    """A device asks for a writable page and does not write: the copy does not follow the file any more."""
    one = lab()
    file = mapped(one, shared=False)
    one.watch()
    old = file.pwrite(0)
    fault(one, 2, READ_WRITE)
    file.pwrite(0)
    file.pwrite(1)
    assert one.read(0, 1) == [old, 0]
    one.mm.madvise(BASE, 2 * PAGE, MADV_DONTNEED)
    assert one.read(0, 1) == [file.pread(0), file.pread(1)]
    assert one.memory.contents.mismatches == []
    end(one, file)


def test_discarded_copies_fall_back_to_the_file_and_shared_pages_stay(lab):
    one = lab()
    file = mapped(one, shared=False)
    token = file.pwrite(1)
    one.write(0, 1, 2)
    one.mm.madvise(BASE, 8 * PAGE, MADV_DONTNEED)
    assert one.mm.rss == [0, 0, 0]
    assert one.read(0, 1, 2) == [0, token, 0]
    one.mm.mmap(BASE, 8 * PAGE, RW, flags=VM_SHARED, file=file)
    new = one.write(0)
    one.mm.madvise(BASE, 8 * PAGE, MADV_DONTNEED)
    assert one.read(0, 1) == [*new, token]
    one.mm.munmap(BASE, 8 * PAGE)
    assert file.pread(0) == new[0]
    end(one, file)


def test_private_copies_migrate_and_pages_of_the_file_stay(lab):
    """hmm-tests migrate_file_private; 6.6 3c of mm.md for the pages that are the file's."""
    one = lab()
    file = mapped(one, shared=False, offset=4)
    file.pwrite(6)
    tokens = one.write(0, 1)
    one.read(2)
    one.watch()
    args = one.device.migrate(one.mm, BASE, BASE + 8 * PAGE)
    assert letters(one, 4) == "ddr."
    assert [bool(word & 2) for word in args.src.tolist()] == [True, True] + [False] * 6
    assert one.mm.rss == [2, 1, 0]
    assert [event[1:4] for event in one.events] == [("MIGRATE", 0, 8)]
    assert one.read(0, 1, 2) == [*tokens, file.pread(6)]
    assert letters(one, 4) == "wwr."
    end(one, file)


def test_a_page_of_a_file_moves_within_system_memory(lab):
    """mm/migrate.c:__folio_migrate_mapping: the cache has the new page, every mapping names it, the old one is free."""
    one = lab()
    file = mapped(one, 4)
    tokens = one.write(0, 1)
    two = one.mm.fork()
    one.memory.cpu_read(two, one.va(0))
    old = [one.pfn(0), one.pfn(1)]
    args = one.device.setup(one.mm, BASE, BASE + 4 * PAGE, flags=1)
    assert args.cpages == 2
    for i in range(2):
        new = one.memory.alloc_folio(0)
        one.memory.folio_lock(new)
        one.memory.copy_folio(new, old[i], 1)
        args.dst[i] = new << 6 | 1
    one.memory.migrate_vma_pages(args)
    assert [bool(word & 2) for word in args.src[:2].tolist()] == [True, True]
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert [one.pfn(0), one.pfn(1)] == [file.pages[0], file.pages[1]]
    assert not {*old} & {*file.pages.values()}
    assert letters(one, 3) == "ww."
    assert letters(one, 3, two) == "rr."
    assert [one.counts(pfn) for pfn in (one.pfn(0), one.pfn(1))] == ["3/2", "3/2"]
    assert [one.pages.ram.m_refcount[pfn] for pfn in old] == [0, 0]
    assert one.read(0, 1) == tokens
    assert [file.pread(i) for i in (0, 1)] == tokens
    one.check_quiescent()
    two.exit()
    end(one, file)


def test_a_child_is_visited_right_behind_its_parent(lab):
    """mm/interval_tree.c:vma_interval_tree_insert_after, as dup_mmap has it; a mapping made later comes last."""
    one = lab()
    file = mapped(one, 2)
    other = one.memory.mm_alloc("other")
    other.mmap(BASE, 2 * PAGE, RW, flags=VM_SHARED, file=file)
    first = one.mm.fork("first")
    second = one.mm.fork("second")
    mms = (one.mm, second, first, other)
    for mm in mms:
        one.memory.cpu_write(mm, BASE)
    one.watch(*mms)
    one.device.migrate(one.mm, BASE, BASE + 2 * PAGE, flags=1)
    clears = [name for name, event, *_ in one.events if event == "CLEAR"]
    assert clears == ["p", "second", "first", "other"]
    for watcher in one.watchers:
        one.memory.mmu_interval_notifier_remove(watcher.sub)
    one.watchers = []
    for mm in mms[1:]:
        mm.exit()
    end(one, file)


def test_a_child_shares_copies_and_finds_the_file_by_itself(lab):
    one = lab()
    file = mapped(one, shared=False)
    one.read(0)
    tokens = one.write(1)
    two = one.mm.fork()
    assert two.rss == [1, 1, 0]
    assert letters(one, 3, two) == "rr."
    assert letters(one, 3) == "rr."
    new = file.pwrite(0)
    assert [one.memory.cpu_read(two, one.va(i)) for i in range(3)] == [new, tokens[0], 0]
    own = one.memory.cpu_write(two, one.va(0))
    assert one.read(0, 1) == [new, tokens[0]]
    assert one.memory.cpu_read(two, one.va(0)) == own
    one.check_quiescent()
    two.exit()
    end(one, file)


def test_a_move_takes_the_offsets_of_the_file_along(lab):
    one = lab()
    file = mapped(one, offset=2)
    tokens = one.write(0, 1, 2)
    one.mm.mremap(BASE + PAGE, 2 * PAGE, 2 * PAGE, flags=3, new_addr=BASE + 32 * PAGE)
    assert one.read(32, 33) == tokens[1:]
    assert [vma.pgoff for vma in one.mm.vmas] == [2, 5, 3]
    assert [file.pread(i) for i in (2, 3, 4)] == tokens
    assert len(file.vmas) == 3
    end(one, file)


def test_areas_of_one_file_merge_where_its_offsets_continue(lab):
    one = lab()
    file = mapped(one, 4)
    one.mm.mmap(BASE + 4 * PAGE, 4 * PAGE, RW, flags=VM_SHARED, file=file, offset=4 * PAGE)
    assert len(one.mm.vmas) == 1
    one.mm.mmap(BASE + 8 * PAGE, 4 * PAGE, RW, flags=VM_SHARED, file=file)
    assert len(one.mm.vmas) == 2
    assert file.users == 3
    end(one, file)


def test_a_file_lives_as_long_as_it_is_open_or_mapped(lab):
    one = lab()
    file = mapped(one, 2)
    one.write(0, 1)
    one.mm.munmap(BASE, 2 * PAGE)
    assert sorted(file.pages) == [0, 1]
    one.mm.mmap(BASE, 2 * PAGE, RW, flags=VM_SHARED, file=file)
    file.close()
    assert one.mm.rss == [0, 0, 0]
    one.read(0)
    assert one.mm.rss == [0, 2, 0]  # fault-around
    one.mm.munmap(BASE, 2 * PAGE)
    assert file.pages == {}
    assert one.memory.rmap.has_files is False
    end(one)


def test_truncation_unmaps_copies_too_and_a_touch_behind_the_end_is_a_bus_error(lab):
    one = lab()
    file = mapped(one, shared=False, pages=8)
    tokens = one.write(0, 5)
    one.read(6)
    one.watch()
    file.truncate(4)
    assert [event[1:4] for event in one.events] == [("CLEAR", 4, 8)] * 2
    assert letters(one, 8) == "w......."
    assert one.mm.rss == [1, 0, 0]
    assert one.read(0) == tokens[:1]
    with pytest.raises(CpuSignal) as caught:
        one.read(5)
    assert caught.value.signal == 7
    file.truncate(8)
    assert one.read(5, 6) == [0, 0]
    end(one, file)


def test_read_and_write_refuse_what_lies_behind_the_end(lab):
    one = lab()
    file = one.memory.tmpfile(2)
    with pytest.raises(KernelError) as caught:
        file.pread(2)
    assert (caught.value.errno, str(caught.value)) == (
        EINVAL,
        "-EINVAL: page 2 lies behind the end of AddressSpace('tmpfile', 0 of 2 pages)",
    )
    end(one, file)


def test_a_wrong_page_is_noticed_by_read(lab):
    one = lab()
    file = one.memory.tmpfile(2)
    token = file.pwrite(1)
    one.pages.ram.m_token[file.pages[1]] = 5
    file.pread(1)
    wrong = one.memory.contents.mismatches
    assert [(each.mm, each.vpn, each.expected, each.found) for each in wrong] == [("tmpfile", 1, token, 5)]
