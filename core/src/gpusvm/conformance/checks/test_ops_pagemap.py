"""What core asks of a driver's pagemap (struct drm_pagemap_ops), what it holds then, and what the driver answers."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from gpusvm.conformance.areas import written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.ops import OpCall, OpsLog, watched_ops
from gpusvm.conformance.ops_scenes import (
    drivers_lock,
    find_range,
    gpusvm_of,
    on_device,
    pagemap_of,
    pfns_of,
    populate,
    rows_of,
    tokens_of,
)
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.drm import DMA_BIDIRECTIONAL, DMA_FROM_DEVICE, DMA_TO_DEVICE, DRM_INTERCONNECT_DRIVER, GpuSvmCtx
from gpusvm.errors import KernelError, errno_name
from gpusvm.mm.api import MADV_DONTNEED, PROT_NONE

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_POPULATE: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_populate_mm"
_MAP: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages"
_UNMAP: Final = "drivers/gpu/drm/drm_gpusvm.c:__drm_gpusvm_unmap_pages"
_REMOTE: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_remote_to_local"
_BOTH: Final = ("drm_pagemap", "drm_gpusvm")
_NOTIFIER_LOCK: Final = "drm_gpusvm_notifier_lock"


# ---- populate_mm, which drivers without a drm_pagemap have as well


@check("ops.populate-mm.called", since="1.0", profile="device-memory", ref=_POPULATE)
def test_called(lab: Lab) -> None:
    """populate_mm is called once for a request, mmap_lock held for reading, may sleep, and leaves the lock as it is."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        lock = bench.mm.mmap_lock

        @log.after("populate_mm")
        def still_held(call: OpCall) -> str | None:
            return None if lock in bench.kernel.current.held else "it has let go of mmap_lock"

        addr = written(bench)
        bench.gpu_write(addr)  # a driver may know only memory that its GPU has touched
        bench.cpu_write(addr, BLOCK_PAGES)
        begun = len(log.calls)
        pagemap = populate(bench, addr, timeslice_ms=3)
        calls = [call for call in log.some("populate_mm") if call.at >= begun]
    assert len(calls) == 1, f"it is called {len(calls)} times"
    call = calls[0]
    assert call.args == (pagemap, addr, addr + BLOCK, bench.mm, 3)
    assert "mmap_lock" in call.held, "mmap_lock is not held"
    assert "mmap_lock" not in call.written, "mmap_lock is held for writing"
    assert not call.atomic, "it is called in atomic context"
    assert not call.in_notifier, "it is called in a notifier"
    assert not lock.is_locked, "mmap_lock is held when it is over"
    assert call.result is None, f"it returned {call.result!r}"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.populate-mm.mm-gone", since="1.0", profile="device-memory", ref=_POPULATE)
def test_mm_gone(lab: Lab) -> None:
    """For a process that has ended populate_mm is refused (EFAULT), and the driver is not asked."""
    with watched_ops() as log:
        bench = small(lab)
        pagemap = pagemap_of(bench)
        addr = written(bench)
        bench.machine.processes.remove(bench.process)
        bench.mm.mmput()
        bench.kernel.settle()
        answer = _answer(lambda: pagemap.populate_mm(addr, addr + BLOCK, bench.mm, 0))
        assert answer == "EFAULT", f"it is answered {answer}"
        assert not log.of("populate_mm"), "the driver is asked"
        bench.machine.close(bench.process)


def _answer(act: Callable[[], object]) -> str:
    try:
        act()
    except KernelError as error:
        return errno_name(error.errno)
    return "ok"


