"""What get_pages, range_evict and scan_mm answer a driver that mirrors range by range, errno by errno."""

from collections.abc import Callable, Mapping
from errno import EBUSY
from typing import TYPE_CHECKING, Any, Final

from gpusvm.conformance.areas import written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.ops import OpsLog, watched_ops
from gpusvm.conformance.ops_scenes import (
    DmaCount,
    drivers_lock,
    find_range,
    gpusvm_of,
    nothing_left,
    on_device,
    pagemap_of,
    pfns_of,
    populate,
)
from gpusvm.conformance.scene import after_hmm, instead
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.drm import GpuSvm, GpuSvmCtx, GpuSvmRange
from gpusvm.drm.scan import SCAN_EQUAL, SCAN_MIXED, SCAN_MIXED_DEVICE, SCAN_OTHER, SCAN_SYSTEM, SCAN_UNPOPULATED
from gpusvm.errors import KernelError, errno_name
from gpusvm.mm.api import MADV_DONTNEED, MMU_NOTIFY_CLEAR, PROT_NONE, PROT_READ, MmuNotifierRange

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_GET: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages"
_EVICT: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_evict"
_SCAN: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_scan_mm"
_BOTH: Final = ("drm_gpusvm", "drm_pagemap")
_HALF: Final = BLOCK_PAGES // 2


def _owner(bench: "Bench") -> object | None:
    return pagemap_of(bench).pagemap.owner


def _range(bench: "Bench", log: OpsLog, addr: int) -> tuple[GpuSvm, GpuSvmRange]:
    """Have a range over a block, which can go to the device. The caller does not need the driver's lock for it."""
    gpusvm = gpusvm_of(log)
    with drivers_lock(gpusvm):
        range_ = find_range(gpusvm, addr, GpuSvmCtx(devmem_possible=True))
    assert range_.size_bytes == BLOCK
    return gpusvm, range_


def _got(gpusvm: GpuSvm, range_: GpuSvmRange, **ctx: Any) -> str:
    with drivers_lock(gpusvm):
        try:
            gpusvm.range_get_pages(range_, GpuSvmCtx(**ctx))
        except KernelError as error:
            return errno_name(error.errno)
    return "ok"


def _half_on_device(bench: "Bench") -> int:
    addr = written(bench)
    populate(bench, addr, _HALF)
    return addr


def _other_half(bench: "Bench") -> int:
    addr = written(bench)
    populate(bench, addr + _HALF * PAGE, _HALF)
    return addr


def _two_allocations(bench: "Bench") -> int:
    addr = _half_on_device(bench)
    populate(bench, addr + _HALF * PAGE, _HALF)
    return addr


MIXTURES: Final[Mapping[str, tuple[Callable[["Bench"], int], dict[str, bool], str]]] = {
    "device-system": (_half_on_device, {}, "EOPNOTSUPP"),
    "system-device": (_other_half, {}, "EOPNOTSUPP"),
    "two-allocations": (_two_allocations, {}, "EOPNOTSUPP"),
    "device-system-allowed": (_half_on_device, {"allow_mixed": True}, "ok"),
    "system-device-allowed": (_other_half, {"allow_mixed": True}, "ok"),
    "two-allocations-allowed": (_two_allocations, {"allow_mixed": True}, "ok"),
    "device-only": (on_device, {"devmem_only": True}, "ok"),
    "device-only-system": (written, {"devmem_only": True}, "EFAULT"),
    "device-only-half": (_half_on_device, {"devmem_only": True, "allow_mixed": True}, "EFAULT"),
}


@family(
    "ops.get-pages.mixture.{what}",
    every(what=MIXTURES),
    since="1.0",
    profile="device-memory",
    requires=_BOTH,
    ref=_GET,
)
def test_mixture(lab: Lab, what: str) -> None:
    """Of a range that lies in several places ({what}) the pages are got as the caller allows, or nothing is mapped."""
    lay, ctx, wanted = MIXTURES[what]
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = lay(bench)
        gpusvm, range_ = _range(bench, log, addr)
        mapped = DmaCount(bench)
        before = mapped()
        answer = _got(gpusvm, range_, device_private_page_owner=_owner(bench), **ctx)
        assert answer == wanted, f"it is answered {answer}"
        pages = range_.pages
        assert pages.valid == (wanted == "ok")
        if wanted == "ok":
            addrs = pages.dma_addr
            assert addrs is not None
            assert addrs.page_pfns().tolist() == pfns_of(bench, addr).tolist(), "other pages are mapped than are there"
        else:
            assert mapped() == before, f"{mapped() - before} mappings are left"
            assert pages.dpagemap is None, "a pagemap is held for pages that are not mapped"
            assert len(log.of("device_map")) == len(log.of("device_unmap")), "device pages stay mapped"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.get-pages.foreign-owner", since="1.0", profile="device-memory", requires=_BOTH, ref=_GET)
