"""Look at a process's memory from outside: its contents, a core dump, failing hardware."""

from errno import EINVAL, ENXIO
from typing import Final

import numpy as np

from gpusvm.errors import KernelError, errno_name
from gpusvm.explore.operation import operation
from gpusvm.explore.permissions import READ_ONLY, READ_WRITE
from gpusvm.explore.place import Place
from gpusvm.explore.verdict import OutcomeError
from gpusvm.mm.gup import get_dump_page
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteKind

__all__ = ["compare", "core_dump", "memory_failure"]

_ZEROS: Final = -1  # for the contents
# Two sets, as members of different kinds may be equal.
_PTES: Final = frozenset({PteKind.PRESENT, PteKind.PRIVATE, PteKind.EXCLUSIVE})
_LEAVES: Final = frozenset({PmdKind.THP, PmdKind.PRIVATE})


@operation(by="machine")
def compare(at: Place, first: int, pages: int) -> None:
    """Compare what pages of private memory hold, wherever they are, with what was written last there.

    A page that is nowhere holds zeros. Nobody touches a page, so that it stays where it is, and takes no step.
    """
    for page in range(first, first + pages):
        at.memory.contents.read(at.mm, at.address(page) // at.world.page_size, _holder(at, page))


@operation(by="machine")
def core_dump(at: Place, first: int, pages: int) -> None:
    """Dump pages to a core file (get_dump_page). It has to find everything that was ever written and is mapped.

    A page that cannot be had for want of memory is a hole, too.
    """
    contents = at.memory.contents
    for page in range(first, first + pages):
        at.kernel.step()
        vpn = at.address(page) // at.world.page_size
        before = contents.expected(at.mm, vpn)
        found = get_dump_page(at.memory, at.mm, at.address(page))
        if found is not None:
            at.memory.folio_put(at.memory.folio_head(found))
            continue
        if len(at.kernel.injector.failed) > at.attempt.failures:
            continue
        mapped = at.actor.permissions.state(page) in {READ_ONLY, READ_WRITE}
        if mapped and before and contents.expected(at.mm, vpn) == before:
            raise OutcomeError(f"{at.attempt}: the core dump has a hole where page {page} holds what was written")


@operation(by="machine")
def memory_failure(at: Place, first: int, pages: int) -> None:
    """Let the memory of the pages that are on the device fail (memory_failure), wherever they go meanwhile.

    No driver here handles that, so that the answer is ENXIO for a page of device memory.
    """
    for page in range(first, first + pages):
        if not _on_device(at, page):
            continue
        entry = at.mm.page_table.entry(at.address(page))
        pfn = entry.pfn + (page & ((1 << at.world.scenario.pmd_order) - 1) if isinstance(entry, PmdLeaf) else 0)
        at.kernel.step()
        try:
            at.memory.memory_failure(pfn)
        except KernelError as error:
            if error.errno != ENXIO:
                got = errno_name(error.errno)
                raise OutcomeError(
                    f"{at.attempt}: the failure of device memory answered {got} ({error}); expected ENXIO"
                ) from None


def _holder(at: Place, page: int) -> int:
    """Return the pfn of the page that holds what a read of page `page` would find; -1 for zeros."""
    address = at.address(page)
    entry = at.mm.page_table.entry(address)
    if isinstance(entry, PmdLeaf):
        zeros, known = entry.kind is PmdKind.HUGE_ZERO, entry.kind in _LEAVES
        pfn = entry.pfn + (page & ((1 << at.world.scenario.pmd_order) - 1))
    else:
        vma = at.mm.vma_lookup(address)
        zeros = entry.zero or (entry.kind is PteKind.NONE and (vma is None or vma.is_anonymous))
        known, pfn = entry.kind in _PTES, entry.pfn
    if zeros:
        return _ZEROS
    if not known:
        raise at.refuse(EINVAL, f"only a read could tell what page {page} holds, {entry}")
    pgmap = at.memory.pages.zone(pfn).pgmap
    backing_of = None if pgmap is None else getattr(pgmap.ops, "backing_of", None)
    return pfn if backing_of is None else int(backing_of(np.array([pfn]))[0])


def _on_device(at: Place, page: int) -> bool:
    entry = at.mm.page_table.entry(at.address(page))
    return entry.kind is (PmdKind.PRIVATE if isinstance(entry, PmdLeaf) else PteKind.PRIVATE)
