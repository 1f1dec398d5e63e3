"""mm/hmm.c, as of Linux 7.3.4: read an address space for a device, faulting in what the device asks for.

The walk fills one output word for each page until it meets one that needs a fault; the fault phase then handles every
page from there to the end of the walk's piece, and the walk goes on from it. Words before the place reached are
outputs, words from there on are still inputs. Whole pieces of a table are evaluated as masks.
"""

from errno import EBUSY, EFAULT, EINTR, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.errors import KernelError, ModelError
from gpusvm.mm.api import (
    FAULT_FLAG_ALLOW_RETRY,
    FAULT_FLAG_KILLABLE,
    FAULT_FLAG_REMOTE,
    FAULT_FLAG_WRITE,
    HMM_PFN_ERROR,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_STICKY,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    VM_FAULT_COMPLETED,
    VM_FAULT_ERROR,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_HUGETLB,
    VM_IO,
    VM_PFNMAP,
    VM_READ,
    VM_WRITE,
    HmmRange,
    Words,
)
from gpusvm.mm.memory import fault_in_ptes, handle_mm_fault
from gpusvm.mm.mm_struct import MMF_UNSTABLE, MmStruct
from gpusvm.mm.mmu_notifier import MmuIntervalNotifier, mmu_interval_read_begin
from gpusvm.mm.observer import tell
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteKind, PteTable
from gpusvm.mm.ptemask import RAMP, bools, from_bools, from_indices, indices, lowest, span

if TYPE_CHECKING:
    from gpusvm.mm.memory_manager import MemoryManager
    from gpusvm.mm.vma import Vma

# What a page needs (HMM_NEED_FAULT, HMM_NEED_WRITE_FAULT).
NEED_FAULT: Final = 1
NEED_WRITE_FAULT: Final = 2

_MAPPED: Final = (PmdKind.THP, PmdKind.HUGE_ZERO, PmdKind.HUGETLB)
_STICKY: Final = np.uint64(HMM_PFN_STICKY)
_VALID: Final = np.uint64(HMM_PFN_VALID)
_WRITE: Final = np.uint64(HMM_PFN_WRITE)
_REQ_WRITE_SHIFT: Final = np.uint64(62)
_REQ_FAULT_SHIFT: Final = np.uint64(63)
_WORD_RAMP: Final = RAMP.view(np.uint64)


