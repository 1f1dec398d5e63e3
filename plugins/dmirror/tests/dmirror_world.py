"""Processes and dmirror devices next to the second model: each step is done to both, and they have to agree.

A step is a name and small numbers, so that Hypothesis, a soak and a person can all make one, and a list of steps is a
replay. What must agree after every step: the answer (errno, signal, values read), what every page of every process
holds and allows, what every mirror table shows, and the invariants of the mm. At the end everything goes, and nothing
may be left.
"""

import errno
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from attrs import define, evolve, field, frozen
from gpusvm.check import Checker
from gpusvm.driver import read_spec
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.gpu import ATOMIC, STALE
from gpusvm.gpu import WRITE as MAPPED_WRITE
from gpusvm.kernel import Choices, Kernel
from gpusvm.mm import Geometry, MemoryManager, MmStruct
from gpusvm.mm.api import (
    FOLL_LONGTERM,
    FOLL_WRITE,
    MADV_COLLAPSE,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_NOHUGEPAGE,
    MADV_WIPEONFORK,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_SHARED,
)
from gpusvm.mm.contents import WRITER_BITS
from gpusvm.mm.page import GUP_PIN_COUNTING_BIAS
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteTable
from gpusvm_dmirror import HMM_DMIRROR_FLAG_FAIL_ALLOC, HmmDmirror
from gpusvm_dmirror.info import INFO
from second_model import READ, WRITE, Object, Process

PAGE = 4096
PAGES = 48
# 24 pages before a boundary of the PUDs of a geometry with 4 or 8 pages in a PMD, and inside one window of the mirror
# table.
BASE = (1 << 44) + (1 << 24) - 24 * PAGE
RAM_PAGES = 1024
FILE_PAGES = 24
SPM = 1 << 40  # physical address of what the coherent devices have
MOST_PROCESSES = 4
DEVICES = 4


@frozen(kw_only=True)
class Setting:
    """Choose the machine: pages in a PMD as a power of two, the THP policy, the quirks, pages of a fault window."""

    pmd_order: int = 3
    thp: str = "always"
    quirks: str = "fixed"
    window: int = 32
    check_every: int = 1
    """After how many steps the whole machine is checked; the rules that always hold are checked all the time."""


class Found(NamedTuple):
    """Say what a page table has for one page: the page that holds the data, or -1; `device` if it is device memory."""

    kind: str
    data: int = -1
    write: bool = False
    device: Any = None
    leaf: bool = False


NONE = Found("none")


class Disagreement(AssertionError):
    """Report that the two models, or a model and an invariant, disagree."""


@define(eq=False)
class Pair:
    """Be one process in both models: its address space, its open files by device, and what it must contain."""

    mm: MmStruct
    model: Process
    files: dict[int, Any] = field(factory=dict)
    # Pages that a file has made device-exclusive and that nothing has revoked for certain since.
    exclusive: dict[int, set[int]] = field(factory=dict)
    pins: list[tuple[int, int]] = field(factory=list)  # page and pfn


