"""The reference ledgers, step by step: refcount/mapcount of every page that takes part."""

import numpy as np
from gpusvm.mm.api import (
    MIGRATE_PFN_COMPOUND,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    MIGRATE_VMA_SELECT_COMPOUND,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    MigrateVma,
    VmFault,
)
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LOCKED, PG_LRU
from gpusvm.mm.pgtable import PmdKind, Pte, PteKind

TO_DEVICE = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND
TO_RAM = MIGRATE_VMA_SELECT_DEVICE_PRIVATE | MIGRATE_VMA_SELECT_COMPOUND


def test_small_page_to_device(lab):
    one = lab()
    one.map(1)
    src = one.pfn(0)
    assert one.counts(src) == "1/1"
    assert one.flags(src) & PG_LRU
    args = one.device.setup(one.mm, one.va(0), one.va(1), flags=TO_DEVICE)
    assert args.src.tolist() == [src << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE]
    assert (args.cpages, args.npages) == (1, 1)
    assert one.counts(src) == "1/0"
    assert one.flags(src) & PG_LOCKED
    assert not one.flags(src) & PG_LRU
    assert one.entry(0) == Pte(PteKind.MIGRATION, src, write=True, dirty=True)
    one.device.fill_to_device(args)
    dst = int(args.dst[0]) >> MIGRATE_PFN_SHIFT
    assert one.counts(dst) == "1/0"
    one.memory.migrate_vma_pages(args)
    assert args.src[0] & MIGRATE_PFN_MIGRATE
    assert (one.counts(src), one.counts(dst)) == ("1/0", "1/0")
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert (one.counts(src), one.counts(dst)) == ("0/0", "1/1")
    assert one.entry(0) == Pte(PteKind.PRIVATE, dst, write=True)
    assert one.flags(dst) & PG_ANON_EXCLUSIVE
    one.check_quiescent()


def test_small_device_page_home_by_a_cpu_fault(lab):
    one = lab()
    one.map(1)
    one.device.migrate(one.mm, one.va(0), one.va(1))
    page = one.pfn(0)
    seen = []

    def migrate_to_ram(vmf: VmFault) -> int:
        seen.append(("fault", one.counts(page)))
        src, dst = np.zeros(1, np.uint64), np.zeros(1, np.uint64)
        args = MigrateVma(vmf.vma, one.va(0), one.va(1), src, dst, one.device.owner, TO_RAM, vmf.page)
        one.memory.migrate_vma_setup(args)
        seen.append(("setup", one.counts(page)))
        one.device.fill_to_ram(args.src, args.dst, 1)
        one.memory.migrate_vma_pages(args)
        seen.append(("pages", one.counts(page)))
        one.memory.migrate_vma_finalize(args)
        seen.append(("finalize", one.counts(page), bool(one.flags(page) & PG_LOCKED)))
        return 0

    one.device.migrate_to_ram = migrate_to_ram
    one.read(0)
    assert seen == [("fault", "2/1"), ("setup", "2/0"), ("pages", "2/0"), ("finalize", "1/0", True)]
    assert one.device.freed == [(page, 0)]
    assert one.counts(one.pfn(0)) == "1/1"
    one.check_quiescent()


def test_block_to_device_and_home(lab):
    one = lab(thp="always")
    one.map(8)
    src = one.entry(0).pfn
    assert one.counts(src) == "1/1"
    args = one.device.setup(one.mm, one.va(0), one.va(8), flags=TO_DEVICE)
    word = MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE | MIGRATE_PFN_COMPOUND
    assert args.src.tolist() == [src << MIGRATE_PFN_SHIFT | word] + [0] * 7
    assert (args.cpages, args.npages) == (1, 8)
    assert one.counts(src) == "1/0"
    assert one.entry(0).kind is PmdKind.MIGRATION
    one.device.fill_to_device(args)
    dst = int(args.dst[0]) >> MIGRATE_PFN_SHIFT
    one.memory.migrate_vma_pages(args)
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert (one.counts(src), one.counts(dst)) == ("0/0", "1/1")
    leaf = one.entry(0)
    assert (leaf.kind, leaf.pfn, leaf.write) == (PmdKind.PRIVATE, dst, True)
    assert one.mm.rss == [8, 0, 0]

    counts = []
    home = one.device.migrate_to_ram

    def migrate_to_ram(vmf: VmFault) -> int:
        counts.append(one.counts(dst))
        ret = home(vmf)
        counts.append(one.counts(dst))
        return ret

    one.device.migrate_to_ram = migrate_to_ram
    one.read(3)
    assert counts == ["2/1", "1/0"]
    assert one.device.freed == [(dst, 3)]
    assert one.entry(0).kind is PmdKind.THP
    one.check_quiescent()


def test_hole_filled(lab):
    one = lab()
    one.map(1, write=False)
    args = one.device.setup(one.mm, one.va(0), one.va(1), flags=TO_DEVICE)
    assert args.src.tolist() == [MIGRATE_PFN_MIGRATE]
    one.device.fill_to_device(args)
    dst = int(args.dst[0]) >> MIGRATE_PFN_SHIFT
    assert one.counts(dst) == "1/0"
    one.memory.migrate_vma_pages(args)
    assert args.src.tolist() == [MIGRATE_PFN_MIGRATE]
    assert one.counts(dst) == "2/1"
    assert one.flags(dst) & PG_LOCKED
    one.memory.migrate_vma_finalize(args)
    one.mm.mmap_lock.up_read()
    assert one.counts(dst) == "1/1"
    assert one.entry(0) == Pte(PteKind.PRIVATE, dst, write=True)
    assert one.mm.rss == [1, 0, 0]
    assert one.kernel.stats.migrated_to_device_bytes == 4096
    assert one.read(0) == [0]
    one.check_quiescent()


def test_page_of_two_processes_faulted_home_by_one(lab):
    one = lab()
    one.map(1)
    two = one.share(1)
    one.device.migrate(one.mm, one.va(0), one.va(1))
    page = one.pfn(0)
    assert one.counts(page) == "2/2"
    assert one.entry(0) == one.entry(0, two) == Pte(PteKind.PRIVATE, page)
    counts = []
    home = one.device.migrate_to_ram

    def migrate_to_ram(vmf: VmFault) -> int:
        counts.append(one.counts(page))
        ret = home(vmf)
        counts.append(one.counts(page))
        return ret

    one.device.migrate_to_ram = migrate_to_ram
    one.read(0)
    assert counts == ["3/2", "1/0"]
    new = one.pfn(0)
    assert one.counts(new) == "2/2"
    assert one.entry(0) == one.entry(0, two) == Pte(PteKind.PRESENT, new)
    assert not one.flags(new) & PG_ANON_EXCLUSIVE
    one.check_quiescent()
    assert one.memory.cpu_read(two, one.va(0)) == one.read(0)[0]
    two.exit()