def test_foreign_owner(lab: Lab) -> None:
    """For a caller who takes no device pages they come home first, and device_map is not called."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = on_device(bench)
        gpusvm, range_ = _range(bench, log, addr)
        assert _got(gpusvm, range_) == "ok"
        assert not bench.device_pages(addr, BLOCK_PAGES), "pages are left on the device"
        assert not log.of("device_map"), "device pages are mapped that nobody takes"


def _unmapped(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr, BLOCK)
    bench.mm.mmap(addr, BLOCK, 3)
    bench.cpu_write(addr, BLOCK_PAGES)


def _gone(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr, BLOCK)


def _none(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, BLOCK, PROT_NONE)


def _read_only(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, BLOCK, PROT_READ)


CHANGED: Final[Mapping[str, tuple[Callable[["Bench", int], None], frozenset[str]]]] = {
    "unmapped-and-there-again": (_unmapped, frozenset({"EFAULT"})),
    "unmapped": (_gone, frozenset({"EFAULT"})),
    "no-access": (_none, frozenset({"EFAULT", "EPERM"})),
    "read-only": (_read_only, frozenset({"EPERM"})),
}


@family("ops.get-pages.changed.{what}", every(what=CHANGED), since="1.0", requires=("drm_gpusvm",), ref=_GET)
def test_changed(lab: Lab, what: str) -> None:
    """Of a range whose memory is {what} no pages are got for writing: the errno says so, and nothing is mapped."""
    change, wanted = CHANGED[what]
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = written(bench)
        gpusvm, range_ = _range(bench, log, addr)
        assert _got(gpusvm, range_) == "ok"
        change(bench, addr)
        mapped = DmaCount(bench)
        before = mapped()
        if range_.removed:  # the driver was quick to collect it
            return
        answer = _got(gpusvm, range_)
        assert answer in wanted, f"it is answered {answer}"
        assert not range_.pages.valid, "the pages are said to be valid"
        assert mapped() == before, f"{mapped() - before} mappings are left"


@check("ops.get-pages.read-only", since="1.0", requires=("drm_gpusvm",), ref=_GET)
def test_read_only(lab: Lab) -> None:
    """What the process may only read is got by who only reads."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = written(bench)
        gpusvm, range_ = _range(bench, log, addr)
        _read_only(bench, addr)
        assert _got(gpusvm, range_, read_only=True) == "ok"
        assert range_.pages.valid


@check("ops.get-pages.valid-stay", since="1.0", requires=("drm_gpusvm",), ref=_GET)
def test_valid(lab: Lab) -> None:
    """What is got and still valid is not got anew; after an invalidation it is, and for DMA mapped once."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = written(bench)
        gpusvm, range_ = _range(bench, log, addr)
        mapped = DmaCount(bench)
        before = mapped()
        assert _got(gpusvm, range_) == "ok"
        first, rows = range_.pages.dma_addr, mapped()
        assert rows > before, "nothing is mapped for DMA"
        assert _got(gpusvm, range_) == "ok"
        assert range_.pages.dma_addr is first, "what was valid is got anew"
        bench.mm.madvise(addr, PAGE, MADV_DONTNEED)
        assert not range_.pages.valid, "a page is gone, and the pages are said to be valid"
        assert mapped() == before, f"{mapped() - before} mappings are left"
        bench.cpu_write(addr)
        assert _got(gpusvm, range_) == "ok"
        assert mapped() == rows, f"{mapped() - before} mappings in place of {rows - before}"


@check("ops.get-pages.busy", since="1.0", requires=("drm_gpusvm",), ref=_GET)
def test_busy(lab: Lab) -> None:
    """With an invalidation after each look the attempts end after 1000 ms (EBUSY), all together, nothing mapped."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = written(bench)
        gpusvm, range_ = _range(bench, log, addr)
        mapped = DmaCount(bench)
        before, begun_ns = mapped(), bench.kernel.now_ns

        def invalidate() -> None:
            window = MmuNotifierRange(bench.mm, addr, addr + PAGE, MMU_NOTIFY_CLEAR)
            bench.memory.invalidate_range_start(window)
            bench.memory.invalidate_range_end(window)
            bench.kernel.sleep_ns(90_000_000)

        with after_hmm(bench, invalidate):
            answer = _got(gpusvm, range_)
        took_ms = (bench.kernel.now_ns - begun_ns) // 1_000_000
        assert answer == "EBUSY", f"it is answered {answer}"
        assert 1000 <= took_ms < 1300, f"it took {took_ms} ms"
        assert mapped() == before, f"{mapped() - before} mappings are left"


# ---- range_evict


@check("ops.range-evict.home", since="1.0", profile="device-memory", requires=_BOTH, ref=_EVICT)
def test_evict(lab: Lab) -> None:
    """range_evict brings every device page of a range home, whichever allocations they are of."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = _two_allocations(bench)
        gpusvm, range_ = _range(bench, log, addr)
        with drivers_lock(gpusvm):
            gpusvm.range_evict(range_)
        assert not bench.device_pages(addr, BLOCK_PAGES), "pages are left on the device"
        assert len(log.some("devmem_release")) == len(log.devmems), "an allocation is left without pages"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.range-evict.mm-gone", since="1.0", requires=("drm_gpusvm",), ref=_EVICT)
def test_evict_mm_gone(lab: Lab) -> None:
    """Of a process that has ended nothing comes home (EFAULT)."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        gpusvm, range_ = _range(bench, log, written(bench))
        range_.get()
        bench.machine.processes.remove(bench.process)
        bench.mm.mmput()
        bench.kernel.settle()
        try:
            gpusvm.range_evict(range_)
            answer = "ok"
        except KernelError as error:
            answer = errno_name(error.errno)
        range_.put()
        assert answer == "EFAULT", f"it is answered {answer}"
        bench.machine.close(bench.process)


