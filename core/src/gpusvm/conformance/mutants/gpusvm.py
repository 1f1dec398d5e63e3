"""Bugs of drivers/gpu/drm/drm_gpusvm.c."""

from typing import Any, Final

from gpusvm.conformance.mutants.mutant import Mutant, Swap, gone, instead, never
from gpusvm.drm.pages import HMM_RANGE_DEFAULT_TIMEOUT_NS
from gpusvm.mm.api import HMM_PFN_ORDER_SHIFT

__all__ = ["GPUSVM"]


def _pages_mapped_late(guard: Any) -> Any:
    def pages_mapped(pages: Any, dpagemap: Any) -> None:
        dpagemap.get("gpusvm_pages")
        pages.dpagemap = dpagemap
        guard(pages, dpagemap)

    return pages_mapped


def _destroy_linked(guard: Any) -> Any:
    # What is linked was taken for what was reserved.
    def iova_destroy(dma: Any, state: Any) -> None:
        if state.linked_bytes == state.size_bytes:
            guard(dma, state)
        else:
            dma.unmap_pages(state.rows)

    return iova_destroy


def _whole_mapping(word: int, _left: int) -> int:
    return (word >> HMM_PFN_ORDER_SHIFT) & 0x1F


def _fixed_owner(gpusvm: Any, ctx: Any) -> object | None:
    # Whoever came first set it for all, as drm_gpusvm_init did.
    owner: object | None = gpusvm.__dict__.setdefault("device_private_page_owner", ctx.device_private_page_owner)
    return owner


GPUSVM: Final = (
    Mutant(
        id="GS-01",
        title="The error path of get_pages does not unmap what it mapped",
        where="drm_gpusvm.c:drm_gpusvm_get_pages",
        fix="556dba954739, 7.0",
        evidence="C",
        importance="S",
        oracle=("I-DMA",),
        scope="drm",
        drivers=("xe",),
        # __drm_gpusvm_unmap_pages goes by the published flag, which is not set before success.
        swaps=(Swap("gpusvm.drm.pages:err_unmap", gone),),
        needs_failure=True,
    ),
    Mutant(
        id="GS-03",
        title="The provider of device pages is recorded too late to unmap them",
        where="drm_gpusvm.c:drm_gpusvm_get_pages",
        fix="by 7.3.4",
        evidence="V",
        importance="S",
        oracle=("I-DMA", "I-REF"),
        scope="drm",
        drivers=("xe",),
        swaps=(
            Swap("gpusvm.drm.pages:meet_provider", gone),
            Swap("gpusvm.drm.pages:pages_mapped", _pages_mapped_late),
        ),
    ),
    Mutant(
        id="GS-04",
        title="Of a reservation of device addresses only what is linked is given back",
        where="drm_gpusvm.c:__drm_gpusvm_unmap_pages",
        fix="by 7.3.4",
        evidence="V",
        importance="A",
        oracle=("I-DMA",),
        scope="drm",
        drivers=("xe", "svmdev"),
        swaps=(Swap("gpusvm.drm.dma:DmaDevice.iova_destroy", _destroy_linked),),
        needs_failure=True,
    ),
    Mutant(
        id="GS-05",
        title="A large CPU page that the range covers in part is mapped whole",
        where="drm_gpusvm.c:drm_gpusvm_hmm_pfn_to_order",
        fix="c50729c68aaf, 6.18",
        evidence="C",
        importance="S",
        oracle=("I-BOUND",),
        scope="drm",
        drivers=("xe",),
        swaps=(
            Swap(
                "gpusvm.drm.pages:hmm_pfn_to_order",
                instead(_whole_mapping),
            ),
        ),
    ),
    Mutant(
        id="GS-06",
        title="Each retry of get_pages begins with a new budget of time",
        where="drm_gpusvm.c:drm_gpusvm_get_pages",
        fix="9fb1f1256e41, 6.19",
        evidence="T+V",
        importance="S",
        oracle=("I-PROG",),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.pages:time_left", instead(lambda *_: HMM_RANGE_DEFAULT_TIMEOUT_NS)),),
    ),
    Mutant(
        id="GS-08",
        title="The owner of device pages is fixed for a gpusvm, whoever asks",
        where="drm_gpusvm.c:drm_gpusvm_get_pages",
        fix="10aa5c80603, 6.18",
        evidence="C",
        importance="S",
        oracle=("I-RES",),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.pages:page_owner", instead(_fixed_owner)),),
    ),
    Mutant(
        id="GS-10",
        title="No timeslice: the CPU takes pages back before the GPU has got anything done",
        where="drm_pagemap.c:__drm_pagemap_migrate_to_ram",
        fix="8dc1812b5b3a",
        evidence="C",
        importance="S",
        oracle=("I-PROG",),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.cpu_fault:timeslice_lasts", never),),
    ),
    Mutant(
        id="GS-12",
        title="An address space stays held when range_evict has no memory for its array",
        where="drm_gpusvm.c:drm_gpusvm_range_evict",
        fix="847b371debf3, 7.2-rc",
        evidence="C",
        importance="A",
        oracle=("I-REF",),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.gpusvm:evict_without_memory", gone),),
        needs_failure=True,
    ),
    Mutant(
        id="GS-16",
        title="What HMM found is mapped though an invalidation came since",
        where="drm_gpusvm.c:drm_gpusvm_get_pages",
        fix="before it was merged",
        evidence="V",
        importance="B",
        oracle=("I-SEQ",),
        scope="drm",
        drivers=("xe",),
        swaps=(Swap("gpusvm.drm.pages:found_is_stale", never),),
    ),
)
