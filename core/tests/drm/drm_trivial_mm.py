"""A second mm, as simple as one can be: a flat array of pages, all of order 0, one mapping a page, no concurrency.

It has just enough of `MemoryManagerApi` for `gpusvm.drm`, and shares no code with `gpusvm.mm`: what runs on it knows no
page table.
"""

from errno import EBUSY, EFAULT, EINVAL, EPERM

import numpy as np
from attrs import define, field
from gpusvm.errors import KernelError
from gpusvm.mm.api import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    MIGRATE_PFN_MIGRATE,
    MIGRATE_PFN_SHIFT,
    MIGRATE_PFN_VALID,
    MIGRATE_PFN_WRITE,
    MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
    MIGRATE_VMA_SELECT_SYSTEM,
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_MIGRATE,
    MMU_NOTIFY_UNMAP,
    VM_FAULT_ERROR,
    VM_READ,
    VM_WRITE,
    Geometry,
    MmuNotifierRange,
    VmFault,
)


@define
class TrivialVma:
    start: int
    end: int
    flags: int = VM_READ | VM_WRITE
    is_anonymous: bool = True


@define(eq=False)
class Sub:
    mm: object
    start: int
    last: int
    ops: object
    invalidate_seq: int = 1


@define(eq=False)
class Page:
    refcount: int = 0
    locked: bool = False
    vpn: int | None = None  # where the one mapping is
    data: object = None
    flag: bool = False
    token: int = 0


class TrivialMm:
    def __init__(self, kernel, memory):
        self.name = "trivial"
        self.memory = memory
        self.mmap_lock = kernel.rwsem("mmap_lock")
        self.vmas = []
        self.entries = {}  # vpn -> [pfn, is it a migration entry]
        self.subs = []
        self.users = self.count = 1

    def mmget_not_zero(self):
        self.users += self.users > 0
        return self.users > 0

    def mmget(self):
        self.users += 1

    def mmput(self):
        self.users -= 1

    mmput_async = mmput

    def mmgrab(self):
        self.count += 1

    def mmdrop(self):
        self.count -= 1

    def find_vma(self, addr):
        return next((vma for vma in self.vmas if vma.end > addr), None)

    def vma_lookup(self, addr):
        return next((vma for vma in self.vmas if vma.start <= addr < vma.end), None)

    def find_vma_intersection(self, start, end):
        return next((vma for vma in self.vmas if vma.start < end and vma.end > start), None)

    def mmap(self, start, npages, **kwargs):
        self.vmas.append(TrivialVma(start, start + (npages << 12), **kwargs))
        self.vmas.sort(key=lambda vma: vma.start)

    def munmap(self, start, npages):
        """Unmap; a VMA is cut, or split, as needed."""
        end = start + (npages << 12)
        for vma in [v for v in self.vmas if v.start < end and v.end > start]:
            self.vmas.remove(vma)
            for a, b in ((vma.start, min(vma.end, start)), (max(vma.start, end), vma.end)):
                if a < b:
                    self.vmas.append(TrivialVma(a, b, vma.flags, vma.is_anonymous))
        self.memory.invalidate(self, start, end, MMU_NOTIFY_UNMAP)
        for vpn in range(start >> 12, end >> 12):
            entry = self.entries.pop(vpn, None)
            if entry is not None:
                self.memory.page(entry[0]).vpn = None
                self.memory.folio_put(entry[0])


