"""Bugs of drivers: xe, nouveau, test_hmm, and one of amdgpu's in the loop that nouveau and test_hmm share with it."""

from typing import Any, Final

from gpusvm.conformance.mutants.mutant import Mutant, Swap, gone, instead

__all__ = ["DRIVERS"]


def _begin_once(window: Any) -> int:
    if not window.seq:
        window.seq = window.memory.mmu_interval_read_begin(window.notifier)
    seq: int = window.seq
    return seq


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
