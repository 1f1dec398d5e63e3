"""Bugs of drivers: xe, nouveau, test_hmm, and one of amdgpu's in the loop that nouveau and test_hmm share with it."""

from types import SimpleNamespace
from typing import Any, Final

from gpusvm.conformance.mutants.mutant import Mutant, Swap, gone, instead
from gpusvm.mm.api import MMU_NOTIFY_RELEASE

__all__ = ["DRIVERS"]


def _hold_while_told(guard: Any) -> Any:
    # Whoever is told of a change used to make sure first that the process has not ended.
    def invalidate(svms: Any, prange: Any, sub: Any, range_: Any, cur_seq: int) -> bool:
        if range_.event == MMU_NOTIFY_RELEASE or not prange.notifier.mm.mmget_not_zero():
            return True
        done: bool = guard(svms, prange, sub, range_, cur_seq)
        prange.notifier.mm.mmput()
        return done

    return invalidate


def _put_at_once(mm: Any) -> None:
    mm.mmput()


def _begin_once(window: Any) -> int:
    if not window.seq:
        window.seq = window.memory.mmu_interval_read_begin(window.notifier)
    seq: int = window.seq
    return seq


def _flush_only(garbage: Any) -> None:
    garbage.work.flush()


def _mapped_anywhere(vm: Any, range_: Any, _dpagemap: Any) -> bool:
    return bool(range_.bound == vm.driver.tile_mask)


def _always(garbage: Any) -> bool:
    return True


def _never_of_userptr(guard: Any) -> Any:
    # Who had pages of his own had the walk in one place, and their use in another.
    def found_is_stale(memory: Any, notifier: Any, hmm_range: Any) -> bool:
        return type(notifier.ops).__name__ != "XeUserptr" and bool(guard(memory, notifier, hmm_range))

    return found_is_stale


def _always_done(guard: Any) -> Any:
    def _copy_home(dmem: Any, *how: Any) -> Any:
        return guard(dmem, *how) or SimpleNamespace(through_ns=0, pages=0, rows=0)

    return _copy_home