class _Walk:
    """Be one call of hmm_range_fault_locked."""

    __slots__ = ("end", "last", "locked", "memory", "mm", "pending", "range_", "shift", "unlockable", "words")

    def __init__(self, memory: "MemoryManager", range_: HmmRange, *, unlockable: bool) -> None:
        self.memory = memory
        # Whether a fault may give mmap_lock up, and whether none has.
        self.unlockable = unlockable
        self.locked = True
        self.range_ = range_
        mm = range_.notifier.mm
        assert isinstance(mm, MmStruct)
        self.mm = mm
        self.shift = memory.geometry.page_shift
        self.words = range_.hmm_pfns
        self.last = range_.start
        self.end = range_.end
        # What the walk recorded for the fault phase: address, end of the piece, what is needed.
        self.pending: tuple[int, int, int] | None = None

    def slice(self, start: int, end: int) -> Words:
        """Return the words of [start, end)."""
        base = self.range_.start
        return self.words[(start - base) >> self.shift : (end - base) >> self.shift]

    def fill(self, start: int, end: int, value: int) -> None:
        """Make every word of [start, end) `value`, sticky bits kept (hmm_pfns_fill)."""
        words = self.slice(start, end)
        words &= _STICKY
        if value:
            words |= np.uint64(value)

    def need(self, start: int, end: int, cpu_flags: int) -> int:
        """Return what the pages of [start, end) need, all together (hmm_range_need_fault)."""
        range_ = self.range_
        default, mask = range_.default_flags, range_.pfn_flags_mask
        if not (default | mask) & HMM_PFN_REQ_FAULT:
            return 0
        if not mask:
            return _need(default, cpu_flags)
        words = self.slice(start, end)
        needed = 0
        # The words differ in two bits that matter: ask once for each of the four kinds that occur.
        for kind in np.unique((words >> _REQ_WRITE_SHIFT) & np.uint64(3)).tolist():
            needed |= _need(((kind << 62) & mask) | default, cpu_flags)
        return needed

    def record(self, address: int, end: int, needed: int) -> bool:
        """Note a fault to be handled; False, as the walk ends here (hmm_record_fault)."""
        self.last = address
        self.pending = (address, end, needed)
        return False

    def walk(self) -> bool:
        """Fill words from `last` to the end; False if a fault is pending or a migration was waited for
        (walk_page_range).
        """
        mm = self.mm
        tree = mm.vma_tree
        at, end = self.last, self.end
        while at < end:
            vma = tree.find(at)
            if vma is None or vma.start > at:
                stop = end if vma is None else min(end, vma.start)
                # hmm_vma_walk_hole without a VMA
                if self.need(at, stop, 0):
                    raise KernelError(EFAULT, f"nothing is mapped at {at:#x}")
                self.fill(at, stop, HMM_PFN_ERROR)
                at = stop
                continue
            stop = min(end, vma.end)
            if vma.flags & (VM_IO | VM_PFNMAP) or not vma.flags & VM_READ:
                # hmm_vma_walk_test
                if self.need(at, stop, 0):
                    raise KernelError(EFAULT, f"{vma!r} cannot be read by a device")
                self.fill(at, stop, HMM_PFN_ERROR)
                at = stop
                continue
            if not (self.walk_hugetlb(at, stop) if vma.flags & VM_HUGETLB else self.walk_vma(at, stop)):
                return False
            at = stop
        return True

    def walk_vma(self, at: int, end: int) -> bool:
        page_table = self.mm.page_table
        pmd_shift = page_table.pmd_shift
        step = self.memory.kernel.step
        while at < end:
            block = at >> pmd_shift
            step()
            entry = page_table.entries.get(block)
            if entry is None:
                stop = page_table.hole_end(at, end)
                needed = self.need(at, stop, 0)
                if needed:
                    first, stop, needed = self.in_need(at, stop, needed, 0)
                    if first > at:
                        self.fill(at, first, 0)
                    return self.record(first, stop, needed)
                self.fill(at, stop, 0)
            else:
                stop = min(end, (block + 1) << pmd_shift)
                good = self.leaf(entry, at, stop) if isinstance(entry, PmdLeaf) else self.table(entry, at, stop)
                if not good:
                    return False
            at = stop
        return True

    def walk_hugetlb(self, at: int, end: int) -> bool:
        """Handle an area of huge pages; the first word says what is asked for a page (hmm_vma_walk_hugetlb_entry)."""
        page_table = self.mm.page_table
        geometry = self.memory.geometry
        while at < end:
            stop = min(end, (at & -geometry.pmd_size) + geometry.pmd_size)
            self.memory.kernel.step()
            leaf = page_table.entries.get(at >> geometry.pmd_shift)
            if not page_table.pud_present(at):
                needed = self.need(at, stop, 0)
                if needed:
                    return self.record(at, stop, needed)
                self.fill(at, stop, 0)
                at = stop
                continue
            # Of an entry that is none as well: not VALID, but with the order.
            flags = geometry.pmd_order << HMM_PFN_ORDER_SHIFT
            pfn = 0
            if isinstance(leaf, PmdLeaf):
                flags |= HMM_PFN_VALID | (HMM_PFN_WRITE if leaf.write else 0)
                pfn = leaf.pfn
            needed = self.need(at, at + geometry.page_size, flags)
            if needed:
                return self.record(at, stop, needed)
            words = self.slice(at, stop)
            offset = (at & (geometry.pmd_size - 1)) >> self.shift
            words &= _STICKY
            words |= _WORD_RAMP[offset : offset + len(words)] + (pfn | flags)
            at = stop
        return True

    def leaf(self, leaf: PmdLeaf, at: int, end: int) -> bool:
        """Handle a PMD that is no table (hmm_vma_walk_pmd, hmm_vma_handle_pmd, hmm_vma_handle_absent_pmd)."""
        memory = self.memory
        kind = leaf.kind
        geometry = memory.geometry
        if kind is PmdKind.MIGRATION:
            if self.need(at, end, 0):
                self.last = at
                memory.pages.folio_wait_locked(leaf.pfn)
                return False
            self.fill(at, end, 0)
            return True
        flags = HMM_PFN_VALID | (HMM_PFN_WRITE if leaf.write else 0) | geometry.pmd_order << HMM_PFN_ORDER_SHIFT
        offset = (at & (geometry.pmd_size - 1)) >> self.shift
        if kind is PmdKind.PRIVATE:
            pgmap = memory.pages.zone(leaf.pfn).pgmap
            if pgmap is None or pgmap.owner is not self.range_.dev_private_owner:
                needed = self.need(at, end, 0)
                if needed:
                    return self.fault_leaf(leaf, at, end, needed, 0)
                self.fill(at, end, 0 if memory.quirks.mm_q2 == "fixed" else HMM_PFN_ERROR)
                return True
            if memory.quirks.mm_s2 == "fixed":
                needed = self.need(at, end, flags)
                if needed:
                    return self.fault_leaf(leaf, at, end, needed, flags)
            if memory.quirks.mm_s1 == "as_written":
                offset = 0
        else:
            needed = self.need(at, end, flags)
            if needed:
                return self.fault_leaf(leaf, at, end, needed, flags)
        words = self.slice(at, end)
        words &= _STICKY
        # A pfn has no bits where the flags are, so that one addition makes whole words.
        words |= _WORD_RAMP[offset : offset + len(words)] + (leaf.pfn | flags)
        return True

    def in_need(self, at: int, end: int, needed: int, cpu_flags: int) -> tuple[int, int, int]:
        """Return the part of [at, end) to be faulted in together, and for what.

        MM-Q7: as written that is all of it. Fixed, it is the first run of pages that need the same.
        """
        mask = self.range_.pfn_flags_mask
        if not mask or self.memory.quirks.mm_q7 == "as_written":
            return at, end, needed
        kinds = ((self.slice(at, end) >> _REQ_WRITE_SHIFT) & np.uint64(3)).astype(np.int64)
        default = self.range_.default_flags
        needs = np.array([_need(((kind << 62) & mask) | default, cpu_flags) for kind in range(4)])[kinds]
        first = int((needs != 0).argmax())
        same = needs[first:] == needs[first]
        n = len(same) if same.all() else int(same.argmin())
        start = at + (first << self.shift)
        return start, start + (n << self.shift), int(needs[first])

    def fault_leaf(self, leaf: PmdLeaf, at: int, end: int, needed: int, cpu_flags: int) -> bool:
        """Record the fault of a leaf; what comes before the first page in need is filled."""
        first, end, needed = self.in_need(at, end, needed, cpu_flags)
        if first > at:
            self.leaf(leaf, at, first)
        return self.record(first, end, needed)

    def table(self, table: PteTable, at: int, end: int) -> bool:
        """Handle the PTEs of one table up to the first that needs a fault (hmm_vma_handle_pte)."""
        shift = self.shift
        i = (at - table.base) >> shift
        n = (end - at) >> shift
        chunk = span(i, n)
        memory = self.memory
        owned = table.private & chunk
        if owned:
            owned = owned_by(memory, table, owned, self.range_.dev_private_owner)
        special = table.special & chunk
        valid = (table.present & chunk & ~special) | owned
        write = table.write & (valid | special)
        done = n
        needing = 0
        asked = self.asked(at, end, i)
        if asked is not None:
            asks, asks_write = asked
            good = owned
            if memory.quirks.mm_s2 == "fixed":
                good &= ~asks_write | write
            needing = asks & ~(good | (table.present & (write | ~asks_write)))
            if special & asks:
                self.refuse_special(table, special & asks, needing)
            if needing:
                first = lowest(needing)
                done = first - i
        if done:
            self.fill_ptes(table, at, i, done, valid, write & ~special)
            if special:
                words = self.slice(at, at + (done << shift))
                words[bools(special >> i, n)[:done]] |= np.uint64(HMM_PFN_ERROR)
        if done == n:
            return True
        bit = 1 << (i + done)
        where = at + (done << shift)
        if table.migration & bit:
            self.last = where
            memory.pages.folio_wait_locked(memory.pages.folio_head(table.m_pfn[i + done]))
            return False
        if not may_fault_in(table, i + done):
            raise KernelError(EFAULT, f"the entry at {where:#x} is {table.entry(i + done).kind.name}")
        assert asked is not None
        write_fault = asked[1] & bit
        if memory.quirks.mm_q7 == "fixed":
            # The run of pages that need the same.
            same = (needing & (asked[1] if write_fault else ~asked[1])) >> (i + done)
            end = where + ((((same + 1) & ~same).bit_length() - 1) << shift)
        return self.record(where, end, NEED_FAULT | (NEED_WRITE_FAULT if write_fault else 0))

    def refuse_special(self, table: PteTable, special: int, needing: int) -> None:
        """Raise EFAULT for an entry without a normal page that was asked for, if no fault comes before it."""
        first = lowest(special)
        if not needing or first < lowest(needing):
            raise KernelError(EFAULT, f"there is no page at {table.base + (first << self.shift):#x}, only a pfn")

    def asked(self, at: int, end: int, i: int) -> tuple[int, int] | None:
        """Return which pages ask for a fault and which of those for a writable one; None if no page may ask."""
        range_ = self.range_
        default, mask = range_.default_flags, range_.pfn_flags_mask
        if not (default | mask) & HMM_PFN_REQ_FAULT:
            return None
        chunk = span(i, (end - at) >> self.shift)
        asks = chunk if default & HMM_PFN_REQ_FAULT else 0
        asks_write = chunk if default & HMM_PFN_REQ_WRITE else 0
        if mask:
            words = self.slice(at, end)
            if mask & HMM_PFN_REQ_FAULT:
                asks |= from_bools((words >> _REQ_FAULT_SHIFT).astype(np.bool_)) << i
            if mask & HMM_PFN_REQ_WRITE:
                asks_write |= from_bools(((words >> _REQ_WRITE_SHIFT) & np.uint64(1)).astype(np.bool_)) << i
        return asks, asks & asks_write

    def fill_ptes(self, table: PteTable, at: int, i: int, n: int, valid: int, write: int) -> None:
        """Fill `n` words from the entries that are `valid`; the others are not mapped."""
        words = self.slice(at, at + (n << self.shift))
        words &= _STICKY
        every = (1 << n) - 1
        valid = (valid >> i) & every
        if not valid:
            return
        write = (write >> i) & every
        pfns = table.pfn[i : i + n].view(np.uint64)
        if valid == every and write in {0, every}:
            words |= pfns | (_VALID | _WRITE if write else _VALID)
            return
        found = np.where(bools(valid, n), pfns | _VALID, np.uint64(0))
        if write:
            found |= bools(write, n).astype(np.uint64) << _REQ_WRITE_SHIFT
        words |= found

    def do_fault(self) -> None:
        """Handle every page of the pending piece with the same flags (hmm_do_fault)."""
        assert self.pending is not None
        address, end, needed = self.pending
        self.pending = None
        memory = self.memory
        vma = self.mm.vma_lookup(address)
        if vma is None:
            raise KernelError(EFAULT, f"nothing is mapped at {address:#x}")
        write = bool(needed & NEED_WRITE_FAULT)
        if write and not vma.flags & VM_WRITE:
            raise KernelError(EPERM, f"{vma!r} cannot be written")
        flags = FAULT_FLAG_REMOTE | (FAULT_FLAG_WRITE if write else 0)
        if self.unlockable:
            flags |= FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE
        self.locked = fault_in_range(memory, vma, address, end, flags)