@check("ops.populate-mm.unplugged", since="1.0", profile="device-memory", requires=("unplug",), ref=_POPULATE)
def test_unplugged(lab: Lab) -> None:
    """Once the device is unplugged, populate_mm answers ENODEV and leaves the memory alone."""
    with watched_ops() as log:
        bench = small(lab)
        addr = written(bench)
        pagemap = pagemap_of(bench)
        bench.machine.unplug()
        answer = _answer(lambda: pagemap.populate_mm(addr, addr + BLOCK, bench.mm, 0))
        log.some("populate_mm")
    assert answer == "ENODEV", f"it is answered {answer}"
    assert not bench.device_pages(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.populate-mm.no-mirror", since="1.0", profile="device-memory", requires=("drm_pagemap",), ref=_POPULATE)
def test_no_mirror(lab: Lab) -> None:
    """A pagemap can be populated by who has no address space of the driver's: its own lock is none of the caller's."""
    with watched_ops() as log:
        bench = small(lab)
        process = bench.machine.process("other")  # which has opened nothing
        addr = written(bench)
        process.mm.mmap(addr, BLOCK, 3)
        mine, bench.process = bench.process, process
        bench.cpu_write(addr, BLOCK_PAGES)
        on_device_at(bench, addr)
        assert not [name for name in log.some("populate_mm")[0].held if name != "mmap_lock"]
        bench.cpu_read(addr, BLOCK_PAGES)
        bench.process = mine


def on_device_at(bench: "Bench", addr: int) -> None:
    """Populate a block, all of it."""
    populate(bench, addr)
    there = bench.device_pages(addr, BLOCK_PAGES)
    assert there == BLOCK_PAGES, f"{there} of {BLOCK_PAGES} pages have come"


# ---- device_map


def _mapped(log: OpsLog, bench: "Bench", addr: int, **ctx: Any) -> None:
    """Have a range and get its pages, for a driver that takes device pages of the pagemap's owner."""
    gpusvm = gpusvm_of(log)
    wanted = GpuSvmCtx(devmem_possible=True, device_private_page_owner=pagemap_of(bench).pagemap.owner, **ctx)
    with drivers_lock(gpusvm):
        gpusvm.range_get_pages(find_range(gpusvm, addr, wanted), wanted)


@family(
    "ops.device-map.rows.{kind}",
    every(kind=("small", "huge")),
    since="1.0",
    profile="device-memory",
    requires=_BOTH,
    ref=_MAP,
)
def test_map_rows(lab: Lab, kind: str) -> None:
    """Device pages of {kind} memory are mapped in order, the notifier lock held; each row gets an address of its own,
    and a protocol of the driver's.
    """
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench, kind)
        device = pfns_of(bench, addr)
        _mapped(log, bench, addr)
        calls = log.some("device_map")
    rows = [pfn for call in calls for pfn in call.args[2].tolist()]
    assert rows == (device[:1] if kind == "huge" else device).tolist(), "it is not given the pages in order"
    for call in calls:
        pagemap, dev, pfns, order, direction = call.args
        addrs, protos = call.result
        assert pagemap is pagemap_of(bench)
        assert dev is bench.driver.device, "it is mapped for another device"
        assert direction == DMA_BIDIRECTIONAL, f"the DMA direction is {direction}"
        assert int((1 << order.astype(int)).sum()) == (BLOCK_PAGES if kind == "huge" else len(pfns))
        assert len(addrs) == len(protos) == len(pfns), f"{len(pfns)} rows, {len(addrs)} addresses, {len(protos)}"
        assert len(set(addrs.tolist())) == len(pfns), "two rows have one address"
        assert (protos >= DRM_INTERCONNECT_DRIVER).all(), "device memory is said to be system memory"
        assert _NOTIFIER_LOCK in call.held, "the notifier lock is not held: the pages may be gone"
        assert _NOTIFIER_LOCK not in call.written


@check("ops.device-map.read-only", since="1.0", profile="device-memory", requires=_BOTH, ref=_MAP)
def test_map_read_only(lab: Lab) -> None:
    """What a device is only to read is mapped in that direction."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        _mapped(log, bench, addr, read_only=True)
        assert {call.args[4] for call in log.some("device_map")} == {DMA_TO_DEVICE}


@check("ops.device-map.mixture", since="1.0", profile="device-memory", requires=_BOTH, ref=_MAP)
def test_map_mixture(lab: Lab) -> None:
    """Of a range that lies half on the device, and may, device_map is given that half, and device_unmap the same."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = written(bench)
        half = BLOCK_PAGES // 2
        populate(bench, addr + half * PAGE, half)
        device = pfns_of(bench, addr + half * PAGE, half)
        _mapped(log, bench, addr, allow_mixed=True)
        bench.mm.munmap(addr, BLOCK)
        call, back = log.one("device_map"), log.one("device_unmap")
    assert call.args[2].tolist() == device.tolist(), "it is given other pages than those of the device"
    assert back.args[2].pfns.tolist() == device.tolist(), "others are unmapped than were mapped"


def _munmap(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr, BLOCK)


def _mprotect(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, BLOCK, PROT_NONE)


def _dontneed(bench: "Bench", addr: int) -> None:
    bench.mm.madvise(addr, BLOCK, MADV_DONTNEED)


def _home(bench: "Bench", addr: int) -> None:
    bench.cpu_write(addr)


def _close(bench: "Bench", addr: int) -> None:
    bench.machine.close(bench.process)
    bench.process.vms.clear()
    bench.kernel.settle()


UNMAPS: Final[Mapping[str, Callable[["Bench", int], None]]] = {
    "munmap": _munmap,
    "mprotect": _mprotect,
    "dontneed": _dontneed,
    "cpu-fault": _home,
    "close": _close,
}


