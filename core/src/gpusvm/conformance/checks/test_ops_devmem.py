"""What core asks of a driver before device memory is filled, and what is never begun (drm_pagemap_devmem_ops)."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.conformance.areas import AREAS, written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.ops import OpCall, watched_ops
from gpusvm.conformance.ops_scenes import (
    KINDS,
    answer_of,
    assert_released,
    devmem_of,
    evicted,
    on_device,
    pagemap_of,
    references,
)
from gpusvm.conformance.scene import pinned
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.mm.api import PROT_READ

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_MIGRATE: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem"
_EVICT: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram"
_NEEDS: Final = ("drm_pagemap",)


@family(
    "ops.populate-devmem-pfn.asked.{kind}",
    every(kind=KINDS),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_MIGRATE,
)
def test_asked(lab: Lab, kind: str) -> None:
    """For a block of {kind} memory core asks once for its device pages, before any copy, mmap_lock held for reading."""
    with watched_ops() as log:
        bench = small(lab)
        on_device(bench, kind)
        call = log.one("populate_devmem_pfn")
    devmem, npages = call.args
    assert (devmem, npages) == (devmem_of(log), BLOCK_PAGES)
    assert devmem.dpagemap is pagemap_of(bench)
    assert call.is_within("populate_mm"), "it was not asked for by populate_mm"
    assert "mmap_lock" in call.held, "mmap_lock is not held"
    assert "mmap_lock" not in call.written, "mmap_lock is held for writing"
    assert not call.atomic, "it is asked in atomic context, and may sleep"
    first = log.some("copy_to_devmem")[0]
    assert call.at < first.at, "the copy comes before its target is known"


@family(
    "ops.populate-devmem-pfn.named.{kind}",
    every(kind=("small", "huge")),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_MIGRATE,
)
def test_named(lab: Lab, kind: str) -> None:
    """The pages that a driver names for {kind} memory are its own, different, free, and whole for a whole folio."""
    with watched_ops() as log:
        bench = small(lab)
        pagemap = pagemap_of(bench).pagemap
        other = on_device(bench)  # pages that are in use

        @log.after("populate_devmem_pfn")
        def free(call: OpCall) -> str | None:
            used = [pfn for pfn in call.result.tolist() if references(bench, pfn)]
            return f"page {used[0]:#x} is in use" if used else None

        on_device(bench, kind)
        pfns = log.some("populate_devmem_pfn")[-1].result
    assert len(pfns) == BLOCK_PAGES, f"{len(pfns)} pages were named for {BLOCK_PAGES}"
    assert len(set(pfns.tolist())) == BLOCK_PAGES, "a page is named twice"
    first, last = pagemap.start_pfn, pagemap.start_pfn + pagemap.nr_pages - 1
    assert first <= pfns.min(), f"{pfns.min():#x} is below the pagemap"
    assert pfns.max() <= last, f"{pfns.max():#x} is above the pagemap"
    assert kind != "huge" or (np.diff(pfns) == 1).all(), "the pages of a large folio are not consecutive"
    bench.cpu_read(other, BLOCK_PAGES)


@check("ops.populate-devmem-pfn.same-again", since="1.0", profile="device-memory", requires=_NEEDS, ref=_EVICT)
def test_same_again(lab: Lab) -> None:
    """Asked again when an allocation is evicted, a driver names the same pages in the same order."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        evicted(devmem_of(log))
        first, *again = log.some("populate_devmem_pfn")
    assert again, "evict_to_ram goes by physical pages, and has not asked for them"
    assert "mmap_lock" not in again[0].held, "eviction takes no mmap_lock"
    assert all((call.result == first.result).all() for call in again), "other pages are named than those that it filled"
    bench.cpu_read(addr, BLOCK_PAGES)


def _there_already(bench: "Bench") -> int:
    return on_device(bench)


def _of_a_file(bench: "Bench") -> int:
    return AREAS["file"](bench)


def _no_area(bench: "Bench") -> int:
    addr = written(bench)
    bench.mm.munmap(addr, BLOCK)
    return addr


def _beyond(bench: "Bench") -> int:
    addr = written(bench)
    bench.mm.munmap(addr + BLOCK // 2, BLOCK // 2)
    return addr


def _in_two_areas(bench: "Bench") -> int:
    addr = written(bench)
    bench.mm.mprotect(addr + BLOCK // 2, BLOCK // 2, PROT_READ)
    return addr


NOT_MOVED: Final[Mapping[str, tuple[Callable[["Bench"], int], frozenset[str]]]] = {
    "there-already": (_there_already, frozenset({"ok"})),
    "shared-file": (_of_a_file, frozenset({"EBUSY"})),
    "no-area": (_no_area, frozenset({"ENOENT"})),
    "beyond-its-area": (_beyond, frozenset({"EINVAL"})),
    "in-two-areas": (_in_two_areas, frozenset({"EINVAL"})),
}
"""What core does not migrate, before it asks for pages; with what populate_mm answers then."""


@family(
    "ops.populate-mm.not-begun.{why}",
    every(why=NOT_MOVED),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_MIGRATE,
)
def test_not_begun(lab: Lab, why: str) -> None:
    """What cannot move ({why}) is found before any page is named or copied, and the allocation is given back once."""
    lay, answers = NOT_MOVED[why]
    with watched_ops() as log:
        bench = small(lab)
        addr = lay(bench)
        before, made = len(log.calls), len(log.devmems)
        where = [bench.where(at) for at in range(addr, addr + BLOCK, PAGE)]
        answer = answer_of(bench, addr)
        bench.kernel.settle()
        calls = log.calls[before:]
    assert answer in answers, f"populate_mm answered {answer}"
    assert [bench.where(at) for at in range(addr, addr + BLOCK, PAGE)] == where, "pages have moved"
    asked = [call.op for call in calls if call.op not in {"populate_mm", "devmem_release", "invalidate"}]
    assert not asked, f"core called {asked[0]}"
    assert_released(log, made)


@check("ops.populate-mm.held-pages", since="1.0", profile="device-memory", requires=_NEEDS, ref=_MIGRATE)
def test_all_or_nothing(lab: Lab) -> None:
    """With one page that somebody holds none of a range moves (EBUSY), and the allocation is given back once."""
    with watched_ops() as log:
        bench = small(lab)
        addr = written(bench)
        with pinned(bench, addr + 5 * PAGE, 1):
            answer = answer_of(bench, addr)
        bench.kernel.settle()
    assert answer == "EBUSY", f"populate_mm answered {answer}"
    assert not bench.device_pages(addr, BLOCK_PAGES), "a part of the range has moved"
    assert not log.of("copy_to_devmem"), "pages were copied that could not move all together"
    assert_released(log)
    bench.cpu_read(addr, BLOCK_PAGES)
