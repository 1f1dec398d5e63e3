"""A second model of memory, too simple to be wrong: what each page of each process holds and allows.

No struct pages, no page tables, no notifiers, no devices: an address space is a dict from page number to `Area` and a
dict from page number to what was written there. Every operation says what it must answer, an errno, a signal or the
values, and does to the dicts what the operation does to memory.

A value is whatever the writer says it wrote; 0 is what nobody has written yet.
"""

import errno
import signal

from attrs import define, evolve, field

READ, WRITE = 1, 2

Value = int


@define(eq=False)
class Object:
    """Be what mappings of a file, or shared ones, map: values by index, so many pages long."""

    size: int
    values: dict[int, Value] = field(factory=dict)


@define(frozen=True)
class Area:
    """Say what one page allows, and of which object it is a page, None for anonymous memory.

    A private page of an object shows it until it is written.
    """

    prot: int
    object: Object | None = None
    index: int = 0
    shared: bool = False
    dont_fork: bool = False
    wipe_on_fork: bool = False

    def behind_end(self) -> bool:
        """Tell whether the object ends before the page."""
        return self.object is not None and self.index >= self.object.size

    def readable(self) -> bool:
        """Tell whether a CPU may read: any access at all will do."""
        return self.prot != 0

    def writable(self) -> bool:
        return bool(self.prot & WRITE)