@define(eq=False)
class TrivialMemory:
    kernel: object
    ram_pages: int = 4096
    geometry: Geometry = field(factory=Geometry)
    pages: list = field(factory=list)
    regions: list = field(factory=list)
    mms: list = field(factory=list)
    events: list = field(factory=list)

    def __attrs_post_init__(self):
        self.pages = [Page() for _ in range(self.ram_pages)]

    def page(self, pfn):
        return self.pages[int(pfn)]

    def new_mm(self):
        mm = TrivialMm(self.kernel, self)
        self.mms.append(mm)
        return mm

    # notifiers

    def invalidate(self, mm, start, end, event, owner=None):
        self.events.append((event, start >> 12, end >> 12))
        for sub in mm.subs:
            if sub.start < end and sub.last >= start:
                assert sub.ops.invalidate(sub, MmuNotifierRange(mm, start, end, event, owner), sub.invalidate_seq + 2)

    def mmu_interval_notifier_insert(self, mm, start, length, ops):
        mm.subs.append(Sub(mm, start, start + length - 1, ops))
        return mm.subs[-1]

    def mmu_interval_notifier_remove(self, sub):
        sub.mm.subs.remove(sub)

    def mmu_interval_read_begin(self, sub):
        return sub.invalidate_seq

    def mmu_interval_read_retry(self, sub, seq):
        return sub.invalidate_seq != seq

    def mmu_interval_set_seq(self, sub, cur_seq):
        sub.invalidate_seq = cur_seq

    # faults

    def cpu_fault(self, mm, vpn):
        """Make a page present on the CPU; the pfn."""
        vma = mm.vma_lookup(vpn << 12)
        if vma is None:
            raise KernelError(EFAULT)
        entry = mm.entries.get(vpn)
        if entry is None:
            pfn = int(self.alloc_pages_bulk(1)[0])
            self.page(pfn).token = 0
            mm.entries[vpn] = entry = [pfn, False]
            self.page(pfn).vpn = vpn
        rounds = 0
        while self.is_device_private(entry[0]):
            pfn = entry[0]
            self.folio_get(pfn)
            assert self.folio_trylock(pfn)
            mm.mmap_lock.down_read()
            result = self.page_pgmap(pfn).ops.migrate_to_ram(VmFault(mm, vma, vpn << 12, pfn, True))
            mm.mmap_lock.up_read()
            self.folio_unlock(pfn)
            self.folio_put(pfn)
            if result & VM_FAULT_ERROR:
                raise KernelError(EFAULT, f"fault bits {result:#x}")
            rounds += 1
            assert rounds < 3, "the CPU fault makes no progress"
            entry = mm.entries[vpn]
        return entry[0]

    def write(self, mm, addr, tokens):
        for i, token in enumerate(tokens):
            self.page(self.cpu_fault(mm, (addr >> 12) + i)).token = token

    def read(self, mm, addr, n):
        return [self.page(self.cpu_fault(mm, (addr >> 12) + i)).token for i in range(n)]

    def hmm_range_fault(self, range_):
        mm = range_.notifier.mm
        for i, vpn in enumerate(range(range_.start >> 12, range_.end >> 12)):
            vma = mm.vma_lookup(vpn << 12)
            want = range_.default_flags
            if want and vma is None:
                raise KernelError(EFAULT)
            if want & HMM_PFN_REQ_WRITE and not vma.flags & VM_WRITE:
                raise KernelError(EPERM)
            entry = mm.entries.get(vpn)
            foreign = (
                entry is not None
                and self.is_device_private(entry[0])
                and self.page_pgmap(entry[0]).owner is not range_.dev_private_owner
            )
            if entry is None or foreign:
                if not want & HMM_PFN_REQ_FAULT:
                    range_.hmm_pfns[i] = 0
                    continue
                self.cpu_fault(mm, vpn)
                if range_.notifier.invalidate_seq != range_.notifier_seq:
                    raise KernelError(EBUSY)
                entry = mm.entries[vpn]
            range_.hmm_pfns[i] = entry[0] | HMM_PFN_VALID | (HMM_PFN_WRITE if vma.flags & VM_WRITE else 0)

    def hmm_range_fault_unlocked_timeout(self, range_, timeout_ns):
        while True:
            range_.notifier_seq = self.mmu_interval_read_begin(range_.notifier)
            try:
                self.hmm_range_fault(range_)
            except KernelError as error:
                if error.errno != EBUSY:
                    raise
                continue
            return

    # migration

    def migrate_vma_setup(self, args):
        mm = next(mm for mm in self.mms if args.vma in mm.vmas)
        if not args.vma.start <= args.start < args.end <= args.vma.end:
            raise KernelError(EINVAL)
        self.invalidate(mm, args.start, args.end, MMU_NOTIFY_MIGRATE, args.pgmap_owner)
        args.npages = (args.end - args.start) >> 12
        for i in range(args.npages):
            vpn = (args.start >> 12) + i
            entry = mm.entries.get(vpn)
            if entry is None:
                args.src[i] = MIGRATE_PFN_MIGRATE
            else:
                pfn = entry[0]
                device = self.is_device_private(pfn)
                if not args.flags & (MIGRATE_VMA_SELECT_DEVICE_PRIVATE if device else MIGRATE_VMA_SELECT_SYSTEM):
                    continue
                if device and self.page_pgmap(pfn).owner is not args.pgmap_owner:
                    continue
                if pfn != args.fault_page and not self.folio_trylock(pfn):
                    continue
                if self.page(pfn).refcount > (2 if pfn == args.fault_page else 1):
                    if pfn != args.fault_page:
                        self.folio_unlock(pfn)
                    continue
                self._collect(mm, vpn)
                args.src[i] = pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE
            args.cpages += 1

    def _collect(self, mm, vpn):
        mm.entries[vpn][1] = True  # the mapping's reference becomes the migrator's

    def migrate_vma_pages(self, args):
        mm = next(mm for mm in self.mms if args.vma in mm.vmas)
        self._pages(args.src, args.dst, mm, args.start >> 12)

    def _pages(self, src, dst, mm, vpn0):
        for i in range(len(src)):
            if not dst[i]:
                src[i] &= ~np.uint64(MIGRATE_PFN_MIGRATE)
            elif not int(src[i]) & MIGRATE_PFN_VALID:
                pfn = int(dst[i]) >> MIGRATE_PFN_SHIFT
                mm.entries[vpn0 + i] = [pfn, False]
                self.page(pfn).vpn = vpn0 + i
                self.folio_get(pfn)

    def migrate_vma_finalize(self, args):
        mm = next(mm for mm in self.mms if args.vma in mm.vmas)
        self._finalize(args.src, args.dst, mm, args.fault_page)

    def _finalize(self, src, dst, mm, fault_page=None):
        for i in range(len(src)):
            old = int(src[i]) >> MIGRATE_PFN_SHIFT if int(src[i]) & MIGRATE_PFN_VALID else None
            new = int(dst[i]) >> MIGRATE_PFN_SHIFT if dst[i] else None
            if old is not None:
                moved = int(src[i]) & MIGRATE_PFN_MIGRATE and new is not None
                vpn = self.page(old).vpn
                target = new if moved else old
                if vpn is not None:
                    mm.entries[vpn] = [target, False]
                    self.page(old).vpn = None
                    self.page(target).vpn = vpn
                    self.folio_get(target)
                if old != fault_page:
                    self.folio_unlock(old)
                self.folio_put(old)
            if new is not None:
                self.folio_unlock(new)
                self.folio_put(new)

    def migrate_device_pfns(self, src, npages):
        mm = self.mms[0]
        for i in range(npages):
            pfn = int(src[i])
            page = self.page(pfn)
            src[i] = 0
            if page.refcount and self.folio_trylock(pfn):
                if page.vpn is None or page.refcount > 1:
                    self.folio_unlock(pfn)
                    continue
                self.invalidate(mm, page.vpn << 12, (page.vpn + 1) << 12, MMU_NOTIFY_CLEAR)
                self._collect(mm, page.vpn)
                src[i] = pfn << MIGRATE_PFN_SHIFT | MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE

    def migrate_device_pages(self, src, dst, npages):
        self._pages(src, dst, None, 0)

    def migrate_device_finalize(self, src, dst, npages):
        self._finalize(src, dst, self.mms[0])

    # device memory

    def request_free_mem_region(self, nr_pages):
        return len(self.pages)

    def memremap_pages(self, pgmap):
        assert pgmap.start_pfn == len(self.pages)
        self.pages += [Page() for _ in range(pgmap.nr_pages)]
        self.regions.append(pgmap)

    def page_pgmap(self, pfn):
        return next((p for p in self.regions if p.start_pfn <= pfn < p.start_pfn + p.nr_pages), None)

    def zone_device_folio_init(self, pfn, pgmap, order):
        raise NotImplementedError("this mm has no large folios")

    def zone_device_folios_init(self, pfns, pgmap):
        for pfn in pfns:
            page = self.page(pfn)
            assert not page.refcount
            page.refcount, page.locked, page.vpn = 1, True, None

    def zone_device_data(self, pfn):
        return self.page(pfn).data

    def set_zone_device_data(self, pfn, data):
        for one in np.atleast_1d(pfn):
            self.page(one).data, self.page(one).flag = data, False

    def zone_device_flag(self, pfn):
        return self.page(pfn).flag

    def zone_device_flags(self, pfns):
        return np.array([self.page(pfn).flag for pfn in pfns], np.bool_)

    def set_zone_device_flag(self, pfn):
        for one in np.atleast_1d(pfn):
            self.page(one).flag = True

    # folios and contents

    def alloc_folio(self, order):
        pages = self.alloc_pages_bulk(1) if order == 0 else None
        return None if pages is None else int(pages[0])

    def alloc_pages_bulk(self, n):
        free = [pfn for pfn in range(1, self.ram_pages) if not self.pages[pfn].refcount][:n]
        if len(free) < n or self.kernel.inject("alloc.pages"):
            return None
        for pfn in free:
            self.pages[pfn] = Page(refcount=1)
        return np.array(free, np.int64)

    def folio_head(self, pfn):
        return pfn

    def folio_get(self, pfn):
        self.page(pfn).refcount += 1

    def folio_put(self, pfn):
        page = self.page(pfn)
        assert page.refcount > 0
        page.refcount -= 1
        if not page.refcount and self.is_device_private(pfn):
            self.page_pgmap(pfn).ops.folio_free(int(pfn), 0)

    def folios_put(self, pfns):
        for pfn in pfns:
            self.folio_put(pfn)

    def folio_trylock(self, pfn):
        page = self.page(pfn)
        locked, page.locked = page.locked, True
        return not locked

    def folios_lock_new(self, pfns):
        for pfn in pfns:
            assert self.folio_trylock(pfn)

    def folio_unlock(self, pfn):
        assert self.page(pfn).locked
        self.page(pfn).locked = False

    def folios_unlock(self, pfns):
        for pfn in pfns:
            self.folio_unlock(pfn)

    def is_device_private(self, pfn):
        return pfn >= self.ram_pages

    def device_private_mask(self, pfns):
        return pfns >= self.ram_pages

    def is_device_memory(self, pfn):
        return self.is_device_private(pfn)

    def device_memory_mask(self, pfns):
        return self.device_private_mask(pfns)  # none of it is coherent

    def copy_pages(self, dst, src):
        for d, s in zip(dst, src, strict=True):
            self.page(d).token = self.page(s).token

    def copy_folio(self, dst, src, nr_pages):
        for i in range(nr_pages):
            self.page(dst + i).token = self.page(src + i).token

    def clear_pages(self, pfns):
        for pfn in pfns:
            self.page(pfn).token = 0
