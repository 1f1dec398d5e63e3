"""Look at a process's memory from outside: a core dump, failing hardware."""

from errno import ENXIO

from gpusvm.errors import KernelError, errno_name
from gpusvm.explore.operation import operation
from gpusvm.explore.permissions import READ_ONLY, READ_WRITE
from gpusvm.explore.place import Place
from gpusvm.explore.verdict import OutcomeError
from gpusvm.mm.gup import get_dump_page
from gpusvm.mm.pgtable import PmdKind, PmdLeaf, PteKind

__all__ = ["core_dump", "memory_failure"]


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


def _on_device(at: Place, page: int) -> bool:
    return at.mm.page_table.entry(at.address(page)).kind in {PteKind.PRIVATE, PmdKind.PRIVATE}
