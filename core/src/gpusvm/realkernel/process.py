"""Do what a recorded process does by itself: system calls, accesses of the CPU, forks, and looking at its pagemap."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from attrs import evolve

from gpusvm.driver.operations import Answer, PageWords
from gpusvm.errors import CpuSignal
from gpusvm.mm.api import MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE, VM_SHARED, Pfns
from gpusvm.mm.filemap import AddressSpace
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteTable
from gpusvm.mm.ramfs import RamfsFile
from gpusvm.realkernel.operations import PAGE, address

if TYPE_CHECKING:
    from gpusvm.mm import MemoryManager, MmStruct

__all__ = ["ProcessOperations"]

_PROT = {0: 0, 1: PROT_READ, 3: PROT_READ | PROT_WRITE}
_NO_CHILD = Answer(-9, payload="nochild")


class ProcessOperations:
    """Do the operations of `PROCESS_OPERATIONS` in one process.

    A page that is written gets one word, of which the model keeps no more than the version; `words` knows the words.
    `child` is the address space of the child that was forked to stay, if there is one.
    """

    def __init__(self, memory: "MemoryManager", mm: "MmStruct", words: PageWords) -> None:
        self.memory = memory
        self.mm = mm
        self.words = words
        self.child: MmStruct | None = None
        self._files: dict[int, AddressSpace] = {}

    def execute(self, name: str, numbers: Sequence[int]) -> Answer:
        """Do one operation. KernelError stands for an answer of -1."""
        answer: Answer = getattr(self, name)(*numbers)
        return answer

    def mmap(self, slot: int, page: int, n: int, prot: int, shared: int) -> Answer:
        self.mm.mmap(address(slot, page), n * PAGE, _PROT[prot], flags=VM_SHARED if shared else 0)
        return Answer()

    def munmap(self, slot: int, page: int, n: int) -> Answer:
        self.mm.munmap(address(slot, page), n * PAGE)
        return Answer()

    def mprot(self, slot: int, page: int, n: int, prot: int) -> Answer:
        self.mm.mprotect(address(slot, page), n * PAGE, _PROT[prot])
        return Answer()

    def madv(self, slot: int, page: int, n: int, advice: int) -> Answer:
        self.mm.madvise(address(slot, page), n * PAGE, advice)
        return Answer()

    def mremap(self, slot: int, page: int, n: int, new_slot: int, new_page: int) -> Answer:
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        self.mm.mremap(address(slot, page), n * PAGE, n * PAGE, flags=flags, new_addr=address(new_slot, new_page))
        return Answer()

    def w(self, slot: int, page: int, n: int, value: int) -> Answer:
        return self._write(self.mm, address(slot, page), n, value)

    def r(self, slot: int, page: int, n: int) -> Answer:
        return self._read(self.mm, address(slot, page), n)

    def fr(self, slot: int, page: int, n: int) -> Answer:
        child = self.mm.fork()
        try:
            answer = self._read(child, address(slot, page), n)
        finally:
            child.exit()
        # A child that a signal stops hands over nothing of what it read.
        return evolve(answer, payload=None) if answer.ret else answer

    def fw(self, slot: int, page: int, n: int, value: int) -> Answer:
        child = self.mm.fork()
        try:
            return self._write(child, address(slot, page), n, value)
        finally:
            child.exit()

    def pm(self, slot: int, page: int, n: int) -> Answer:
        """Look at /proc/self/pagemap: see `_residency`."""
        return self._pagemap(self.mm, address(slot, page), n)

    # --- files: 0 is an object of tmpfs, 1 a file of ramfs, both empty at first

    def mapf(self, slot: int, page: int, n: int, prot: int, shared: int, file: int, offset: int) -> Answer:
        flags = VM_SHARED if shared else 0
        at = address(slot, page)
        self.mm.mmap(at, n * PAGE, _PROT[prot], flags=flags, file=self._file(file), offset=offset * PAGE)
        return Answer()

    def ft(self, file: int, pages: int) -> Answer:
        """Give a file another length (ftruncate)."""
        self._file(file).truncate(pages)
        return Answer()

    def pr(self, file: int, offset: int, pages: int) -> Answer:
        """Read pages of a file, as far as there are some (pread)."""
        of = self._file(file)
        tokens = [of.pread(i) for i in range(offset, min(offset + pages, of.nr_pages))]
        return Answer(done=len(tokens), payload=self.words.of_tokens(tokens))

    def pw(self, file: int, offset: int, pages: int, value: int) -> Answer:
        """Write pages of a file, which grows where it has to (pwrite)."""
        of = self._file(file)
        for i in range(offset, offset + pages):
            of.extend(i + 1)
            self.words.wrote_versions([of.pwrite(i)], value + i - offset)
        return Answer(done=pages)

    def close_files(self) -> None:
        """Close what was opened, as the end of the process does."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, number: int) -> AddressSpace:
        if number not in self._files:
            self._files[number] = (
                RamfsFile(self.memory, "ramfs", 0) if number else self.memory.memfd_create(0, name="tmpfs")
            )
        return self._files[number]

    # --- a child that stays

    def kf(self) -> Answer:
        """Fork a child that stays, after the end of the one before."""
        self.ke()
        self.child = self.mm.fork()
        return Answer()

    def kr(self, slot: int, page: int, n: int) -> Answer:
        return _NO_CHILD if self.child is None else self._read(self.child, address(slot, page), n)

    def kw(self, slot: int, page: int, n: int, value: int) -> Answer:
        return _NO_CHILD if self.child is None else self._write(self.child, address(slot, page), n, value)

    def kp(self, slot: int, page: int, n: int) -> Answer:
        return _NO_CHILD if self.child is None else self._pagemap(self.child, address(slot, page), n)

    def ke(self) -> Answer:
        """Let the child end, if there is one."""
        if self.child is not None:
            self.child.exit()
            self.child = None
        return Answer()

    def warn(self) -> Answer:
        """Count what the kernel has warned of: nothing. Where Linux would warn, the model raises an error at once."""
        return Answer()

    def _write(self, mm: "MmStruct", start: int, n: int, value: int) -> Answer:
        if self.memory.kernel.explored:
            return self._one_by_one(mm, start, n, value)
        done, answer = self._access(mm, start, n, write=True)
        if done:
            self.words.wrote(self._pfns(mm, start, done), value)
        return answer

    def _one_by_one(self, mm: "MmStruct", start: int, n: int, value: int | None) -> Answer:
        """Access page by page, as another task may take a page away again; what is read is what was there then."""
        found: list[int] = []
        signal = 0
        for i in range(n):
            self.memory.kernel.step()
            try:
                if value is None:
                    found.append(self.memory.cpu_read(mm, start + i * PAGE))
                else:
                    token = self.memory.cpu_write(mm, start + i * PAGE)
                    self.words.wrote_versions([token], value + i)
                    found.append(token)
            except CpuSignal as raised:
                signal = raised.signal
                break
        payload = self.words.of_tokens(found) if value is None else None
        return Answer(-2 if signal else 0, signal, len(found), payload=payload)

    def _read(self, mm: "MmStruct", start: int, n: int) -> Answer:
        if self.memory.kernel.explored:
            return self._one_by_one(mm, start, n, None)
        done, answer = self._access(mm, start, n, write=False)
        return evolve(answer, payload=self.words.text(self._pfns(mm, start, done)))

    def _access(self, mm: "MmStruct", start: int, n: int, *, write: bool) -> tuple[int, Answer]:
        vpn = start // PAGE
        try:
            self.memory.cpu_access(mm, np.arange(vpn, vpn + n), np.full(n, write))
        except CpuSignal as signal:
            done = (signal.address - start) // PAGE
            return done, Answer(-2, signal.signal, done)
        return n, Answer(done=n)

    def _pfns(self, mm: "MmStruct", start: int, n: int) -> Pfns:
        """Return the pages that the CPU has just accessed."""
        found = np.empty(n, np.int64)
        page_table = mm.page_table
        inside = page_table.pmd_nr - 1
        for i in range(n):
            at = start + i * PAGE
            entry = page_table.lookup(at)
            assert entry is not None, f"{at:#x} is not mapped after an access"
            k = (at // PAGE) & inside
            found[i] = entry.m_pfn[k] if isinstance(entry, PteTable) else entry.pfn + k
        return found

    def _pagemap(self, mm: "MmStruct", start: int, n: int) -> Answer:
        return Answer(done=n, payload="".join(self._residency(mm, start + i * PAGE) for i in range(n)))

    def _residency(self, mm: "MmStruct", at: int) -> str:
        """Return the letter of one page (fs/proc/task_mmu.c:pagemap_read): n, P, X or S."""
        page_table = mm.page_table
        entry = page_table.lookup(at)
        if entry is None:
            return "n"
        if isinstance(entry, PmdLeaf):
            if entry.kind is PmdKind.HUGE_ZERO:
                return "P"
            if entry.kind is not PmdKind.THP:
                return "S"
            zone = self.memory.pages.zone(entry.pfn)
            return "X" if zone.m_mapcount[entry.pfn - zone.base] == 1 else "P"
        i = (at // PAGE) & (page_table.pmd_nr - 1)
        if not entry.used >> i & 1:
            return "n"
        if not entry.present >> i & 1:
            return "S"
        if entry.zero >> i & 1:
            return "P"
        return "X" if self._mapped_once(entry.m_pfn[i]) else "P"

    def _mapped_once(self, pfn: int) -> bool:
        """Tell whether a page is mapped in one place only (fs/proc/internal.h:folio_precise_page_mapcount)."""
        zone = self.memory.pages.zone(pfn)
        head = self.memory.pages.folio_head(pfn)
        if not zone.m_order[head - zone.base]:
            return bool(zone.m_mapcount[head - zone.base] == 1)
        found = zone.m_entire[head - zone.base]
        for vma, start, end in self.memory.rmap.places(head):
            first = vma.start + (zone.m_index[head - zone.base] - vma.pgoff) * PAGE
            at = first + (pfn - head) * PAGE
            table = vma.mm.page_table.lookup(at)
            if start <= at < end and isinstance(table, PteTable):
                i = (at // PAGE) & (vma.mm.page_table.pmd_nr - 1)
                mapped = (table.present & ~table.zero | table.private | table.devexcl) >> i & 1
                found += mapped and table.m_pfn[i] == pfn
        return bool(found == 1)