@check("ops.range-evict.busy", since="1.0", requires=("drm_gpusvm",), ref=_EVICT)
def test_evict_busy(lab: Lab) -> None:
    """Where HMM gives up (EBUSY) range_evict answers ETIME, and the process is not held any more."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        gpusvm, range_ = _range(bench, log, written(bench))

        def busy(*_: object) -> None:
            raise KernelError(EBUSY, "it is invalidated again and again")

        with nothing_left(bench), instead(bench.memory, "hmm_range_fault_unlocked_timeout", busy):
            try:
                gpusvm.range_evict(range_)
                answer = "ok"
            except KernelError as error:
                answer = errno_name(error.errno)
        assert answer == "ETIME", f"it is answered {answer}"


# ---- scan_mm


def _hole(bench: "Bench") -> int:
    addr = written(bench)
    bench.mm.madvise(addr + 3 * PAGE, PAGE, MADV_DONTNEED)
    return addr


SCANS: Final[Mapping[str, tuple[Callable[["Bench"], int], int]]] = {
    "unpopulated": (_hole, SCAN_UNPOPULATED),
    "system": (written, SCAN_SYSTEM),
    "equal": (on_device, SCAN_EQUAL),
    "equal-two": (_two_allocations, SCAN_EQUAL),
    "mixed": (_half_on_device, SCAN_MIXED),
}


@family("ops.scan-mm.{what}", every(what=SCANS), since="1.0", profile="device-memory", requires=_BOTH, ref=_SCAN)
def test_scan(lab: Lab, what: str) -> None:
    """scan_mm says where the memory of a range is ({what}), and brings nothing there."""
    lay, wanted = SCANS[what]
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = lay(bench)
        gpusvm, range_ = _range(bench, log, addr)
        before = pfns_of(bench, addr).tolist()
        found = gpusvm.scan_mm(range_, _owner(bench), pagemap_of(bench).pagemap)
        assert found == wanted, f"it says {found}"
        assert pfns_of(bench, addr).tolist() == before, "pages have moved"


@check("ops.scan-mm.no-owner", since="1.0", profile="device-memory", requires=_BOTH, ref=_SCAN)
def test_scan_no_owner(lab: Lab) -> None:
    """For who takes no device pages memory on a device is not populated, and it stays there."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = on_device(bench)
        gpusvm, range_ = _range(bench, log, addr)
        assert gpusvm.scan_mm(range_, None, pagemap_of(bench).pagemap) == SCAN_UNPOPULATED
        assert bench.device_pages(addr, BLOCK_PAGES) == BLOCK_PAGES


def _other(bench: "Bench") -> int:
    return on_device(bench, device=1)


def _half_each(bench: "Bench") -> int:
    addr = _half_on_device(bench)
    populate(bench, addr + _HALF * PAGE, _HALF, device=1)
    return addr


DEVICES: Final[Mapping[str, tuple[Callable[["Bench"], int], int]]] = {
    "other": (_other, SCAN_OTHER),
    "mixed-device": (_half_each, SCAN_MIXED_DEVICE),
}


@family("ops.scan-mm.{what}", every(what=DEVICES), since="1.0", profile="multi-device", requires=_BOTH, ref=_SCAN)
def test_scan_devices(lab: Lab, what: str) -> None:
    """scan_mm tells the memory of another device from the own ({what}), where both have one owner."""
    lay, wanted = DEVICES[what]
    with watched_ops() as log:
        bench = small(lab, hardware="dual-p2p", thp="never")
        addr = lay(bench)
        gpusvm, range_ = _range(bench, log, addr)
        found = gpusvm.scan_mm(range_, _owner(bench), pagemap_of(bench).pagemap)
        assert found == wanted, f"it says {found}"


@check("ops.get-pages.two-pagemaps", since="1.0", profile="multi-device", requires=_BOTH, ref=_GET)
def test_two_pagemaps(lab: Lab) -> None:
    """Pages of two devices in one range are never got together, whatever is allowed: EOPNOTSUPP, nothing mapped."""
    with watched_ops() as log:
        bench = small(lab, hardware="dual-p2p", thp="never")
        addr = _half_each(bench)
        gpusvm, range_ = _range(bench, log, addr)
        answer = _got(gpusvm, range_, device_private_page_owner=_owner(bench), allow_mixed=True)
        assert answer == "EOPNOTSUPP", f"it is answered {answer}"
        assert not range_.pages.valid
        assert len(log.of("device_map")) == len(log.of("device_unmap")), "device pages stay mapped"
    bench.cpu_read(addr, BLOCK_PAGES)
