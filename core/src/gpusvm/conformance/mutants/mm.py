"""Bugs of mm/, in the parts that device memory and its notifiers stand on."""

from typing import Any, Final

from gpusvm.conformance.mutants.mutant import Mutant, Swap, gone, instead

__all__ = ["MM"]


def _spin(memory: Any, head: int) -> bool:
    if not memory.pages.folio_trylock(head):
        return False
    memory.pages.folio_get(head)
    return True


def _reference_first(memory: Any, head: int) -> bool:
    memory.pages.folio_get(head)
    memory.pages.folio_lock(head)
    return True


def _without_fault_page(guard: Any) -> Any:
    # Before struct migrate_vma had a fault_page, nobody could know of a reference of the fault's.
    def migrate_vma_setup(memory: Any, args: Any) -> None:
        args.fault_page = None
        guard(memory, args)

    return migrate_vma_setup


def _without_fault_reference(guard: Any) -> Any:
    def folio_migrate_mapping(memory: Any, src: int, dst: int, _is_fault: bool) -> int:
        error: int = guard(memory, src, dst, False)
        return error

    return folio_migrate_mapping


def _none_but_private(guard: Any) -> Any:
    def may_fault_in(table: Any, i: int) -> bool:
        return bool(guard(table, i)) and not table.private >> i & 1

    return may_fault_in


def _seen_half_done(guard: Any) -> Any:
    # Who waits for the sequence reads it without the lock, and so also between the two halves of the section.
    def do_deferred(memory: Any, subs: Any) -> None:
        if any(sub.in_tree for sub in subs.deferred_list):
            memory.kernel.step()
        guard(memory, subs)

    return do_deferred


MM: Final = (
    Mutant(
        id="MM-01",
        title="A CPU spins for the lock of a device page, on the CPU that the lock's owner waits for",
        where="memory.c:do_swap_page",
        fix="b570f37a2ce4, 7.0-rc1",
        evidence="C",
        importance="S",
        oracle=("I-PROG",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(Swap("gpusvm.mm.memory:lock_device_page", instead(_spin)),),
    ),
    Mutant(
        id="MM-02",
        title="Every CPU that touches a device page takes a reference first, and none of them can migrate it",
        where="memory.c:do_swap_page",
        fix="1afaeb8293c9, 6.15",
        evidence="C",
        importance="S",
        oracle=("I-PROG",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(Swap("gpusvm.mm.memory:lock_device_page", instead(_reference_first)),),
    ),
    Mutant(
        id="MM-03",
        title="The driver is called for a device page on which nobody has a reference",
        where="memory.c:do_swap_page",
        fix="16ce101db85d, 6.1",
        evidence="R/C",
        importance="S",
        oracle=("I-LIFE",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(
            Swap("gpusvm.mm.memory:hold_fault_page", instead(lambda *_: True)),
            Swap("gpusvm.mm.memory:release_fault_page", gone),
            Swap("gpusvm.mm.memory_manager:MemoryManager.migrate_vma_setup", _without_fault_page),
        ),
    ),
    Mutant(
        id="MM-03b",
        title="The reference of the fault itself counts as somebody else's, so that no fault migrates",
        where="migrate_device.c:__migrate_device_pages",
        fix="16ce101db85d, 6.1",
        evidence="R/C",
        importance="S",
        oracle=("I-PROG",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(Swap("gpusvm.mm.migrate_device:folio_migrate_mapping", _without_fault_reference),),
    ),
    Mutant(
        id="MM-09",
        title="HMM refuses device pages of another owner, where it should have them brought home",
        where="hmm.c:hmm_vma_handle_pte",
        fix="8a295dbbaf72, 5.19 and 5.18.16",
        evidence="C",
        importance="A",
        oracle=("I-ERRNO",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(Swap("gpusvm.mm.hmm:may_fault_in", _none_but_private),),
    ),
    Mutant(
        id="MM-10",
        title="An interval notifier is given free before it has left the tree",
        where="mmu_notifier.c:mmu_interval_notifier_remove",
        fix="319561669a59, 5.18",
        evidence="C",
        importance="S",
        oracle=("I-LIFE",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(Swap("gpusvm.mm.mmu_notifier:do_deferred", _seen_half_done),),
    ),
    Mutant(
        id="MM-12",
        title="A collapse changes entries and tells no notifier",
        where="khugepaged.c:collapse_huge_page",
        fix="CVE-2022-48991",
        evidence="C",
        importance="A",
        oracle=("I-PTE",),
        scope="mm",
        drivers=("xe", "nouveau", "dmirror"),
        swaps=(Swap("gpusvm.mm.khugepaged:notifier_start", gone),),
    ),
)
