"""include/linux/kref.h and refcount.h, as of Linux 7.3.4: references, and the ledger that accounts for each of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from gpusvm.errors import LedgerError, ModelError, UseAfterFreeError
from gpusvm.kernel.poison import freed_class, peek

if TYPE_CHECKING:
    from gpusvm.kernel.core import Kernel


class Ledger:
    """Account for whatever has to be given back: references, DMA mappings, PM references.

    `kind` names the account ("bo", "pm", "dma", …), `holder` who took it: a short string or an object. A checked kernel
    keeps every holder apart, and refuses a put by someone who holds nothing; otherwise objects count by their class and
    a negative count shows at the end. Strings count as they are either way, so a hot path passes constants.
    """

    __slots__ = ("_accounts", "_checked")

    def __init__(self, *, checked: bool) -> None:
        self._checked = checked
        # (kind, key of the holder) -> [count, holder]; a dict keeps the order of first taking, which the report follows
        self._accounts: dict[tuple[str, Hashable], list[Any]] = {}

    def get(self, kind: str, holder: object, n: int = 1) -> None:
        if type(holder) is str:
            key: tuple[str, Hashable] = (kind, holder)
        else:
            key = (kind, id(holder) if self._checked else type(holder).__name__)
        account = self._accounts.get(key)
        if account is None:
            self._accounts[key] = [n, holder if self._checked or type(holder) is str else type(holder)]
        else:
            account[0] += n
            if account[0] == 0:  # a put came first, which only an unchecked kernel lets pass
                del self._accounts[key]

    def put(self, kind: str, holder: object, n: int = 1) -> None:
        """Give n back; raise LedgerError (checked) if `holder` does not have that many."""
        if type(holder) is str:
            key: tuple[str, Hashable] = (kind, holder)
        else:
            key = (kind, id(holder) if self._checked else type(holder).__name__)
        account = self._accounts.get(key)
        if account is None:
            if self._checked:
                raise LedgerError(f"ledger: {self._name(holder)} puts {n} {kind!r} and holds 0")
            self._accounts[key] = [-n, holder if type(holder) is str else type(holder)]
            return
        if self._checked and account[0] < n:
            raise LedgerError(f"ledger: {self._name(holder)} puts {n} {kind!r} and holds {account[0]}")
        account[0] -= n
        if account[0] == 0:
            del self._accounts[key]

    def count(self, kind: str) -> int:
        """Return how many of `kind` are out."""
        return sum(account[0] for key, account in self._accounts.items() if key[0] == kind)

    def entries(self) -> list[tuple[str, str, int]]:
        """Return ``(kind, holder, count)`` of everything that is out, in the order in which it was first taken."""
        return [(key[0], self._name(account[1]), account[0]) for key, account in self._accounts.items()]

    def assert_empty(self) -> None:
        """Raise LedgerError, a ModelError, that lists kind, holder and count of everything that was not given back."""
        if self._accounts:
            lines = [f"  {kind!r} held by {holder}: {count}" for kind, holder, count in self.entries()]
            raise LedgerError("\n".join(["ledger: not given back", *lines]))

    @staticmethod
    def _name(holder: object) -> str:
        if isinstance(holder, str):
            return repr(holder)
        if isinstance(holder, type):
            return holder.__name__
        cls = freed_class(type(holder)) or type(holder)
        try:
            name = peek(holder, "name")
        except (AttributeError, UseAfterFreeError):  # the second from a property that reads what is freed
            name = None
        return f"{cls.__name__} {name!r}" if isinstance(name, str) else cls.__name__


class Gauges:
    """Count living objects by kind: ``now[kind]`` and ``peak[kind]``, which has the kinds that there may be."""

    __slots__ = ("now", "peak")

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.peak: dict[str, int] = {}

    def declare(self, *kinds: str) -> None:
        """Say that there may be such objects: the peak is 0 then, until there is one."""
        for kind in kinds:
            self.peak.setdefault(kind, 0)

    def inc(self, kind: str, n: int = 1) -> None:
        count = self.now.get(kind, 0) + n
        self.now[kind] = count
        if count > self.peak.get(kind, 0):
            self.peak[kind] = count

    def dec(self, kind: str, n: int = 1) -> None:
        count = self.now.get(kind, 0) - n
        if count < 0:
            raise ModelError(f"gauge {kind!r} falls to {count}")
        self.now[kind] = count


class Kref:
    """Count references to one object and call `release` when the last goes (kref_get, kref_put, kref_get_unless_zero).

    Starts at 1, as kref_init. Every reference is in the ledger under `kind`, by its holder if one is given. Taking a
    reference of a dead object, or putting one too many, raises ModelError where refcount_t would saturate and warn.
    """

    __slots__ = ("_ledger", "_release", "count", "kind")

    def __init__(self, kernel: Kernel, kind: str, release: Callable[[], object], *, holder: object = "kref") -> None:
        self.kind = kind
        self.count = 1
        self._release = release
        self._ledger = kernel.ledger
        self._ledger.get(kind, holder)

    def get(self, holder: object = "kref", n: int = 1) -> None:
        if self.count <= 0:
            raise UseAfterFreeError(f"kref {self.kind!r}: a reference is taken after the last was put")
        self.count += n
        self._ledger.get(self.kind, holder, n)

    def get_unless_zero(self, holder: object = "kref") -> bool:
        """Take a reference unless the object is already dead; return whether it was taken."""
        if self.count <= 0:
            return False
        self.count += 1
        self._ledger.get(self.kind, holder)
        return True

    def put(self, holder: object = "kref", n: int = 1) -> bool:
        """Give a reference back; return True if it was the last, after `release` has run."""
        if self.count < n:
            raise ModelError(f"kref {self.kind!r}: {n} put, {self.count} left")
        self._ledger.put(self.kind, holder, n)
        self.count -= n
        if self.count:
            return False
        self._release()
        return True
