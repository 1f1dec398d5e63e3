"""One mistake of each kind: with entries, sequences, contents, answers, locks, references."""

from collections.abc import Callable
from typing import Any, Final

from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, gone, instead
from gpusvm.gpu import WRITE

__all__ = ["KINDS"]


def _commit_anyway(window: Any, write: Callable[[], None]) -> bool:
    with window.lock:
        write()
    return True


def _bind_one_more(guard: Any) -> Any:
    def bind(pt: Any, range_: Any, tile: Any, vma: Any) -> None:
        guard(pt, range_, tile, vma)
        last = (range_.end >> pt.page_shift) - 1
        root = pt.roots[tile.index]
        root.map_run(last + 1, int(range_.pages.dma_addr.page_pfns()[-1]), 1, int(root.perms(last, last + 1)[0]))

    return bind


def _lock_the_mm(guard: Any) -> Any:
    def invalidate(file: Any, gpusvm: Any, notifier: Any, mmu_range: Any) -> None:
        with file.mm.mmap_lock.read():
            guard(file, gpusvm, notifier, mmu_range)

    return invalidate


def _all_is_well(guard: Any) -> Any:
    def respond(pipeline: Any, job: Any, _answer: int) -> None:
        guard(pipeline, job, 0)

    return respond


def _always_writable(guard: Any) -> Any:
    def map_leaf(vmm: Any, vpn: int, pfn: int, pages: int, perm: int) -> None:
        guard(vmm, vpn, pfn, pages, perm | WRITE)

    return map_leaf


def _without_sequence(_notifier: Any, _sub: Any, _range: Any, _cur_seq: int) -> bool:
    return True


def _unlocked_and_not_evicted(_manager: Any, bo: Any) -> bool:
    bo.resv.unlock()
    return False


KINDS: Final = (
    BrokenDriver(
        id="no-recheck",
        rule="it writes entries without asking whether anything was invalidated since it looked",
        driver="nouveau",
        swaps=(Swap("gpusvm.driver.unit:NotifierWindow.commit", instead(_commit_anyway)),),
    ),
    BrokenDriver(
        id="no-sequence",
        rule="it does not take the sequence of an invalidation (mmu_interval_set_seq)",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.svmm:SvmNotifier.invalidate", instead(_without_sequence)),),
    ),
    BrokenDriver(
        id="no-unmap",
        rule="it keeps its entries when core invalidates what is behind them",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.svmm:NouveauSvmm.invalidate_range", gone),),
    ),
    BrokenDriver(
        id="past-the-range",
        rule="it maps a page more than the range has",
        driver="xe",
        swaps=(Swap("gpusvm_xe.pt:XePt.bind", _bind_one_more),),
    ),
    BrokenDriver(
        id="writes-read-only",
        rule="it maps everything for writing, what the process may only read too",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.vmm:Vmm.map_leaf", _always_writable),),
    ),
    BrokenDriver(
        id="all-is-well",
        rule="it acknowledges faults that it has not served",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:NouveauPipeline.respond", _all_is_well),),
    ),
    BrokenDriver(
        id="locks-in-invalidate",
        rule="it takes mmap_lock in invalidate",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.file:SvmdevFile.invalidate", _lock_the_mm),),
    ),
    BrokenDriver(
        id="devmem-leaked",
        rule="it does not take an allocation back whose last page is gone (devmem_release)",
        driver="xe",
        swaps=(Swap("gpusvm_xe.bo:XeVram.release", gone),),
    ),
    BrokenDriver(
        id="pm-put-forgotten",
        rule="it keeps the device awake for pages that are gone",
        driver="xe",
        swaps=(Swap("gpusvm_xe.pm:XeRuntimePm.pages_gone", gone),),
    ),
    BrokenDriver(
        id="pm-get-forgotten",
        rule="it lets the device fall asleep with pages in its memory",
        driver="xe",
        swaps=(
            Swap("gpusvm_xe.pm:XeRuntimePm.pages_present", gone),
            Swap("gpusvm_xe.pm:XeRuntimePm.pages_gone", gone),
        ),
    ),
    BrokenDriver(
        id="populates-nothing",
        rule="it says that it has populated, and has not",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.device:Svmdev.populate_mm", gone),),
    ),
    BrokenDriver(
        id="copies-nothing",
        rule="it brings pages home without what they hold",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.memory:SvmdevMemory.copy_to_ram", gone),),
    ),
    BrokenDriver(
        id="never-evicts",
        rule="it makes no room in memory that is full",
        driver="xe",
        swaps=(Swap("gpusvm.drm.bo:BoManager._evict_locked", instead(_unlocked_and_not_evicted)),),
    ),
)
