"""How core has a driver empty device memory (copy_to_ram): for a CPU that touches it, or to make room."""

from typing import TYPE_CHECKING, Final

from gpusvm.conformance.areas import written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.ops import OpCall, OpsLog, watched_ops
from gpusvm.conformance.ops_scenes import (
    DmaCount,
    by_eviction,
    home,
    look_at_copies,
    on_device,
    pfns_of,
    populate,
    rows_of,
)
from gpusvm.conformance.small import BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.drm import DMA_FROM_DEVICE, DRM_INTERCONNECT_SYSTEM
from gpusvm.mm.api import PROT_READ

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_HOME: Final = "drivers/gpu/drm/drm_pagemap.c:__drm_pagemap_migrate_to_ram"
_EVICT: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram"
_NEEDS: Final = ("drm_pagemap",)


def _by_cpu(bench: "Bench", log: OpsLog, addr: int) -> None:
    home(bench, addr)


WAYS_HOME: Final = {"cpu-fault": _by_cpu, "eviction": by_eviction}


@family(
    "ops.copy-to-ram.rows.{way}-{kind}",
    every(way=WAYS_HOME, kind=("small", "huge")),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=f"{_HOME}; {_EVICT}",
)
def test_home_rows(lab: Lab, way: str, kind: str) -> None:
    """By {way} an allocation of {kind} memory comes home whole in one copy, each page to a new one of system memory."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench, kind)
        device = pfns_of(bench, addr)
        WAYS_HOME[way](bench, log, addr)
        call = log.one("copy_to_ram")
    source, addrs, target = rows_of(call)
    assert source.tolist() == device.tolist(), "not all pages of the allocation are copied, in order"
    assert target.tolist() == pfns_of(bench, addr).tolist(), "the process has other pages than those that were filled"
    assert addrs.direction == DMA_FROM_DEVICE, f"the DMA direction is {addrs.direction}"
    assert (addrs.proto == DRM_INTERCONNECT_SYSTEM).all(), "system memory is not reached as system memory"
    assert call.args[2] is None, "there is nothing to wait for, and a fence is given"
    assert len(addrs) == (1 if kind == "huge" else BLOCK_PAGES), f"there are {len(addrs)} rows"
    assert not call.atomic, "it is called in atomic context"
    assert ("mmap_lock" in call.held) == (way == "cpu-fault"), f"held are {call.held}"
    bench.cpu_read(addr, BLOCK_PAGES)


@family(
    "ops.copy-to-ram.done.{way}-{kind}",
    every(way=WAYS_HOME, kind=("small", "huge")),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=f"{_HOME}; {_EVICT}",
)
def test_home_copied(lab: Lab, way: str, kind: str) -> None:
    """When copy_to_ram returns ({way}, {kind} memory), the new pages hold what the device pages do."""
    with watched_ops() as log:
        bench = small(lab)
        mapped = DmaCount(bench)
        addr = on_device(bench, kind)
        before = mapped()
        look_at_copies(bench, log, "copy_to_ram")

        @log.before("copy_to_ram")
        def count(call: OpCall) -> str | None:
            return None if mapped() > before else "nothing is mapped for DMA"

        WAYS_HOME[way](bench, log, addr)
        log.some("copy_to_ram")
        assert mapped() == before, f"{mapped() - before} mappings are left"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.copy-to-ram.own-allocation", since="1.0", profile="device-memory", requires=_NEEDS, ref=_HOME)
def test_own_allocation(lab: Lab) -> None:
    """A CPU takes home what the page's allocation has in a window of its size, and no page of another."""
    with watched_ops() as log:
        bench = small(lab)
        addr = written(bench)
        populate(bench, addr, 4)
        populate(bench, addr + 4 * PAGE, 8)
        home(bench, addr + 5 * PAGE)
        call = log.one("copy_to_ram")
    assert call.args[1].npages == 4, f"{call.args[1].npages} pages are copied"
    there = [bench.device_pages(addr + first * PAGE, 4) for first in (0, 4, 8)]
    assert there == [4, 0, 4], f"of the window's halves and what is behind it {there} pages are on the device"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.copy-to-ram.within-area", since="1.0", profile="device-memory", requires=_NEEDS, ref=_HOME)
def test_within_area(lab: Lab) -> None:
    """Of an allocation that lies in two areas a CPU takes home what is in the area that it touches."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        bench.mm.mprotect(addr + 12 * PAGE, 4 * PAGE, PROT_READ)
        home(bench, addr)
        log.some("copy_to_ram")
    assert bench.device_pages(addr, 12) == 0, "pages of the area are left"
    assert bench.device_pages(addr + 12 * PAGE, 4) == 4, "pages of another area have come along"
    assert not log.of("devmem_release"), "an allocation that has pages is released"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.copy-to-ram.order-fallback", since="1.0", profile="device-memory", requires=_NEEDS, ref=_HOME)
def test_order_fallback(lab: Lab) -> None:
    """A large folio for which there is none in system memory comes home in small pages, row by row."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench, "huge")
        bench.kernel.injector.arm("alloc.folio")
        home(bench, addr)
        calls = log.some("copy_to_ram")
    assert "alloc.folio" in bench.kernel.injector.failed, "no large folio was asked for"
    assert {len(call.args[1]) for call in calls} == {BLOCK_PAGES}, "it is not copied page by page"
    assert not bench.device_pages(addr, BLOCK_PAGES), "pages are left on the device"
    bench.cpu_read(addr, BLOCK_PAGES)