def fault_in_range(memory: "MemoryManager", vma: "Vma", address: int, end: int, flags: int) -> bool:
    """Handle a fault for each page of [address, end) in order; EFAULT, or ENOMEM.

    False, without mmap_lock, as soon as a handler has given it up, which it may where `flags` allow that.
    What is mapped already as the flags want is passed over in one step, and what is none is filled in one step where
    `fault_in_ptes` can.
    """
    page_table = vma.mm.page_table
    geometry = memory.geometry
    page, pmd_shift, nr = geometry.page_size, geometry.pmd_shift, geometry.pmd_nr
    write = bool(flags & FAULT_FLAG_WRITE)
    while address < end:
        block = address >> pmd_shift
        entry = page_table.entries.get(block)
        if isinstance(entry, PmdLeaf):
            if entry.kind in _MAPPED and (entry.write or not write):
                address = (block + 1) << pmd_shift
                continue
        elif isinstance(entry, PteTable):
            i = (address - entry.base) >> geometry.page_shift
            rest = span(i, min(nr - i, (end - address) >> geometry.page_shift))
            good = entry.present & (entry.write if write else -1)
            todo = rest & ~good
            if not todo:
                address = (block + 1) << pmd_shift
                continue
            first = lowest(todo)
            none = todo & ~entry.used
            if none >> first & 1:
                # The run of none entries that begins here.
                run = ((none >> first) ^ ((none >> first) + 1)) >> 1
                n = run.bit_length()
                if n > 1 and fault_in_ptes(memory, vma, entry, run << first, write=write):
                    address = entry.base + ((first + n) << geometry.page_shift)
                    continue
            address = entry.base + (first << geometry.page_shift)
        ret = handle_mm_fault(memory, vma, address, flags)
        if ret & (VM_FAULT_COMPLETED | VM_FAULT_RETRY):
            return False
        if ret & VM_FAULT_ERROR:
            if ret & VM_FAULT_OOM:
                raise KernelError(ENOMEM, f"no memory for the fault at {address:#x}")
            raise KernelError(EFAULT, f"the fault at {address:#x} ended with vm_fault bits {ret:#x}")
        address = (address & -page) + page
    return True


