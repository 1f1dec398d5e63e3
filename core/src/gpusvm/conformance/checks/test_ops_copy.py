"""How core has a driver fill device memory (copy_to_devmem), and what is so when that returns."""

from typing import TYPE_CHECKING, Final

import numpy as np

from gpusvm.conformance.areas import AREAS
from gpusvm.conformance.family import every, family
from gpusvm.conformance.ops import OpCall, watched_ops
from gpusvm.conformance.ops_scenes import (
    KINDS,
    DmaCount,
    answer_of,
    devmem_of,
    look_at_copies,
    on_device,
    pfns_of,
    populate,
    rows_of,
    tokens_of,
)
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.drm import DMA_TO_DEVICE, DRM_INTERCONNECT_SYSTEM, Fence

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_MIGRATE: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem"
_SYS: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_sys_to_dev"
_NEEDS: Final = ("drm_pagemap",)
_WRITTEN: Final = ("small", "huge", "every-other")


@family(
    "ops.copy-to-devmem.rows.{kind}",
    every(kind=KINDS),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_SYS,
)
def test_rows(lab: Lab, kind: str) -> None:
    """A row says which device page gets which page of {kind} memory: in order, to the device, through system memory."""
    with watched_ops() as log:
        bench = small(lab)
        addr = KINDS[kind](bench)
        sources = pfns_of(bench, addr)
        populate(bench, addr)
        asked = log.one("populate_devmem_pfn")
        calls = log.some("copy_to_devmem")
    targets = np.concatenate([rows_of(call)[0] for call in calls])
    copied = np.concatenate([rows_of(call)[2] for call in calls])
    assert copied.tolist() == sources[sources >= 0].tolist(), "not each page that has a source is copied, in order"
    assert targets.tolist() == asked.result[sources >= 0].tolist(), "a page goes elsewhere than where it was named to"
    for call in calls:
        device, addrs, _ = rows_of(call)
        rows = (len(call.args[0]), len(addrs.addr), len(addrs.order), len(addrs.proto))
        assert len(set(rows)) == 1, f"device pages, addresses, orders and protocols are {rows}"
        assert addrs.npages == len(device), f"{addrs.npages} pages in rows of {len(device)}"
        assert addrs.direction == DMA_TO_DEVICE, f"the DMA direction is {addrs.direction}"
        assert (addrs.proto == DRM_INTERCONNECT_SYSTEM).all(), "system memory is not reached as system memory"
        if kind == "huge":
            assert len(device) == BLOCK_PAGES != len(addrs), "a large folio has more than one row"


@family(
    "ops.copy-to-devmem.done.{kind}",
    every(kind=_WRITTEN),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_SYS,
)
def test_copied(lab: Lab, kind: str) -> None:
    """When copy_to_devmem returns, the device pages hold what {kind} memory held, and that holds it still."""
    with watched_ops() as log:
        bench = small(lab)
        look_at_copies(bench, log, "copy_to_devmem")
        addr = on_device(bench, kind)
        log.some("copy_to_devmem")
    bench.cpu_read(addr, BLOCK_PAGES)


@family(
    "ops.copy-to-devmem.mapped.{kind}",
    every(kind=_WRITTEN),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_map_system_pages",
)
def test_mapped(lab: Lab, kind: str) -> None:
    """{kind} memory is mapped for DMA while it is copied, and not before or after."""
    with watched_ops() as log:
        bench = small(lab)
        mapped = DmaCount(bench)

        @log.before("copy_to_devmem")
        @log.after("copy_to_devmem")
        def count(call: OpCall) -> str | None:
            return None if mapped() - before >= min(len(call.args[1]), 1) else "nothing is mapped for DMA"

        addr = KINDS[kind](bench)
        before = mapped()
        populate(bench, addr)
        assert mapped() == before, f"{mapped() - before} mappings are left"
        log.some("copy_to_devmem")


@family(
    "ops.copy-to-devmem.meanwhile.{kind}",
    every(kind=_WRITTEN),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_MIGRATE,
)
def test_meanwhile(lab: Lab, kind: str) -> None:
    """While {kind} memory is copied no CPU has it mapped, both sides are locked, and what copies may sleep."""
    with watched_ops() as log:
        bench = small(lab)
        memory = bench.memory
        addr = KINDS[kind](bench)

        @log.before("copy_to_devmem")
        def look(call: OpCall) -> str | None:
            mapped = [at for at in range(addr, addr + BLOCK, PAGE) if bench.where(at) != "none" and _usable(bench, at)]
            if mapped:
                return f"{mapped[0]:#x} is mapped by the CPU"
            device_pfns, addrs, _ = call.args
            heads = [memory.folio_head(pfn) for pfn in (*device_pfns.tolist(), *addrs.pfns.tolist())]
            unlocked = [pfn for pfn in heads if not memory.pages.folio_locked(pfn)]
            return f"folio {unlocked[0]:#x} is not locked" if unlocked else None

        populate(bench, addr)
        for call in log.some("copy_to_devmem"):
            assert "mmap_lock" in call.held, "mmap_lock is not held"
            assert not call.atomic, "it is called in atomic context"
            assert not call.in_notifier, "it is called in a notifier"


def _usable(bench: "Bench", addr: int) -> bool:
    entry = bench.mm.page_table.entry(addr)
    return "MIGRATION" not in entry.kind.name


@check("ops.copy-to-devmem.holes", since="1.0", profile="device-memory", requires=_NEEDS, ref=_SYS)
def test_holes(lab: Lab) -> None:
    """For memory that nobody has touched there are no rows, and copy_to_devmem is called; the pages read as zero."""
    with watched_ops() as log:
        bench = small(lab)
        addr = AREAS["untouched"](bench)
        half = BLOCK_PAGES // 2
        populate(bench, addr, half)  # not a whole block, which is collected as one hole
        calls = log.some("copy_to_devmem")
    assert bench.device_pages(addr, half) == half
    assert [len(call.args[1]) for call in calls] == [0], "there are rows without a source"
    assert tokens_of(bench, pfns_of(bench, addr, half)) == [0] * half, "a page that nobody wrote is not zero"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.populate-mm.whole-hole", since="1.0", profile="device-memory", requires=_NEEDS, ref=_MIGRATE)
def test_whole_hole(lab: Lab) -> None:
    """A whole block that nobody has touched, and that is collected as one hole, is populated as any other memory."""
    bench = small(lab)
    addr = AREAS["untouched"](bench)
    answer = answer_of(bench, addr)
    assert answer == "ok", f"populate_mm answered {answer}, with {bench.device_pages(addr, BLOCK_PAGES)} pages there"


@check(
    "ops.copy-to-devmem.fence",
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref="include/drm/drm_pagemap.h:pre_migrate_fence",
)
def test_fence(lab: Lab) -> None:
    """The copy is given what the allocation waits for (pre_migrate_fence), and once it is there that is dropped."""
    with watched_ops() as log:
        bench = small(lab)
        fence = Fence(bench.kernel)
        fence.signal()

        @log.after("populate_devmem_pfn")
        def wait(call: OpCall) -> None:
            call.args[0].pre_migrate_fence = fence

        on_device(bench)
        call = log.one("copy_to_devmem")
    assert call.args[2] is fence, f"it is given {call.args[2]!r}"
    assert devmem_of(log).pre_migrate_fence is None, "it is kept after the pages have landed"