class World:
    """Hold both models; `step` does one step to both and compares."""

    def __init__(
        self, setting: Setting, *, mode: Literal["timed", "explored"] = "timed", choices: Choices | None = None
    ) -> None:
        self.setting = setting
        self.kernel = Kernel(mode=mode, choices=choices, checked=True)
        self.geometry = Geometry(pmd_order=setting.pmd_order)
        spec = read_spec("dmirror", {"dmirror": INFO}, quirks=setting.quirks)
        self.memory = MemoryManager(
            self.kernel,
            geometry=self.geometry,
            ram_pages=RAM_PAGES,
            thp=setting.thp,
            quirks=evolve(spec.mm_quirks, mm_q17="fixed"),  # as written it stops the machine
        )
        self.module = HmmDmirror(
            self.kernel,
            self.memory,
            spm_addr_dev0=SPM,
            spm_addr_dev1=SPM + (1 << 32),
            tunables=evolve(spec.tunables, chunk_bytes=2 << 20, fault_window_pages=setting.window),
            quirks=spec.quirks,
        )
        self.devices = self.module.devices
        self.files = [
            (self.memory.tmpfile(FILE_PAGES), Object(FILE_PAGES)),
            (self.memory.memfd_create(FILE_PAGES), Object(FILE_PAGES)),
        ]
        self.free_at_start = self.memory.pages.allocator.free_pages
        self.checker = Checker(self.memory).attach()
        self.pairs: list[Pair] = []
        self.names = 0
        self.steps = 0
        self.excused = False  # an allocation of the last command was made to fail
        self.spawn()

    # ---- the whole

    def step(self, name: str, **numbers: int) -> None:
        """Do one step to both models and compare everything."""
        self.steps += 1
        getattr(self, f"do_{name}")(**numbers)
        self.compare()

    def compare(self) -> None:
        """Compare everything that both models know, and check the invariants."""
        for pair in self.pairs:
            data = self._compare_memory(pair)
            for index, file in pair.files.items():
                self._compare_mirror(pair, index, file, data)
        for file, object in self.files:
            for index, pfn in file.pages.items():
                if self.memory.contents.token(pfn) != object.values.get(index, 0):
                    raise Disagreement(f"page {index} of {file} does not hold {object.values.get(index, 0):#x}")
        contents = self.memory.contents
        if contents.mismatch_count:
            raise Disagreement(f"{contents.mismatches[0]}")
        self.checker.flush()
        if self.steps % self.setting.check_every == 0:
            self.checker.check_quiescent(holders=self.holders())

    def holders(self) -> dict[int, int]:
        """Return the references of pins, by the folio's head."""
        pages = self.memory.pages
        held: dict[int, int] = {}
        for pair in self.pairs:
            for _, pfn in pair.pins:
                head = pages.folio_head(pfn)
                bias = 1 if pages.folio_order(head) else GUP_PIN_COUNTING_BIAS
                held[head] = held.get(head, 0) + bias
        return held

    def finish(self) -> None:
        """End every process, remove every device: no reference, page or device page may be left."""
        self.checker.check_quiescent(holders=self.holders())
        while self.pairs:
            self._exit(self.pairs[-1])
        for file, _ in self.files:
            file.close()
        for device in self.devices:
            if device.describe()["allocations"] or device.calloc < device.cfree:
                raise Disagreement(f"{device} has {device.describe()['allocations']} pages of nobody")
        self.module.unload()
        self.kernel.settle()
        self.kernel.ledger.assert_empty()
        left = self.free_at_start - self.memory.pages.allocator.free_pages
        huge_zero = 0 if self.memory._huge_zero_pfn is None else self.geometry.pmd_nr
        if left != huge_zero:
            raise Disagreement(f"{left - huge_zero} pages of RAM are lost")
        if self.memory.mms:
            raise Disagreement(f"{self.memory.mms} are still there")

    # ---- what is compared

    def _compare_memory(self, pair: Pair) -> dict[int, int]:
        """Compare what the page tables have; the page that holds the data of each page that is mapped."""
        model = pair.model
        areas, written = model.areas, model.written
        token = self.memory.contents.token
        data: dict[int, int] = {}
        for page, pfn, write in self._mapped(pair.mm):
            data[page] = pfn
            area = areas.get(page)
            if area is None:
                raise Disagreement(f"{model.name} maps page {page}, which is not mapped: {self._entry(pair.mm, page)}")
            if write and not area.prot & WRITE:
                raise Disagreement(f"{model.name} may write page {page}, which allows {area.prot}")
            wanted = written.get(page, 0) if area.object is None else model.value(page)
            holds = token(pfn)
            if holds != wanted and not self._tainted(pair, page, pfn):
                found = self._entry(pair.mm, page)
                raise Disagreement(f"page {page} of {model.name} holds {holds:#x}, not {wanted:#x}: {found}")
        if len(written) > len(data) or not written.keys() <= data.keys():
            for page, value in written.items():
                if value and page not in data and not self._tainted(pair, page, -1):
                    raise Disagreement(f"page {page} of {model.name} is gone, with {value:#x} in it")
        return data

    def _mapped(self, mm: MmStruct) -> Iterator[tuple[int, int, bool]]:
        """Yield each page that a page table has something for: page, the page that holds the data, writable."""
        order, nr = self.geometry.pmd_order, self.geometry.pmd_nr
        first = BASE // PAGE
        for block, entry in mm.page_table.entries.items():
            page = (block << order) - first
            if isinstance(entry, PmdLeaf):
                pfn = entry.pfn if entry.kind is not PmdKind.PRIVATE else self._backing(entry.pfn)
                for i in range(nr):
                    yield page + i, pfn + i, entry.write
                continue
            used, private, write = entry.used, entry.private, entry.write
            for i in range(nr):
                if used >> i & 1:
                    pfn = entry.m_pfn[i]
                    yield page + i, self._backing(pfn) if private >> i & 1 else pfn, bool(write >> i & 1)

    def _compare_mirror(self, pair: Pair, index: int, file: Any, data: dict[int, int]) -> None:
        """A mirror table shows what is in memory now, or nothing."""
        if not file.page_table.mapped_pages:
            return
        first = BASE // PAGE
        perms = file.page_table.perms(first, first + PAGES)
        pfns = file.page_table.pfns(first, first + PAGES).tolist()
        model = pair.model
        for page, perm in enumerate(perms.tolist()):
            if not perm:
                continue
            area = model.areas.get(page)
            who = f"device {index} of {model.name}"
            if area is None or not area.prot & READ:
                raise Disagreement(f"{who} maps page {page}, which allows {area}")
            if perm & MAPPED_WRITE and not area.prot & WRITE:
                raise Disagreement(f"{who} may write page {page}, which allows {area}")
            if perm & ATOMIC and page not in pair.exclusive.get(index, ()):
                raise Disagreement(f"{who} has page {page} as exclusive, which was revoked")
            # What the page holds was compared when the process was.
            if data.get(page) != pfns[page] and not perm & STALE:
                found = self._entry(pair.mm, page)
                raise Disagreement(f"{who} maps page {page} to {pfns[page]:#x}, but the process has {found}")

    def _tainted(self, pair: Pair, page: int, pfn: int) -> bool:
        """As written, a named quirk (MM-S1) may have spoilt a page; its address or the page itself says so."""
        contents = self.memory.contents
        return (pair.mm, BASE // PAGE + page) in contents.tainted_vpns or pfn in contents.tainted_pfns

    # ---- what the page tables have

    def _entry(self, mm: MmStruct, page: int) -> Found:
        at = BASE // PAGE + page
        entry = mm.page_table.entries.get(at >> self.geometry.pmd_order)
        i = at & (self.geometry.pmd_nr - 1)
        if entry is None:
            return NONE
        return self._leaf(entry, i) if isinstance(entry, PmdLeaf) else self._pte(entry, i)

    def _leaf(self, leaf: PmdLeaf, i: int) -> Found:
        if leaf.kind is PmdKind.PRIVATE:
            return self._private(leaf.pfn + i, leaf.write, leaf=True)
        return Found("present", leaf.pfn + i, leaf.write, self._coherent(leaf.pfn), True)

    def _pte(self, table: PteTable, i: int) -> Found:
        bit = 1 << i
        if not table.used & bit:
            return NONE
        pfn = table.m_pfn[i]
        if table.private & bit:
            return self._private(pfn, bool(table.write & bit))
        if table.devexcl & bit:
            return Found("exclusive", pfn, False, self._coherent(pfn))  # mprotect leaves it alone; the mirror loses it
        return Found("present", pfn, bool(table.write & bit), self._coherent(pfn))

    def _coherent(self, pfn: int) -> Any:
        """Return the device of a page that the CPU maps."""
        return None if pfn < self.memory.pages.ram_pages else self.memory.page_pgmap(pfn).owner

    def _private(self, pfn: int, write: bool, *, leaf: bool = False) -> Found:
        return Found("private", self._backing(pfn), write, self.memory.page_pgmap(pfn).owner, leaf)

    def _backing(self, pfn: int) -> int:
        """Return the page that holds the data of a device-private page."""
        backing: int = self.memory.zone_device_data(self.memory.folio_head(pfn)).of(pfn)
        return backing

    # ---- choosing

    def pair(self, p: int) -> Pair:
        return self.pairs[p % len(self.pairs)]

    def file(self, pair: Pair, dev: int) -> Any:
        """Return the process's open file of a device, opening it if need be."""
        if dev not in pair.files:
            pair.files[dev] = self.module.open(dev, pair.mm)
        return pair.files[dev]

    @staticmethod
    def at(page: int) -> int:
        return BASE + page * PAGE

    @staticmethod
    def cut(page: int, n: int) -> int:
        """Keep a range inside the pages that are looked at."""
        return min(n, PAGES - page)

    def expect(self, what: str, got: int, wanted: int) -> None:
        if got != wanted:
            raise Disagreement(f"{what}: errno {got}, not {wanted}")

    def fresh(self, value: int, before: int) -> bool:
        """Tell whether a value was written since `before`."""
        return value >> WRITER_BITS > before

    def armed(self) -> list[Any]:
        """Return the files whose next allocation is to fail."""
        return [file for pair in self.pairs for file in pair.files.values() if file.flags]

    def failed(self, armed: list[Any]) -> bool:
        """Tell whether an allocation failed since `armed`."""
        return any(not file.flags for file in armed)

    def answer(self, command: Any, *arguments: Any) -> tuple[Any, int]:
        """Do a command of a device; what it answers and the errno. An allocation that was to fail may be why."""
        armed = self.armed()
        try:
            done, got = command(*arguments), 0
        except KernelError as exc:
            done, got = None, exc.errno
        self.excused = bool(armed) and self.failed(armed)
        return done, got

    @property
    def version(self) -> int:
        return self.memory.contents._version

    # ---- processes

    def spawn(self) -> None:
        """Start a process with private memory wherever walks go."""
        self.names += 1
        name = f"p{self.names}"
        pair = Pair(self.memory.mm_alloc(name), Process(name))
        pair.mm.mmap(BASE, PAGES * PAGE, READ | WRITE)
        pair.model.mmap(0, PAGES, READ | WRITE, None)
        self.pairs.append(pair)

    def do_spawn(self) -> None:
        if len(self.pairs) < MOST_PROCESSES:
            self.spawn()

    def do_fork(self, p: int) -> None:
        pair = self.pair(p)
        if len(self.pairs) == MOST_PROCESSES:
            return
        self.names += 1
        name = f"p{self.names}"
        self.pairs.append(Pair(pair.mm.fork(name), pair.model.fork(name)))
        for pages in pair.exclusive.values():
            pages.difference_update([at for at in pages if at in pair.model.areas and not self._uncopied(pair, at)])

    def _uncopied(self, pair: Pair, page: int) -> bool:
        """Tell whether fork leaves the entry of a page alone."""
        area = pair.model.areas[page]
        return area.dont_fork or area.wipe_on_fork

    def do_exit(self, p: int) -> None:
        self._exit(self.pair(p))
        if not self.pairs:
            self.spawn()

    def _exit(self, pair: Pair) -> None:
        # do_exit: exit_mm first, exit_files after it.
        self.pairs.remove(pair)
        pair.mm.exit()
        for file in pair.files.values():
            file.close()
        self._unpin(pair)

    # ---- memory calls

    def do_mmap(self, p: int, page: int, n: int, prot: int) -> None:
        """Map private anonymous memory."""
        pair, n = self.pair(p), self.cut(page, n)
        pair.mm.mmap(self.at(page), n * PAGE, prot)
        pair.model.mmap(page, n, prot, None)
        self.revoke(pair, page, n)

    def do_mmap_shared(self, p: int, page: int, n: int, prot: int) -> None:
        """Map shared anonymous memory."""
        pair, n = self.pair(p), self.cut(page, n)
        pair.mm.mmap(self.at(page), n * PAGE, prot, flags=VM_SHARED)
        pair.model.mmap(page, n, prot, Object(n), shared=True)
        self.revoke(pair, page, n)

    def do_mmap_file(self, p: int, page: int, n: int, prot: int, f: int, index: int, shared: int) -> None:
        pair, n = self.pair(p), self.cut(page, n)
        file, object = self.files[f]
        flags = VM_SHARED if shared else 0
        pair.mm.mmap(self.at(page), n * PAGE, prot, flags=flags, file=file, offset=index * PAGE)
        pair.model.mmap(page, n, prot, object, index, shared=bool(shared))
        self.revoke(pair, page, n)

    def do_pread(self, f: int, index: int) -> None:
        file, object = self.files[f]
        if index < object.size:
            value = file.pread(index)
            if value != object.values.get(index, 0):
                raise Disagreement(f"{file} has {value:#x} in page {index}, not {object.values.get(index, 0):#x}")
        else:
            self.expect(f"pread {index} of {file}", self.error(file.pread, index), errno.EINVAL)

    def do_pwrite(self, f: int, index: int) -> None:
        file, object = self.files[f]
        if index < object.size:
            object.values[index] = file.pwrite(index)
        else:
            self.expect(f"pwrite {index} of {file}", self.error(file.pwrite, index), errno.EINVAL)

    def do_truncate(self, f: int, size: int) -> None:
        file, object = self.files[f]
        file.truncate(size)
        object.size = size
        object.values = {index: value for index, value in object.values.items() if index < size}
        for pair in self.pairs:
            for page in pair.model.truncate(object):
                self.revoke(pair, page, 1)

    def do_munmap(self, p: int, page: int, n: int) -> None:
        pair, n = self.pair(p), self.cut(page, n)
        pair.mm.munmap(self.at(page), n * PAGE)
        pair.model.munmap(page, n)
        self.revoke(pair, page, n)

    def do_mprotect(self, p: int, page: int, n: int, prot: int) -> None:
        pair, n = self.pair(p), self.cut(page, n)
        got = self.error(pair.mm.mprotect, self.at(page), n * PAGE, prot)
        self.expect(f"mprotect {page}+{n}", got, pair.model.mprotect(page, n, prot))

    def do_madvise(self, p: int, page: int, n: int, advice: str) -> None:
        pair, n = self.pair(p), self.cut(page, n)
        areas = [pair.model.areas.get(at) for at in range(page, page + n)]
        if advice == "collapse":
            # Whether it can is a matter of pages; what it may not do is change anything.
            if all(area is None or area.object is None for area in areas):
                got = self.error(pair.mm.madvise, self.at(page), n * PAGE, ADVICE[advice])
                if got not in {0, errno.EINVAL, errno.EAGAIN, errno.ENOMEM}:
                    raise Disagreement(f"madvise {page}+{n} collapse: errno {got}")
            return
        got = self.error(pair.mm.madvise, self.at(page), n * PAGE, ADVICE[advice])
        self.expect(f"madvise {page}+{n} {advice}", got, pair.model.madvise(page, n, advice))
        if advice in {"dont_need", "free"} and got != errno.EINVAL:
            self.revoke(pair, page, n)

    def do_move(self, p: int, page: int, n: int, to: int, leave: int) -> None:
        """Mremap to a place of the same size, with or without MREMAP_DONTUNMAP."""
        pair = self.pair(p)
        n = min(self.cut(page, n), self.cut(to, n))
        flags = MREMAP_MAYMOVE | MREMAP_FIXED | (MREMAP_DONTUNMAP if leave else 0)
        mapped = [at for at in range(page, page + n) if at in pair.model.areas]
        got = self.error(pair.mm.mremap, self.at(page), n * PAGE, n * PAGE, flags=flags, new_addr=self.at(to))
        self.expect(f"mremap {page}+{n} to {to}", got, pair.model.mremap_move(page, n, to, leave=bool(leave)))
        if not got:
            for at in mapped:
                self.revoke(pair, at, 1)
                self.revoke(pair, to + at - page, 1)

    def do_resize(self, p: int, page: int, n: int, new: int) -> None:
        """Mremap in place."""
        pair, n, new = self.pair(p), self.cut(page, n), self.cut(page, new)
        vma = self._vma(pair, page)
        got = self.error(pair.mm.mremap, self.at(page), n * PAGE, new * PAGE)
        self.expect(f"mremap {page}+{n} in place to {new}", got, pair.model.mremap_resize(page, n, new, vma=vma))
        if not got and new < n:
            self.revoke(pair, page + new, n - new)

    def do_move_and_resize(self, p: int, page: int, n: int, to: int, new: int) -> None:
        pair, n, new = self.pair(p), self.cut(page, n), self.cut(to, new)
        if n == new:
            return
        vma = self._vma(pair, page)
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        got = self.error(pair.mm.mremap, self.at(page), n * PAGE, new * PAGE, flags=flags, new_addr=self.at(to))
        wanted = pair.model.mremap_move_and_resize(page, n, new, to, vma=vma)
        self.expect(f"mremap {page}+{n} to {to}+{new}", got, wanted)
        if not got:
            self.revoke(pair, page, n)
            self.revoke(pair, to, new)

    def _vma(self, pair: Pair, page: int) -> int:
        """Count the pages from `page` to the end of its VMA."""
        vma = pair.mm.vma_lookup(self.at(page))
        return 0 if vma is None else (vma.end - self.at(page)) // PAGE

    # ---- pins

    def do_pin(self, p: int, page: int) -> None:
        """Pin one page of anonymous memory for a device that will write it, for long."""
        pair = self.pair(p)
        area = pair.model.areas.get(page)
        if area is not None and area.object is not None:
            return
        wanted = 0 if area is not None and area.writable() else errno.EFAULT
        before = self._entry(pair.mm, page)
        pfns, got = self.answer(self._pin, pair, page)
        if got == errno.ENOMEM and self.excused:
            return
        if got == errno.EBUSY and before.device is not None and self.memory.folio_order(before.data):
            return  # a large coherent folio cannot be moved for it
        self.expect(f"pin {page} of {pair.model.name}", got, wanted)
        if not got:
            pair.pins.append((page, int(pfns[0])))
            self.revoke(pair, page, 1)

    def _pin(self, pair: Pair, page: int) -> Any:
        return self.memory.pin_user_pages_fast(pair.mm, self.at(page), 1, flags=FOLL_WRITE | FOLL_LONGTERM)

    def do_dma(self, p: int) -> None:
        """Write through the pins of a process what is still where it was pinned."""
        pair = self.pair(p)
        for page, pfn in pair.pins:
            if page in pair.model.areas and self._entry(pair.mm, page).data == pfn:
                pair.model.write(page, self.memory.contents.write(pair.mm, BASE // PAGE + page, pfn))

    def do_unpin(self, p: int) -> None:
        self._unpin(self.pair(p))

    def _unpin(self, pair: Pair) -> None:
        self.memory.unpin_user_pages(np.array([pfn for _, pfn in pair.pins], np.int64))
        pair.pins.clear()

    # ---- the CPU

    def do_touch(self, p: int, page: int, n: int, write: int) -> None:
        """Touch pages one by one, reading what they hold."""
        pair, n = self.pair(p), self.cut(page, n)
        model = pair.model
        wanted, good = model.touch(page, n, write=bool(write))
        done = signal = 0
        access = self.memory.cpu_write if write else self.memory.cpu_read
        for at in range(page, page + n):
            try:
                value = access(pair.mm, self.at(at))
            except CpuSignal as exc:
                signal = exc.signal
                break
            done += 1
            if write:
                model.write(at, value)
            elif value != model.value(at) and not self._read_known(pair, at):
                raise Disagreement(f"{model.name} read {value:#x} in page {at}, not {model.value(at):#x}")
        if (signal, done) != (wanted, good):
            raise Disagreement(
                f"touch {page}+{n} of {model.name}: signal {signal} after {done}, not {wanted} after {good}"
            )
        self.revoke(pair, page, done)

    def do_burst(self, p: int, page: int, n: int, writes: int) -> None:
        """Touch pages in one batch; bit i of `writes` says that the access to page i is a write."""
        pair, n = self.pair(p), self.cut(page, n)
        model = pair.model
        is_write = [bool(writes >> i & 1) for i in range(n)]
        good = 0
        while good < n and not model.touch(page + good, 1, write=is_write[good])[0]:
            good += 1
        before = self.version
        first = BASE // PAGE + page
        done = n
        try:
            self.memory.cpu_access(pair.mm, np.arange(first, first + n), np.array(is_write))
        except CpuSignal as exc:
            done = (exc.address - self.at(page)) // PAGE
        if done != good:
            raise Disagreement(f"burst {page}+{n} of {model.name}: a signal after {done}, not after {good}")
        for at in range(good):
            if is_write[at]:
                self._take_over(pair, page + at, before, must=True)
        self.revoke(pair, page, good)

    def _take_over(self, pair: Pair, page: int, before: int, *, must: bool) -> bool:
        """Take from the contents what was written to a page since `before`."""
        value = self.memory.contents.expected(pair.mm, BASE // PAGE + page)
        if self.fresh(value, before):
            pair.model.write(page, value)
            return True
        if must:
            raise Disagreement(f"page {page} of {pair.model.name} was not written")
        return False

    def _read_known(self, pair: Pair, page: int) -> bool:
        found = self._entry(pair.mm, page)
        return self._tainted(pair, page, found.data)

    @staticmethod
    def error(function: Any, *arguments: Any, **options: Any) -> int:
        try:
            function(*arguments, **options)
        except KernelError as exc:
            return exc.errno
        return 0

    def revoke(self, pair: Pair, page: int, n: int, *, but: int = -1) -> None:
        """Note that these pages are device-exclusive no more."""
        for index, pages in pair.exclusive.items():
            if index != but:
                pages.difference_update(range(page, page + n))

    # ---- devices

    def do_device(self, p: int, dev: int, page: int, n: int, write: int) -> None:
        """READ or WRITE."""
        pair, n = self.pair(p), self.cut(page, n)
        file, model = self.file(pair, dev), pair.model
        wanted, good = model.device_access(page, n, write=bool(write))
        read_only = write and self.setting.quirks == "as_written" and self._own_read_only(pair, dev, page, n)
        before = self.version
        uncopied = self.uncopied(pair, page, n)
        done, got = self.answer(file.ioctl.write if write else file.ioctl.read, self.at(page), n)
        if got == errno.EFAULT and read_only:
            wanted = got  # MM-S2: an own page that is read-only
        if got == errno.ENOMEM and self.excused:
            wanted = got
        self.expect(f"device {dev} {'write' if write else 'read'} {page}+{n} of {model.name}", got, wanted)
        if got:
            if write:
                more = True
                for at in range(page, page + good):
                    fresh = self._take_over(pair, at, before, must=False)
                    if fresh and not more:
                        raise Disagreement(f"a device wrote page {at} of {model.name}, but not those before it")
                    more = fresh
                    if fresh:
                        self.revoke(pair, at, 1)
            self.take_copies(pair, uncopied)
            return
        values = done.tokens.tolist()
        if done.cpages != n or len(values) != n:
            raise Disagreement(f"device {dev} did {done.cpages} pages of {page}+{n}, and returned {len(values)}")
        for at, value in zip(range(page, page + n), values, strict=True):
            if write:
                if not self.fresh(value, before):
                    raise Disagreement(f"device {dev} wrote the old {value:#x} to page {at}")
                model.write(at, value)
            elif value != model.value(at) and not self._known_there(pair, file, at):
                raise Disagreement(f"device {dev} read {value:#x} in page {at}, not {model.value(at):#x}")
        self.revoke(pair, page, n, but=-1 if write else dev)

    def uncopied(self, pair: Pair, page: int, n: int) -> dict[int, int]:
        """Return the private pages that still show their file, with what they show."""
        model = pair.model
        found = {}
        for at in range(page, page + n):
            area = model.areas.get(at)
            if area is not None and area.object is not None and not area.shared and at not in model.written:
                found[at] = model.value(at)
        return found

    def take_copies(self, pair: Pair, uncopied: dict[int, int]) -> None:
        """Note which pages a write fault has copied although nothing was written: they follow their file no more."""
        for at, value in uncopied.items():
            found = self._entry(pair.mm, at)
            if found.data >= 0 and at not in pair.model.written and self._is_anonymous(found.data):
                holds = self.memory.contents.token(found.data)
                if holds not in {value, pair.model.value(at)}:
                    raise Disagreement(f"page {at} of {pair.model.name} was copied as {holds:#x}, not {value:#x}")
                pair.model.written[at] = holds

    def _is_anonymous(self, pfn: int) -> bool:
        zone = self.memory.pages.zone(pfn)
        return int(zone.m_mapping[pfn - zone.base - zone.m_head_off[pfn - zone.base]]) > 0

    def _own_read_only(self, pair: Pair, dev: int, page: int, n: int) -> bool:
        entries = [self._entry(pair.mm, at) for at in range(page, page + n)]
        return any(each.device is self.devices[dev] and not each.write for each in entries)

    def _known_there(self, pair: Pair, file: Any, page: int) -> bool:
        """As written, a device may read a wrong page: its entry is stale, or what is there is tainted."""
        at = BASE // PAGE + page
        perm = int(file.page_table.perms(at, at + 1)[0])
        pfn = int(file.page_table.pfns(at, at + 1)[0])
        return bool(perm & STALE) or self._tainted(pair, page, pfn)

    def do_to_device(self, p: int, dev: int, page: int, n: int) -> None:
        """MIGRATE_TO_DEV: it fails where pages cannot move, and nothing else may fail."""
        pair, n = self.pair(p), self.cut(page, n)
        file, model = self.file(pair, dev), pair.model
        wanted, good = model.device_migrate(page, n)
        # A coherent device has one chunk, of pages or of folios; of a chunk of folios no page can be had.
        device = self.devices[dev]
        room = not device.coherent or len(device.pool.free_pages) >= n
        movable = [room and self._movable(pair, at) for at in range(page, page + good)]
        # Where a pinned folio cannot be split, the rest of its block is skipped.
        for k, at in enumerate(range(page, page + good)):
            if not movable[k] and self._is_pinned_folio(pair, at):
                end = min(good, k + self.geometry.pmd_nr - (BASE // PAGE + at) % self.geometry.pmd_nr)
                movable[k:end] = [False] * (end - k)
        done, got = self.answer(file.ioctl.migrate_to_dev, self.at(page), n)
        # Where pages of two windows are mapped at one another's old place, the CLEAR of the second hits the first.
        if got == errno.ENOENT and (self.excused or not all(movable) or self._windows(pair, page, n) > 1):
            wanted = got
        self.expect(f"to device {dev} {page}+{n} of {model.name}", got, wanted)
        for at, moves in zip(range(page, page + good), movable, strict=True):
            found = self._entry(pair.mm, at)
            if moves and found.device is not self.devices[dev] and not self.excused:
                raise Disagreement(f"page {at} of {model.name} is not on device {dev}, but {found}")
        if got:
            return
        for at, value in zip(range(page, page + n), done.tokens.tolist(), strict=True):
            if value != model.value(at) and not self._known_there(pair, file, at):
                raise Disagreement(f"device {dev} read {value:#x} back in page {at}, not {model.value(at):#x}")

    def _windows(self, pair: Pair, page: int, n: int) -> int:
        """Count the pieces in which MIGRATE_TO_DEV moves a range."""
        count, at = 0, self.at(page)
        end = at + n * PAGE
        while at < end and (vma := pair.mm.vma_lookup(at)) is not None:
            at = min(end, at + self.geometry.pmd_size, vma.end)
            count += 1
        return count

    def _is_pinned_folio(self, pair: Pair, page: int) -> bool:
        pfn = self._entry(pair.mm, page).data
        if pfn < 0:
            return False
        head = self.memory.folio_head(pfn)
        return self.memory.folio_order(head) > 0 and self.memory.pages.folio_maybe_dma_pinned(head)

    def _movable(self, pair: Pair, page: int) -> bool:
        """Tell whether nothing can keep a page of private memory from a device: it is in system memory, or nowhere."""
        area = pair.model.areas[page]
        if area.object is not None and (area.shared or page not in pair.model.written):
            return False  # a page of the object, not a copy of it
        found = self._entry(pair.mm, page)
        if found.device is not None or found.kind not in {"none", "present"}:
            return False
        return found.data < 0 or not self.memory.pages.folio_maybe_dma_pinned(self.memory.folio_head(found.data))

    def _in_large_device_folio(self, pair: Pair, page: int) -> bool:
        found = self._entry(pair.mm, page)
        if found.device is None or found.data < 0 or found.leaf:
            return False
        return self.memory.folio_order(self.memory.folio_head(found.data)) > 0

    def do_to_system(self, p: int, dev: int, page: int, n: int) -> None:
        """MIGRATE_TO_SYS."""
        pair, n = self.pair(p), self.cut(page, n)
        file, model = self.file(pair, dev), pair.model
        wanted, good = model.device_migrate(page, n)
        device, fixed = self.devices[dev], self.setting.quirks == "fixed"
        there = [at for at in range(page, page + good) if self._there(pair, device, at)]
        done, got = self.answer(file.ioctl.migrate_to_sys, self.at(page), n)
        if got == errno.ENOMEM and self.excused:
            return
        self.expect(f"to system {page}+{n} of {model.name}", got, wanted)
        left = [at for at in there if self._there(pair, device, at)]
        if left and not self.excused:
            raise Disagreement(f"pages {left} of {model.name} are still on device {dev}")
        if got:
            return
        # A split maps the zero page where a page of a coherent folio is all zeros: such a page needs no move.
        zero = self.memory.zero_pfn
        gone = sum(at not in left and self._entry(pair.mm, at).data != zero for at in there)
        if done.cpages > gone or bool(done.cpages) != bool(gone) or (fixed and done.cpages != gone):
            raise Disagreement(f"{done.cpages} pages came home from device {dev}, where {gone} have gone")

    def _there(self, pair: Pair, device: Any, page: int) -> bool:
        """Tell whether a page is on a device and MIGRATE_TO_SYS takes it."""
        found = self._entry(pair.mm, page)
        if found.device is not device or found.kind == "exclusive":
            return False
        # Q8: as written a coherent block is no device memory for it.
        return not (found.leaf and found.kind == "present" and self.setting.quirks == "as_written")

    def do_exclusive(self, p: int, dev: int, page: int, n: int) -> None:
        """EXCLUSIVE, and CHECK_EXCLUSIVE of the same pages."""
        pair, n = self.pair(p), self.cut(page, n)
        file, model = self.file(pair, dev), pair.model
        wanted, good = model.device_exclusive(page, n)
        uncopied = self.uncopied(pair, page, n)
        # A page that comes home out of a large folio splits it, and CLEAR hits what lies before it in the block.
        split = any(self._in_large_device_folio(pair, at) for at in range(page + 1, page + n))
        done, got = self.answer(file.ioctl.exclusive, self.at(page), n)
        if (got == errno.ENOMEM and self.excused) or (got == errno.ENOENT and split):
            wanted = got
        self.expect(f"exclusive {page}+{n} of {model.name}", got, wanted)
        self.take_copies(pair, uncopied)
        self.revoke(pair, page, good, but=dev)
        pair.exclusive.setdefault(dev, set()).update(range(page, page + good))
        if got:
            return
        if done.tokens.tolist() != model.values(page, n) and not any(
            self._known_there(pair, file, at) for at in range(page, page + n)
        ):
            raise Disagreement(f"device {dev} read {done.tokens} back, not {model.values(page, n)}")
        for at in range(page, page + n):
            self.expect(f"check exclusive {at}", self.error(file.ioctl.check_exclusive, self.at(at), 1), errno.EPERM)

    def do_check_exclusive(self, p: int, dev: int, page: int, n: int) -> None:
        pair, n = self.pair(p), self.cut(page, n)
        file = self.file(pair, dev)
        got = self.error(file.ioctl.check_exclusive, self.at(page), n)
        possible = pair.exclusive.get(dev, set()) & set(range(page, page + n))
        if got not in {0, errno.EPERM} or (got and not possible):
            raise Disagreement(f"check exclusive {page}+{n} of {pair.model.name}: errno {got}, {possible} may be")

    def do_fail(self, p: int, dev: int) -> None:
        """Let the next allocation for a file fail (FLAGS)."""
        self.file(self.pair(p), dev).ioctl.flags(HMM_DMIRROR_FLAG_FAIL_ALLOC)

    def do_release(self, p: int, dev: int) -> None:
        """RELEASE: bring every page home and give the chunks back."""
        self.file(self.pair(p), dev).ioctl.release()
        if self.devices[dev].describe()["chunks"]:
            raise Disagreement(f"device {dev} still has {self.devices[dev].describe()}")

    def do_evict(self, dev: int) -> None:
        """Bring every page of a device home."""
        self.devices[dev].evict()
        self._gone_home(dev)

    def do_close(self, p: int, dev: int) -> None:
        """Close a file, which evicts its device for everybody."""
        pair = self.pair(p)
        file = pair.files.pop(dev, None)
        if file is not None:
            file.close()
            pair.exclusive.pop(dev, None)
            self._gone_home(dev)

    def _gone_home(self, dev: int) -> None:
        left = self.devices[dev].describe()["allocations"]
        if left:
            raise Disagreement(f"{left} pages are still on device {dev}")

    def do_snapshot(self, p: int, dev: int, page: int, n: int) -> None:
        """SNAPSHOT: what it says is what the page table has."""
        pair, n = self.pair(p), self.cut(page, n)
        file, model = self.file(pair, dev), pair.model
        for at, byte in zip(range(page, page + n), file.ioctl.snapshot(self.at(page), n), strict=True):
            area = model.areas.get(at)
            found = self._entry(pair.mm, at)
            wanted = self._snapshot_byte(area, found, dev)
            if byte & ~4 != wanted:
                raise Disagreement(f"snapshot of page {at} of {model.name} is {byte:#x}, not {wanted:#x}: {found}")

    def _snapshot_byte(self, area: Any, found: Found, dev: int) -> int:
        """Return what the page has to look like, the bit of a PMD mapping (4) left out."""
        if area is None or not area.prot & READ:
            return 0xFF & ~4
        if found.kind == "private" and found.device is not self.devices[dev]:
            return 0xFF & ~4 if found.leaf and self.setting.quirks == "as_written" else 0  # Q2
        if found.kind in {"none", "exclusive"}:
            return 0
        byte = 2 if found.write else 1
        if found.device is not None:
            coherent = 0x20 if found.kind == "present" else 0
            return byte | (0x20 if found.device is self.devices[dev] else 0x30) + coherent
        return byte | (0x10 if found.data == self.memory.zero_pfn else 0)


# What a step takes, and how often a random walk takes it. A number is drawn from [low, high], both included, or from a
# tuple of choices.
P, DEV, BOOL, PROT = (0, MOST_PROCESSES - 1), (0, DEVICES - 1), (0, 1), (0, 1, 3, 3, 3, 3)
# Any page, but the begin of a block more often than others; any number of them, but more often few, or whole blocks.
PAGE_NO = (*range(PAGES), *range(0, PAGES, 4), *range(0, PAGES, 8), *range(0, PAGES, 8))
N = (1, 1, 2, 2, 3, 4, 4, 5, 7, 8, 8, 12, 16)
AREA = (1, 4, 8, 13, 16, 24, 32)
ADVICE = {
    "dont_need": MADV_DONTNEED,
    "free": MADV_FREE,
    "collapse": MADV_COLLAPSE,
    "huge": MADV_HUGEPAGE,
    "no_huge": MADV_NOHUGEPAGE,
    "dont_fork": MADV_DONTFORK,
    "do_fork": MADV_DOFORK,
    "wipe_on_fork": MADV_WIPEONFORK,
    "keep_on_fork": MADV_KEEPONFORK,
}
ADVICES = (*ADVICE, "dont_need", "free", "huge", "huge", "collapse")
INDEX, FILE = (0, FILE_PAGES + 3), (0, 1)
STEPS: dict[str, tuple[int, dict[str, tuple[Any, ...]]]] = {
    "mmap": (6, {"p": P, "page": PAGE_NO, "n": AREA, "prot": PROT}),
    "mmap_shared": (1, {"p": P, "page": PAGE_NO, "n": AREA, "prot": PROT}),
    "mmap_file": (
        3,
        {"p": P, "page": PAGE_NO, "n": AREA, "prot": PROT, "f": FILE, "index": (0, FILE_PAGES), "shared": BOOL},
    ),
    "pread": (1, {"f": FILE, "index": INDEX}),
    "pwrite": (1, {"f": FILE, "index": INDEX}),
    "truncate": (1, {"f": FILE, "size": (0, FILE_PAGES)}),
    "munmap": (2, {"p": P, "page": PAGE_NO, "n": N}),
    "mprotect": (5, {"p": P, "page": PAGE_NO, "n": N, "prot": PROT}),
    "madvise": (6, {"p": P, "page": PAGE_NO, "n": N, "advice": ADVICES}),
    "move": (4, {"p": P, "page": PAGE_NO, "n": N, "to": PAGE_NO, "leave": BOOL}),
    "resize": (1, {"p": P, "page": PAGE_NO, "n": N, "new": N}),
    "move_and_resize": (1, {"p": P, "page": PAGE_NO, "n": N, "to": PAGE_NO, "new": N}),
    "touch": (10, {"p": P, "page": PAGE_NO, "n": N, "write": BOOL}),
    "burst": (4, {"p": P, "page": PAGE_NO, "n": N, "writes": (0, (1 << 16) - 1)}),
    "device": (10, {"p": P, "dev": DEV, "page": PAGE_NO, "n": N, "write": BOOL}),
    "to_device": (12, {"p": P, "dev": DEV, "page": PAGE_NO, "n": N}),
    "to_system": (3, {"p": P, "dev": DEV, "page": PAGE_NO, "n": N}),
    "exclusive": (4, {"p": P, "dev": DEV, "page": PAGE_NO, "n": (1, 4)}),
    "check_exclusive": (1, {"p": P, "dev": DEV, "page": PAGE_NO, "n": N}),
    "snapshot": (2, {"p": P, "dev": DEV, "page": PAGE_NO, "n": N}),
    "pin": (2, {"p": P, "page": PAGE_NO}),
    "dma": (1, {"p": P}),
    "unpin": (1, {"p": P}),
    "fail": (1, {"p": P, "dev": DEV}),
    "release": (1, {"p": P, "dev": DEV}),
    "evict": (1, {"dev": DEV}),
    "close": (1, {"p": P, "dev": DEV}),
    "fork": (3, {"p": P}),
    "spawn": (1, {}),
    "exit": (2, {"p": P}),
}
SETTINGS: dict[str, tuple[Any, ...]] = {
    "pmd_order": (2, 3),
    "thp": ("always", "madvise", "never"),
    "window": (32, 4),
}