def may_fault_in(table: PteTable, i: int) -> bool:
    """Tell whether a fault may make entry `i` present: device pages that are not the caller's come home by one, too."""
    return not table.other >> i & 1 or table.others[i].kind in {PteKind.SWAP, PteKind.MARKER_UFFD_WP}


def _need(request: int, cpu_flags: int) -> int:
    # hmm_pte_need_fault
    if not request & HMM_PFN_REQ_FAULT:
        return 0
    if request & HMM_PFN_REQ_WRITE and not cpu_flags & HMM_PFN_WRITE:
        return NEED_FAULT | NEED_WRITE_FAULT
    return 0 if cpu_flags & HMM_PFN_VALID else NEED_FAULT


def owned_by(memory: "MemoryManager", table: PteTable, mask: int, owner: object | None) -> int:
    """Return the part of `mask`, all device-private entries, whose pagemap has this owner."""
    parts = memory.pages.split(table.pfns(mask))
    if len(parts) == 1:
        pgmap = parts[0][0].pgmap
        return mask if pgmap is not None and pgmap.owner is owner else 0
    found = 0
    pages = indices(mask)
    for zone, _, where in parts:
        if zone.pgmap is not None and zone.pgmap.owner is owner:
            found |= from_indices(pages[where], memory.geometry.pmd_nr)
    return found