DRIVERS: Final = (
    Mutant(
        id="XE-01",
        title="A buffer object is freed by a CPU fault while populate_mm has it locked",
        where="xe_svm.c:xe_drm_pagemap_populate_mm",
        fix="1d8c0557927e, 6.15-rc",
        evidence="C",
        importance="S",
        oracle=("I-LIFE",),
        scope="xe",
        drivers=("xe",),
        swaps=(
            Swap("gpusvm_xe.pagemap:XePagemap._hold", gone),
            Swap("gpusvm_xe.pagemap:XePagemap._drop", gone),
        ),
    ),
    Mutant(
        id="XE-02",
        title="The garbage collector is queued again after it was flushed, by a notifier, and outlives its VM",
        where="xe_svm.c:xe_svm_close",
        fix="bce7cd6db238, 7.0",
        evidence="C",
        importance="S",
        oracle=("I-LIFE",),
        scope="xe",
        drivers=("xe",),
        # Since the notifier asks whether the VM is closed, under a lock that closing takes, a flush would do: so the
        # mutant is without the question, too.
        swaps=(
            Swap("gpusvm_xe.garbage:GarbageCollector.stop", instead(_flush_only)),
            Swap("gpusvm_xe.garbage:GarbageCollector.wants", instead(_always)),
        ),
    ),
    Mutant(
        id="XE-04",
        title="A prefetch passes over what is mapped, wherever that is",
        where="xe_svm.c:xe_svm_range_validate",
        fix="2cfcea7a7457 and 7987b93e3a11, 6.18-rc; 7c0c19c076ff, 7.0",
        evidence="T+V",
        importance="A",
        oracle=("I-RES",),
        scope="xe",
        drivers=("xe",),
        swaps=(Swap("gpusvm_xe.prefetch:_is_there", instead(_mapped_anywhere)),),
    ),
    Mutant(
        id="XU-01",
        title="What the walk found for a userptr is mapped without the lock that invalidations take",
        where="xe_hmm.c:xe_hmm_userptr_populate_range",
        fix="0a98219bcc96; CVE-2025-21939",
        evidence="C",
        importance="S",
        oracle=("I-LIFE", "I-SEQ"),
        scope="xe",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.pages:found_is_stale", _never_of_userptr),),
    ),
    Mutant(
        id="XU-02",
        title="An invalidation of a userptr takes the device's entries back, and leaves its mapping for DMA",
        where="xe_vm.c:vma_userptr_invalidate",
        fix="333b89063361",
        evidence="C",
        importance="S",
        oracle=("I-PTE", "I-DMA"),
        scope="xe",
        drivers=("xe",),
        swaps=(Swap("gpusvm_xe.userptr:XeUserptr._unmap", gone),),
    ),
    Mutant(
        id="NV-01",
        title="A copy that failed is taken for done, and the process gets whatever the page held before",
        where="nouveau_dmem.c:nouveau_dmem_migrate_to_ram",
        fix="835745a377a4, 6.12; CVE-2024-50096",
        evidence="C",
        importance="S",
        oracle=("I-DATA",),
        scope="nouveau",
        drivers=("nouveau",),
        swaps=(Swap("gpusvm_nouveau.dmem:NouveauDmem._copy_home", _always_done),),
        needs_failure=True,
    ),
    Mutant(
        id="NV-04",
        title="The fault worker uses an address space that has been freed meanwhile",
        where="nouveau_svm.c:nouveau_svmm_fini",
        fix="b46ddaf08234",
        evidence="T+V",
        importance="S",
        oracle=("I-LIFE",),
        scope="nouveau",
        drivers=("nouveau",),
        swaps=(Swap("gpusvm_nouveau.svmm:NouveauSvmm._drain_faults", gone),),
    ),
    Mutant(
        id="NV-06",
        title="The device goes while processes have pages on it",
        where="nouveau_dmem.c:nouveau_dmem_fini",
        fix="6.1",
        evidence="T/C",
        importance="A",
        oracle=("I-LIFE", "I-DATA"),
        scope="nouveau",
        drivers=("nouveau",),
        swaps=(Swap("gpusvm_nouveau.dmem:NouveauDmem._evacuate", gone),),
    ),
    Mutant(
        id="KF-01",
        title="A notifier drops the last user of an address space, and takes down what it is in the middle of",
        where="kfd_svm.c:svm_range_cpu_invalidate_pagetables",
        fix="fa582c6f3684, and cf234231fcbc; CVE-2025-38520",
        evidence="C",
        importance="S",
        oracle=("I-LOCK", "I-LEAK"),
        scope="kfd",
        drivers=("kfd",),
        swaps=(Swap("gpusvm_kfd.svms:SvmRangeList.invalidate", _hold_while_told),),
    ),
    Mutant(
        id="KF-01b",
        title="An eviction drops the last user of an address space, with an object of it reserved",
        where="kfd_svm.c:svm_range_evict_svm_bo",
        fix="fa582c6f3684, and cf234231fcbc; CVE-2025-38520",
        evidence="C",
        importance="A",
        oracle=("I-LOCK",),
        scope="kfd",
        drivers=("kfd",),
        swaps=(Swap("gpusvm_kfd.evict:_put_user", instead(_put_at_once)),),
    ),
    Mutant(
        id="KF-05",
        title="The sequence is read before the retry loop, and stays what it was",
        where="amdgpu_hmm.c:amdgpu_hmm_range_get_pages",
        fix="ce3fb4b97163, 7.1.1",
        evidence="C",
        importance="S",
        oracle=("I-SEQ", "I-PROG"),
        scope="driver",
        drivers=("nouveau", "dmirror"),
        swaps=(Swap("gpusvm.driver.unit:NotifierWindow.begin", instead(_begin_once)),),
    ),
)
