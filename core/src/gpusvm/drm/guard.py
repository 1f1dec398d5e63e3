"""Stand between core and the ops of a driver that is being tried out, and look at each call from both sides.

C's compiler checks the prototypes of ops, and reviewers the rest. Here a kernel that names drivers' code
(`gpusvm.kernel.authors`) checks the parameters when the ops are handed over, and after each call what it returned,
which errno it raised and what it left undone.
"""

from collections.abc import Callable
from errno import EFAULT
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numpy as np

from gpusvm.drm.addr import PagemapAddrs, expand
from gpusvm.errors import KernelError, ModelError, errno_name
from gpusvm.kernel import Kernel
from gpusvm.mm.api import MemoryManagerApi, Pfns
from gpusvm.signatures import arity_problem, method_problem, optional_ops, protocol_methods

if TYPE_CHECKING:
    from gpusvm.kernel.authors import Authors

__all__ = ["guarded", "unguarded"]

_Ops = TypeVar("_Ops")

_RETURN_NOTHING: Final = frozenset(
    {"device_unmap", "populate_mm", "destroy", "copy_to_devmem", "copy_to_ram", "devmem_release", "invalidate"}
)
_ERRNOS: Final = {"device_map": {EFAULT}}
"""Of the ops whose callers tell errnos apart, and whose contract names all there are."""


def guarded(kernel: Kernel, ops: _Ops, protocol: type, memory: MemoryManagerApi) -> _Ops:
    """Return what stands for a driver's `ops`, which implement `protocol`; `ops` itself where nobody has to be told.

    Raises ModelError for an op that the ops lack, or that cannot be called as the protocol says.
    """
    authors = kernel.authors
    if authors is None or authors.of(type(ops)) is None:
        return ops
    key = (id(ops), protocol.__name__)
    if key not in authors.guards:
        authors.guards[key] = (ops, _Guard(authors, ops, protocol, memory))
    return cast("_Ops", authors.guards[key][1])


def unguarded(ops: _Ops) -> _Ops:
    """Return the driver's own object."""
    return cast("_Ops", ops._ops) if isinstance(ops, _Guard) else ops


class _Guard:
    """Be the ops, op by op; whatever else is asked of it the driver's own object answers."""

    def __init__(self, authors: "Authors", ops: object, protocol: type, memory: MemoryManagerApi) -> None:
        self._authors = authors
        self._ops = ops
        self._memory = memory
        for name, expected in protocol_methods(protocol):
            found = getattr(ops, name, None)
            if found is None:
                self._lacks(ops, protocol, name)
                continue
            self._fits(protocol, found, method_problem(found, expected, name=name))
            setattr(self, name, self._watched(name))
        for name, arguments in optional_ops(protocol):
            found = getattr(ops, name, None)
            if found is not None:
                self._fits(protocol, found, arity_problem(found, arguments, name=name, bound=True))
                setattr(self, name, self._watched(name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def _fits(self, protocol: type, found: Callable[..., Any], problem: str | None) -> None:
        if problem is not None:
            said = self._authors.says("signature", self._authors.of(found))
            raise ModelError(f"{type(self._ops).__name__}.{problem} ({protocol.__name__} of the contract){said}")

    def _lacks(self, ops: object, protocol: type, name: str) -> None:
        raise ModelError(
            f"{type(ops).__name__} has no {name} ({protocol.__name__} of the contract)"
            f"{self._authors.says('signature', self._authors.of(type(ops)))}"
        )

    def _watched(self, name: str) -> Callable[..., Any]:
        authors, ops = self._authors, self._ops
        after = {
            "populate_mm": self._after_populate,
            "device_map": self._after_map,
            "copy_to_devmem": self._after_copy,
            "copy_to_ram": self._after_copy,
            "populate_devmem_pfn": self._after_pfns,
        }.get(name)

        def called(*args: Any, **kwargs: Any) -> Any:
            op = getattr(ops, name)
            try:
                result = op(*args, **kwargs)
            except KernelError as error:
                allowed = _ERRNOS.get(name)
                if allowed is not None and error.errno not in allowed:
                    names = ", ".join(sorted(map(errno_name, allowed)))
                    said = authors.says("errno", authors.of(op))
                    raise ModelError(f"{name} fails with {error}; its contract knows {names}{said}") from error
                if name == "populate_mm":
                    authors.assert_consumed(authors.task)
                raise
            if result is not None and name in _RETURN_NOTHING:
                raise ModelError(
                    f"{name} returned {result!r}, which nobody looks at{authors.says('returned-value', authors.of(op))}"
                )
            if after is not None:
                after(op, result, *args)
            return result

        return called

    def _after_populate(self, op: Callable[..., Any], result: object, *args: Any) -> None:
        self._authors.assert_consumed(self._authors.task)

    def _after_pfns(self, op: Callable[..., Any], result: object, *args: Any) -> None:
        if not isinstance(result, np.ndarray | list | tuple):
            raise ModelError(
                f"populate_devmem_pfn returned {result!r}: expected the pfns of its pages"
                f"{self._authors.says('pages-named', self._authors.of(op))}"
            )

    def _after_map(self, op: Callable[..., Any], result: Any, dpagemap: Any, dev: Any, pfns: Pfns, *_: Any) -> None:
        rows = [len(each) for each in result] if isinstance(result, tuple) and len(result) == 2 else None
        if rows != [len(pfns)] * 2:
            got = f"arrays of {rows[0]} and {rows[1]}" if rows else f"{result!r}"
            raise ModelError(
                f"device_map was given {len(pfns)} rows and returned {got}: expected an address and a protocol for each"
                f"{self._authors.says('returned-value', self._authors.of(op))}"
            )

    def _after_copy(
        self, op: Callable[..., Any], result: object, device_pfns: Pfns, addrs: PagemapAddrs, fence: object
    ) -> None:
        contents = self._memory.contents
        if not len(addrs):
            return
        device = expand(device_pfns, addrs.order, addrs.npages)
        others = expand(addrs.pfns, addrs.order, addrs.npages)
        left = [contents.token(pfn) for pfn in device.tolist()]
        right = [contents.token(pfn) for pfn in others.tolist()]
        wrong = np.flatnonzero(np.array(left) != np.array(right))
        if len(wrong):
            name = getattr(op, "__name__", "the copy")
            i = int(wrong[0])
            raise ModelError(
                f"{name} returned, and {len(wrong)} of {addrs.npages} pages have not arrived: device page "
                f"{int(device[i]):#x} and page {int(others[i]):#x} differ"
                f"{self._authors.says('copy-done', self._authors.of(op))}"
            )