@define(eq=False)
class Process:
    """Hold one address space."""

    name: str
    areas: dict[int, Area] = field(factory=dict)
    written: dict[int, Value] = field(factory=dict)  # private pages that somebody wrote

    # --- what is there

    def value(self, page: int) -> Value:
        """Return what a read of a mapped page must find."""
        area = self.areas[page]
        if area.object is None or (not area.shared and page in self.written):
            return self.written.get(page, 0)
        return area.object.values.get(area.index, 0)

    def values(self, page: int, n: int) -> list[Value]:
        return [self.value(at) for at in range(page, page + n)]

    def write(self, page: int, value: Value) -> None:
        area = self.areas[page]
        if area.shared and area.object is not None:
            area.object.values[area.index] = value
        else:
            self.written[page] = value

    def before_first_bad(self, page: int, n: int, good: int) -> int:
        """Count the pages from `page` on that allow all of `good`, at most `n`."""
        for done in range(n):
            area = self.areas.get(page + done)
            if area is None or area.prot & good != good or area.behind_end():
                return done
        return n

    # --- the memory calls; each returns 0 or the errno

    def mmap(self, page: int, n: int, prot: int, object: Object | None, index: int = 0, *, shared: bool = False) -> int:
        self.munmap(page, n)
        for at in range(n):
            self.areas[page + at] = Area(prot, object, index + at if object is not None else 0, shared)
        return 0

    def munmap(self, page: int, n: int) -> int:
        for at in range(page, page + n):
            self.areas.pop(at, None)
            self.written.pop(at, None)
        return 0

    def mprotect(self, page: int, n: int, prot: int) -> int:
        """Change what lies before the first gap."""
        for at in range(page, page + n):
            area = self.areas.get(at)
            if area is None:
                return errno.ENOMEM
            self.areas[at] = evolve(area, prot=prot)
        return 0

    def madvise(self, page: int, n: int, advice: str) -> int:
        """Do all that can be done; a gap is told at the end, what cannot be advised at once."""
        gap = 0
        for at in range(page, page + n):
            area = self.areas.get(at)
            if area is None:
                gap = errno.ENOMEM
            elif advice in {"free", "wipe_on_fork"} and area.object is not None:
                return errno.EINVAL
            elif advice == "dont_need":
                self.written.pop(at, None)
            elif advice in {"dont_fork", "do_fork"}:
                self.areas[at] = evolve(area, dont_fork=advice == "dont_fork")
            elif advice in {"wipe_on_fork", "keep_on_fork"}:
                self.areas[at] = evolve(area, wipe_on_fork=advice == "wipe_on_fork")
        return gap

    def mremap_move(self, page: int, n: int, to: int, *, leave: bool) -> int:
        """Move what is mapped, gaps kept; `leave` the old place mapped, with nothing in it (MREMAP_DONTUNMAP)."""
        if page + n > to and to + n > page:
            return errno.EINVAL
        if page not in self.areas:
            return errno.EFAULT
        for at in range(page, page + n):
            if at in self.areas:
                self._move(at, to + at - page, leave=leave)
        return 0

    def mremap_resize(self, page: int, old: int, new: int, *, vma: int) -> int:
        """Resize in place; `vma` pages from `page` on are one VMA, which is the only thing taken from elsewhere."""
        if page not in self.areas:
            return errno.EFAULT
        if new <= old:
            return self.munmap(page + new, old - new)
        if old > vma:
            return errno.EFAULT
        if old < vma or any(at in self.areas for at in range(page + old, page + new)):
            return errno.ENOMEM
        self._grow(page + old - 1, new - old)
        return 0

    def mremap_move_and_resize(self, page: int, old: int, new: int, to: int, *, vma: int) -> int:
        if page + old > to and to + new > page:
            return errno.EINVAL
        if page not in self.areas or min(old, new) > vma:
            return errno.EFAULT
        self.munmap(to, new)
        if new < old:
            self.munmap(page + new, old - new)
        for at in range(min(old, new)):
            self._move(page + at, to + at, leave=False)
        if new > old:
            self._grow(to + old - 1, new - old)
        return 0

    def _move(self, page: int, to: int, *, leave: bool) -> None:
        self.munmap(to, 1)
        self.areas[to] = self.areas[page] if leave else self.areas.pop(page)
        if page in self.written:
            self.written[to] = self.written.pop(page)

    def _grow(self, last: int, n: int) -> None:
        area = self.areas[last]
        for more in range(1, n + 1):
            self.areas[last + more] = evolve(area, index=area.index + more if area.object is not None else 0)

    def truncate(self, object: Object) -> list[int]:
        """Lose the private pages behind the new end of an object; which."""
        lost = [page for page in self.written if self.areas[page].object is object and self.areas[page].behind_end()]
        for page in lost:
            del self.written[page]
        return lost

    def fork(self, name: str) -> "Process":
        """Return the child: a copy of private memory, the same objects."""
        areas = {page: area for page, area in self.areas.items() if not area.dont_fork}
        written = {
            page: value for page, value in self.written.items() if page in areas and not areas[page].wipe_on_fork
        }
        return Process(name, areas, written)

    # --- accesses of a CPU, page by page; the signal that ends them, or 0, and how many pages were done

    def touch(self, page: int, n: int, *, write: bool) -> tuple[int, int]:
        for done in range(n):
            area = self.areas.get(page + done)
            if area is None or not (area.writable() if write else area.readable()):
                return signal.SIGSEGV, done
            if area.behind_end():
                return signal.SIGBUS, done
        return 0, n

    # --- a device's commands: the errno, or 0, and how many pages are good

    def device_access(self, page: int, n: int, *, write: bool) -> tuple[int, int]:
        """Follow what hmm_range_fault and dmirror_fault answer; on an error some of the good pages may be done."""
        good = self.before_first_bad(page, n, READ | WRITE if write else READ)
        if good == n:
            return 0, n
        area = self.areas.get(page + good)
        if write and area is not None and area.prot & (READ | WRITE) == READ:
            return errno.EPERM, good
        return errno.EFAULT, good

    def device_migrate(self, page: int, n: int) -> tuple[int, int]:
        for done in range(n):
            area = self.areas.get(page + done)
            if area is None or not area.prot & READ:
                return errno.EINVAL, done
        return 0, n

    def device_exclusive(self, page: int, n: int) -> tuple[int, int]:
        for done in range(n):
            area = self.areas.get(page + done)
            if area is None or not area.writable() or area.behind_end():
                return errno.EFAULT, done
            if area.shared:
                return errno.EOPNOTSUPP, done
        return 0, n