def hmm_range_fault(memory: "MemoryManager", range_: HmmRange) -> None:
    """Snapshot or fault a range; mmap_lock is held, in any mode, and stays held. EBUSY EFAULT EPERM ENOMEM EINVAL.

    EBUSY means that the subscription was invalidated; `notifier_seq` comes from mmu_interval_read_begin. A fault that
    would have to give the lock up, as that of a page that userfaultfd watches, is EFAULT.
    """
    _range_fault_locked(memory, _Walk(memory, range_, unlockable=False))


def _range_fault_locked(memory: "MemoryManager", walk: _Walk) -> None:
    # hmm_range_fault_locked
    range_ = walk.range_
    if range_.start >= range_.end:
        raise KernelError(EINVAL, f"a range of {range_.start:#x}-{range_.end:#x}")
    kernel = memory.kernel
    if kernel.checked and not walk.mm.mmap_lock.is_locked:
        raise ModelError(f"hmm_range_fault without the mmap_lock of {walk.mm.name}")
    sub = range_.notifier
    seq = range_.notifier_seq
    faulted: tuple[int, int, int] | None = None
    before_ns = kernel.current.time_ns
    while True:
        # mmu_interval_check_retry
        if sub.invalidate_seq != seq:
            raise KernelError(EBUSY, f"{range_.start:#x}-{range_.end:#x} was invalidated")
        if walk.walk():
            if kernel.observer is not None:
                tell(kernel.observer, "operation_ends", "hmm_range_fault", range_)
            return
        if walk.pending is not None:
            if walk.pending == faulted:
                # The fault has mended nothing: whoever keeps it from doing so has to come to it.
                kernel.retried()
                memory.refault(before_ns, in_kernel=True)
            faulted, before_ns = walk.pending, kernel.now_ns
            kernel.step()
            walk.do_fault()
            if not walk.locked:
                if kernel.current.fatal_signal_pending:
                    raise KernelError(EINTR, f"killed in a fault of {range_.start:#x}-{range_.end:#x}")
                raise KernelError(EBUSY, f"a fault of {range_.start:#x}-{range_.end:#x} gave mmap_lock up")


