"""When device memory is given back to the driver (devmem_release), and how long pages lead to it."""

from typing import TYPE_CHECKING, Final

from gpusvm.conformance.areas import written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.ops import OpCall, OpsLog, watched_ops
from gpusvm.conformance.ops_scenes import (
    assert_released,
    by_eviction,
    devmem_of,
    evicted,
    home,
    on_device,
    pfns_of,
    populate,
    references,
)
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.mm.api import MADV_DONTNEED

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_HOME: Final = "drivers/gpu/drm/drm_pagemap.c:__drm_pagemap_migrate_to_ram"
_ZDD: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_zdd_destroy"
_NEEDS: Final = ("drm_pagemap",)


def _cpu(bench: "Bench", log: OpsLog, addr: int) -> None:
    home(bench, addr, BLOCK_PAGES)


def _munmap(bench: "Bench", log: OpsLog, addr: int) -> None:
    bench.mm.munmap(addr, BLOCK)


def _dontneed(bench: "Bench", log: OpsLog, addr: int) -> None:
    bench.mm.madvise(addr, BLOCK, MADV_DONTNEED)


def _exit(bench: "Bench", log: OpsLog, addr: int) -> None:
    bench.machine.processes.remove(bench.process)
    bench.mm.mmput()
    bench.kernel.settle()
    bench.machine.close(bench.process)
    bench.process.vms.clear()


ENDS: Final = {"cpu-fault": _cpu, "eviction": by_eviction, "munmap": _munmap, "dontneed": _dontneed, "exit": _exit}


@family(
    "ops.devmem-release.last-page.{how}-{kind}",
    every(how=ENDS, kind=("small", "huge")),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_ZDD,
)
def test_released(lab: Lab, how: str, kind: str) -> None:
    """Once {how} has taken the last page of {kind} memory, not before and not twice, the allocation is released."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench, kind)
        assert not log.of("devmem_release"), "an allocation is released that has pages"
        pfns = pfns_of(bench, addr)

        @log.before("devmem_release")
        def look(call: OpCall) -> str | None:
            if not call.args[0].detached.done:
                return "the allocation is not detached"
            left = [pfn for pfn in pfns.tolist() if references(bench, pfn)]
            return f"page {left[0]:#x} is in use" if left else None

        ENDS[how](bench, log, addr)
        bench.kernel.settle()
        assert_released(log)


@check("ops.devmem-release.not-yet", since="1.0", profile="device-memory", requires=_NEEDS, ref=_ZDD)
def test_not_yet(lab: Lab) -> None:
    """While one page of an allocation is in use it is not released; with that page it is."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        for page in range(1, BLOCK_PAGES):
            bench.mm.madvise(addr + page * PAGE, PAGE, MADV_DONTNEED)
            assert not log.of("devmem_release"), f"it is released with {BLOCK_PAGES - page} pages in use"
        bench.mm.madvise(addr, PAGE, MADV_DONTNEED)
        bench.kernel.settle()
        assert_released(log)


@family(
    "ops.devmem-release.atomic.{how}",
    every(how=("munmap", "cpu-fault")),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_ZDD,
)
def test_release_atomic(lab: Lab, how: str) -> None:
    """devmem_release may be called in atomic context, where the last page is freed by {how}: it does not sleep."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)

        @log.before("devmem_release")
        def begin(call: OpCall) -> None:
            bench.kernel.preempt_disable()

        @log.after("devmem_release")
        def end(call: OpCall) -> None:
            bench.kernel.preempt_enable()

        ENDS[how](bench, log, addr)
        bench.kernel.settle()
        assert_released(log)


@family(
    "ops.zdd.references.{kind}",
    every(kind=("small", "huge")),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_get_devmem_page, drm_pagemap_folio_split",
)
def test_zdd(lab: Lab, kind: str) -> None:
    """All folios of an allocation of {kind} memory lead to it, each with a reference; so does what a split makes."""
    from gpusvm.drm import page_zdd

    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench, kind)
        zdds = [page_zdd(bench.memory, pfn) for pfn in pfns_of(bench, addr).tolist()]
        assert {id(zdd) for zdd in zdds} == {id(zdds[0])}, "the pages of one allocation lead to several"
        assert zdds[0].devmem is devmem_of(log)
        assert zdds[0].kref.count == (1 if kind == "huge" else BLOCK_PAGES), f"it has {zdds[0].kref.count} references"
        bench.mm.munmap(addr + 3 * PAGE, PAGE)
        left = [at for at in range(addr, addr + BLOCK, PAGE) if bench.where(at) == "device"]
        there = [page_zdd(bench.memory, bench.mm.page_table.entry(at).pfn) for at in left]
        assert all(zdd is zdds[0] for zdd in there), "what is left leads elsewhere"
        folios = {bench.memory.folio_head(bench.mm.page_table.entry(at).pfn) for at in left}
        assert zdds[0].kref.count == len(folios), f"{len(folios)} folios have {zdds[0].kref.count} references"
        assert not log.of("devmem_release")


@check("ops.populate-mm.timeslice", since="1.0", profile="device-memory", requires=_NEEDS, ref=_HOME)
def test_timeslice(lab: Lab) -> None:
    """While the timeslice of an allocation lasts no CPU takes a page home, and whoever evicts does not wait for it."""
    with watched_ops() as log:
        bench = small(lab)
        first, second = written(bench), written(bench)
        populate(bench, first, timeslice_ms=5)
        landed_ns = bench.kernel.now_ns
        until_ns = devmem_of(log).timeslice_expiration_ns
        assert until_ns <= landed_ns + 5_000_000, f"it lasts {until_ns - landed_ns} ns"

        @log.before("copy_to_ram")
        def too_early(call: OpCall) -> str | None:
            early_ns = until_ns - bench.kernel.now_ns
            return f"it comes {early_ns} ns before the timeslice is over" if early_ns > 0 and waits else None

        waits = True
        home(bench, first)
        assert bench.where(first) == "system"
        waits = False
        populate(bench, second, timeslice_ms=5)
        evicted(devmem_of(log))
        assert bench.kernel.now_ns - landed_ns < 60_000_000
        assert bench.where(second) == "system", "whoever evicts has to wait for a timeslice"
    bench.cpu_read(first, BLOCK_PAGES)
    bench.cpu_read(second, BLOCK_PAGES)