@family(
    "ops.device-unmap.paired.{how}",
    every(how=UNMAPS),
    since="1.0",
    profile="device-memory",
    requires=_BOTH,
    ref=_UNMAP,
)
def test_unmap_paired(lab: Lab, how: str) -> None:
    """What device_map has mapped device_unmap gets back by {how}: the same rows for the same device, once."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        _mapped(log, bench, addr)
        assert not log.of("device_unmap")
        UNMAPS[how](bench, addr)
        mapped, unmapped = log.some("device_map"), log.some("device_unmap")
    assert len(mapped) == len(unmapped), f"{len(mapped)} times mapped, and {len(unmapped)} times unmapped"
    for call, back in zip(mapped, unmapped, strict=True):
        assert back.args[:2] == call.args[:2], "it is unmapped of another pagemap, or for another device"
        assert back.args[2].pfns.tolist() == call.args[2].tolist(), "other pages are unmapped than were mapped"
        assert back.args[2].addr.tolist() == call.result[0].tolist(), "other addresses are unmapped than were given"
        assert _NOTIFIER_LOCK in back.held, "the notifier lock is not held"
        assert back.in_notifier == (how != "close")
        assert how == "close" or _NOTIFIER_LOCK in back.written, "the notifier lock is not held for writing"


# ---- a peer


def _two(lab: Lab) -> "tuple[Bench, int]":
    bench = small(lab, hardware="dual-p2p", thp="never")
    addr = on_device(bench, device=1)
    return bench, addr


@check("ops.device-map.peer", since="1.0", profile="multi-device", requires=_BOTH, ref=_MAP)
def test_map_peer(lab: Lab) -> None:
    """What lies on another device its own pagemap maps, for the device that asks, and unmaps for that."""
    with watched_ops() as log:
        bench, addr = _two(lab)
        _mapped(log, bench, addr)
        bench.mm.munmap(addr, BLOCK)
        call, back = log.one("device_map"), log.one("device_unmap")
    assert call.args[0] is pagemap_of(bench, 1), "another pagemap is asked than that of the pages"
    assert call.args[1] is back.args[1] is bench.driver.device, "it is mapped for another device than the one that asks"
    assert len(set(call.result[0].tolist())) == BLOCK_PAGES, "two pages have one address"
    assert (call.result[1] >= DRM_INTERCONNECT_DRIVER).all(), "device memory is said to be system memory"


@check("ops.copy-to-ram.peer", since="1.0", profile="multi-device", requires=_BOTH, ref=_REMOTE)
def test_copy_peer(lab: Lab) -> None:
    """From one device to another the source copies (copy_to_ram), into pages that the target has mapped for it."""
    with watched_ops() as log:
        bench, addr = _two(lab)
        sources = pfns_of(bench, addr)
        begun = len(log.calls)

        @log.after("copy_to_ram")
        def compare(call: OpCall) -> str | None:
            device, _, other = rows_of(call)
            same = tokens_of(bench, device) == tokens_of(bench, other)
            return None if same else "it returned, and the target does not hold what the source does"

        populate(bench, addr)
        calls = [call for call in log.calls[begun:] if call.op not in {"invalidate", "devmem_release", "populate_mm"}]
    assert [call.op for call in calls] == ["populate_devmem_pfn", "device_map", "copy_to_ram", "device_unmap"]
    asked, mapped, copied, unmapped = calls
    source, target = bench.machine.drivers[1].device, pagemap_of(bench)
    assert mapped.args[:2] == (target, source), "it is not the target that maps for the source"
    assert mapped.args[4] == DMA_FROM_DEVICE
    assert mapped.args[2].tolist() == asked.result.tolist(), "other pages are mapped than the target has named"
    assert copied.args[0].tolist() == sources.tolist(), "other pages are copied than were there"
    assert copied.args[1].addr.tolist() == mapped.result[0].tolist(), "the copy goes to other addresses"
    assert (copied.args[1].proto == mapped.result[1]).all()
    assert unmapped.args[2] is copied.args[1], "other rows are unmapped than were mapped"
    bench.cpu_read(addr, BLOCK_PAGES)


@family(
    "ops.owner.{hardware}",
    every(hardware=("dual", "dual-p2p")),
    since="1.0",
    profile="multi-device",
    requires=("drm_pagemap",),
    ref="drivers/gpu/drm/drm_pagemap_util.c:drm_pagemap_acquire_owner",
)
def test_owner(lab: Lab, hardware: str) -> None:
    """What lies on another device ({hardware}) is mapped there if the pagemaps have one owner, and else comes home."""
    with watched_ops() as log:
        bench = small(lab, hardware=hardware, thp="never")
        one, two = (pagemap_of(bench, device).pagemap.owner for device in (0, 1))
        addr = on_device(bench, device=1)
        _mapped(log, bench, addr)
    assert one is not None, "the pagemap has no owner"
    assert one is two or hardware == "dual", "there is a path between the devices, and their owners are two"
    there = bench.device_pages(addr, BLOCK_PAGES)
    assert there == (BLOCK_PAGES if one is two else 0), f"{there} of {BLOCK_PAGES} pages are left where they were"
    bench.cpu_read(addr, BLOCK_PAGES)