def hmm_range_fault_unlocked_timeout(memory: "MemoryManager", range_: HmmRange, timeout_ns: int) -> None:
    """Do the same taking mmap_lock, and again when invalidated, until `timeout_ns` (0: for ever) have passed.

    EBUSY EFAULT EPERM ENOMEM EINVAL EINTR. The time begins anew whenever a fault gave the lock up, as it may here.
    `range_.notifier_seq` is then what to give to mmu_interval_read_retry.
    """
    sub = range_.notifier
    assert isinstance(sub, MmuIntervalNotifier)
    mm = sub.mm
    kernel = memory.kernel
    lock = mm.mmap_lock
    deadline = kernel.current.time_ns + timeout_ns
    while True:
        range_.notifier_seq = mmu_interval_read_begin(memory, sub)
        if not lock.down_read_killable():
            raise KernelError(EINTR, f"killed while waiting for the mmap_lock of {mm.name}")
        walk = _Walk(memory, range_, unlockable=True)
        try:
            if mm.flags & MMF_UNSTABLE:
                raise KernelError(EFAULT, f"{mm.name} is being reaped")
            if timeout_ns and kernel.current.time_ns > deadline:
                raise KernelError(EBUSY, f"{range_.start:#x}-{range_.end:#x} was invalidated for {timeout_ns} ns")
            try:
                _range_fault_locked(memory, walk)
            except KernelError as error:
                if error.errno != EBUSY:
                    raise
            else:
                return
        finally:
            if walk.locked:
                lock.up_read()
        if not walk.locked:
            deadline = kernel.current.time_ns + timeout_ns
        kernel.retried(by_chance=True)
        kernel.cond_resched()
