"""A second model of memory, too simple to be wrong: what each page of each process holds and allows.

No struct pages, no page tables, no notifiers, no devices: an address space is a dict from page number to `Area` and a
dict from page number to what was written there. Every operation says what it must answer, an errno, a signal or the
values, and does to the dicts what the operation does to memory.

A value is whatever the writer says it wrote; 0 is what nobody has written yet.
"""

import errno
import signal

from attrs import define, field

READ, WRITE = 1, 2

Value = int


@define(eq=False)
class Object:
    """Be what shared mappings map: values by index."""

    values: dict[int, Value] = field(factory=dict)


@define(frozen=True)
class Area:
    """Say what one page allows, and of which object it is a page; None is private memory."""

    prot: int
    object: Object | None = None
    index: int = 0

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
        if area.object is None:
            return self.written.get(page, 0)
        return area.object.values.get(area.index, 0)

    def values(self, page: int, n: int) -> list[Value]:
        return [self.value(at) for at in range(page, page + n)]

    def write(self, page: int, value: Value) -> None:
        area = self.areas[page]
        if area.object is None:
            self.written[page] = value
        else:
            area.object.values[area.index] = value

    def before_first_bad(self, page: int, n: int, good: int) -> int:
        """Count the pages from `page` on that allow all of `good`, at most `n`."""
        for done in range(n):
            area = self.areas.get(page + done)
            if area is None or area.prot & good != good:
                return done
        return n

    # --- the memory calls; each returns 0 or the errno

    def mmap(self, page: int, n: int, prot: int, shared: Object | None, index: int = 0) -> int:
        self.munmap(page, n)
        for at in range(n):
            self.areas[page + at] = Area(prot, shared, index + at if shared is not None else 0)
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
            self.areas[at] = Area(prot, area.object, area.index)
        return 0

    # --- accesses of a CPU, page by page; the signal that ends them, or 0, and how many pages were done

    def touch(self, page: int, n: int, *, write: bool) -> tuple[int, int]:
        for done in range(n):
            area = self.areas.get(page + done)
            if area is None or not (area.writable() if write else area.readable()):
                return signal.SIGSEGV, done
        return 0, n

    # --- a device's commands: the errno, or 0, and how many pages are good

    def device_access(self, page: int, n: int, *, write: bool) -> tuple[int, int]:
        """Follow what hmm_range_fault and dmirror_fault answer; on an error some of the good pages may be done."""
        readable = self.before_first_bad(page, n, READ)
        if not write:
            return (0 if readable == n else errno.EFAULT), readable
        writable = self.before_first_bad(page, n, READ | WRITE)
        if writable == n:
            return 0, n
        return (errno.EFAULT if writable == readable else errno.EPERM), writable

    def device_migrate(self, page: int, n: int) -> tuple[int, int]:
        readable = self.before_first_bad(page, n, READ)
        return (0 if readable == n else errno.EINVAL), readable

    def device_exclusive(self, page: int, n: int) -> tuple[int, int]:
        for done in range(n):
            area = self.areas.get(page + done)
            if area is None or not area.writable():
                return errno.EFAULT, done
            if area.object is not None:
                return errno.EOPNOTSUPP, done
        return 0, n
