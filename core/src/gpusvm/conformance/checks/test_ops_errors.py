"""Each op answers with an errno, in the driver's place or after its work, and what core and the driver do then is seen:
tried again, left in system memory, told to whoever asked; contents, references and allocations right after.
"""

from errno import EBUSY, EFAULT, EINVAL, EIO, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from gpusvm.conformance.agreement import errno_of
from gpusvm.conformance.areas import written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.ops import OpsLog, watched_ops
from gpusvm.conformance.ops_scenes import (
    KINDS,
    answer_of,
    assert_released,
    devmem_of,
    drivers_lock,
    evicted,
    find_range,
    gpusvm_of,
    home,
    nothing_left,
    on_device,
    pagemap_of,
    pfns_of,
    tokens_of,
)
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_WRITE
from gpusvm.drm import GpuSvmCtx
from gpusvm.errors import CpuSignal, KernelError, errno_name

if TYPE_CHECKING:
    pass

_MIGRATE: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem"
_HOME: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_ram"
_EVICT: Final = "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram"
_GET: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages"
_FAULT: Final = "drivers/gpu/drm/drm_gpusvm.c: DOC: Driver-side page fault handler"
_NEEDS: Final = ("drm_pagemap",)
_BOTH: Final = ("drm_pagemap", "drm_gpusvm")
_ALWAYS: Final = 1_000_000

WHEN: Final = ("before", "after")
"""Whether the op fails in the driver's place, with nothing done, or when the driver has done all of it."""

ERRNOS: Final = {
    "ebusy": EBUSY,
    "enomem": ENOMEM,
    "enodev": ENODEV,
    "efault": EFAULT,
    "einval": EINVAL,
    "enoent": ENOENT,
    "eio": EIO,
    "enospc": ENOSPC,
    "eopnotsupp": EOPNOTSUPP,
}
"""What populate_mm may answer (drm_pagemap.c, and the driver's own)."""


# ---- on the way to the device


_TO_DEVICE: Final = {"populate-devmem-pfn": ENOMEM, "copy-to-devmem": EIO}


@family(
    "ops.error.{op}.{kind}-{when}",
    every(op=_TO_DEVICE, kind=KINDS, when=WHEN),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_MIGRATE,
)
def test_to_device(lab: Lab, op: str, kind: str, when: str) -> None:
    """If {op} fails for {kind} memory ({when} its work) all stays where it was, whoever asked hears the errno, and the
    allocation is given back; the next attempt succeeds.
    """
    name, errno = op.replace("-", "_"), _TO_DEVICE[op]
    with watched_ops() as log:
        bench = small(lab)
        addr = KINDS[kind](bench)
        before = pfns_of(bench, addr)
        contents = tokens_of(bench, before[before >= 0])
        with nothing_left(bench):
            log.fail(name, errno, done=when == "after")
            answer = answer_of(bench, addr)
            bench.kernel.settle()
        assert log.failed(name) == 1
        assert answer == errno_name(errno), f"populate_mm answered {answer}"
        assert pfns_of(bench, addr).tolist() == before.tolist(), "pages are elsewhere than before"
        assert tokens_of(bench, before[before >= 0]) == contents, "what they hold has changed"
        assert_released(log)
        assert answer_of(bench, addr) == "ok", "it does not succeed when nothing fails any more"
        assert bench.device_pages(addr, BLOCK_PAGES) == BLOCK_PAGES
    bench.cpu_read(addr, BLOCK_PAGES)


@family(
    "ops.error.populate-mm.{errno}-{often}",
    every(errno=ERRNOS, often=("once", "always")),
    since="1.0",
    profile="device-memory",
    requires=(*_NEEDS, "migrate_on_fault"),
    ref=_FAULT,
)
def test_fault(lab: Lab, errno: str, often: str) -> None:
    """A fault whose populate_mm answers {errno} {often} is served, with the memory where it is or after another try."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = written(bench)
        pagemap_of(bench)
        log.fail("populate_mm", ERRNOS[errno], times=1 if often == "once" else _ALWAYS)
        answered = bench.fault(addr, ACCESS_WRITE).errno
        tried, failed = len(log.of("populate_mm")), log.failed("populate_mm")
        assert not answered, f"the fault is refused with {errno_name(answered or 0)}"
        assert bench.mapped_pages(addr, 1), "it is acknowledged, and nothing is mapped"
        assert failed == (1 if often == "once" else tried), f"of {tried} calls {failed} failed"
        if failed == tried:
            assert not bench.device_pages(addr, BLOCK_PAGES), "no call succeeded, and pages have moved"
        bench.gpu_write(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)


@family(
    "ops.error.request.{errno}",
    every(errno=ERRNOS),
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate", "drm_pagemap"),
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_populate_mm",
)
def test_request(lab: Lab, errno: str) -> None:
    """A program whose request to populate ends with {errno} in the driver hears of it, or not, as the driver states;
    its memory stays.
    """
    stated = frozenset[int]().union(*(errnos for _, errnos in lab.info.refusals.populate.items()))
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = written(bench)
        log.fail("populate_mm", ERRNOS[errno], times=_ALWAYS)
        answered = errno_of(lambda: bench.vm.populate(addr, addr + BLOCK))
        assert answered in {0, *stated, ERRNOS[errno]}, f"it is refused with {errno_name(answered)}"
        assert log.failed("populate_mm"), "populate_mm was not called"
        assert not bench.device_pages(addr, BLOCK_PAGES)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.gpu_read(addr, BLOCK_PAGES)


@family(
    "ops.error.fault.{op}-{often}",
    every(op=_TO_DEVICE, often=("once", "always")),
    since="1.0",
    profile="device-memory",
    requires=(*_BOTH, "migrate_on_fault"),
    ref=_FAULT,
)
def test_fault_inside(lab: Lab, op: str, often: str) -> None:
    """A fault in whose migration {op} fails {often} is served all the same, and every allocation is given back."""
    name = op.replace("-", "_")
    with watched_ops() as log:
        bench = small(lab, thp="never")
        addr = written(bench)
        log.fail(name, _TO_DEVICE[op], times=1 if often == "once" else _ALWAYS)
        bench.gpu_write(addr, BLOCK_PAGES)
        assert log.failed(name)
        bench.cpu_read(addr, BLOCK_PAGES)
        bench.kernel.settle()
        assert_released(log)


# ---- on the way home


@family(
    "ops.error.copy-to-ram.cpu-{kind}-{when}",
    every(kind=("small", "huge"), when=WHEN),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_HOME,
)
def test_cpu(lab: Lab, kind: str, when: str) -> None:
    """If copy_to_ram fails for a CPU ({kind} memory, {when} its work) it gets SIGBUS; all stays on the device, whole,
    and the next touch brings it home.
    """
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench, kind)
        before = pfns_of(bench, addr)
        contents = tokens_of(bench, before)
        with nothing_left(bench):
            log.fail("copy_to_ram", EIO, done=when == "after")
            try:
                home(bench, addr)
                got = 0
            except CpuSignal as signal:
                got = signal.signal
        assert got == _SIGBUS, f"the CPU got signal {got}"
        assert pfns_of(bench, addr).tolist() == before.tolist(), "pages are elsewhere than before"
        assert tokens_of(bench, before) == contents, "what they hold has changed"
        assert not log.of("devmem_release"), "an allocation is released that has pages"
        bench.cpu_read(addr, BLOCK_PAGES)
        assert not bench.device_pages(addr, BLOCK_PAGES)


_SIGBUS: Final = 7
_ATTEMPTS: Final = 3

_AWAY: Final = {"populate-devmem-pfn": ENOMEM, "copy-to-ram": EIO}


@family(
    "ops.error.evict.{op}-{times}",
    every(op=_AWAY, times=("1", "2", "3")),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=_EVICT,
)
def test_evict(lab: Lab, op: str, times: str) -> None:
    """Eviction has three attempts: {op} may fail in two, and with {times} the outcome is told, everything in place."""
    name, failures = op.replace("-", "_"), int(times)
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        before = pfns_of(bench, addr).tolist()
        calls = len(log.of(name))
        log.fail(name, _AWAY[op], times=failures)
        try:
            evicted(devmem_of(log))
            answer = "ok"
        except KernelError as error:
            answer = errno_name(error.errno)
        made = len(log.of(name)) - calls
        if failures < _ATTEMPTS:
            assert answer == "ok", f"it is answered {answer}"
            assert made == failures + 1, f"{made} attempts were made"
            assert not bench.device_pages(addr, BLOCK_PAGES)
        else:
            assert answer == errno_name(_AWAY[op]), f"it is answered {answer}"
            assert made == _ATTEMPTS, f"{made} attempts were made"
            assert pfns_of(bench, addr).tolist() == before, "pages are elsewhere than before"
            assert not log.of("devmem_release"), "an allocation is released that has pages"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.error.evict.locked-page", since="1.0", profile="device-memory", requires=_NEEDS, ref=_EVICT)
def test_evict_locked(lab: Lab) -> None:
    """A page that somebody has locked stays, all others go; after three attempts that is EBUSY, and then none is left
    behind.
    """
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        pfn = int(pfns_of(bench, addr)[3])
        attempts = len(log.of("populate_devmem_pfn"))
        assert bench.memory.folio_trylock(pfn)
        try:
            evicted(devmem_of(log))
            answer = "ok"
        except KernelError as error:
            answer = errno_name(error.errno)
        bench.memory.folio_unlock(pfn)
        assert answer == "EBUSY", f"it is answered {answer}"
        assert len(log.of("populate_devmem_pfn")) - attempts == _ATTEMPTS
        assert bench.device_pages(addr, BLOCK_PAGES) == 1, "other pages are left than the one that is locked"
        assert not log.of("devmem_release")
        evicted(devmem_of(log))
        assert not bench.device_pages(addr, BLOCK_PAGES)
        assert_released(log)
    bench.cpu_read(addr, BLOCK_PAGES)


# ---- while it is mapped


@family(
    "ops.error.device-map.{often}",
    every(often=("once", "always")),
    since="1.0",
    profile="device-memory",
    requires=_BOTH,
    ref=_GET,
)
def test_map(lab: Lab, often: str) -> None:
    """If device_map fails {often} get_pages does: nothing is mapped or held, and contents stay."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        gpusvm = gpusvm_of(log)
        owner = pagemap_of(bench).pagemap.owner
        ctx = GpuSvmCtx(devmem_possible=True, device_private_page_owner=owner)
        log.fail("device_map", EFAULT, times=1 if often == "once" else _ALWAYS)
        with drivers_lock(gpusvm):
            range_ = find_range(gpusvm, addr, ctx)
        with nothing_left(bench):
            assert _got(log, addr, ctx) == "EFAULT"
            assert not range_.pages.valid
            assert range_.pages.dpagemap is None, "the pagemap is held for what could not be mapped"
            assert not log.of("device_unmap"), "what could not be mapped is unmapped"
        if often == "once":
            assert _got(log, addr, ctx) == "ok"
    bench.cpu_read(addr, BLOCK_PAGES)


def _got(log: OpsLog, addr: int, ctx: GpuSvmCtx) -> str:
    gpusvm = gpusvm_of(log)
    with drivers_lock(gpusvm):
        try:
            gpusvm.range_get_pages(find_range(gpusvm, addr, ctx), ctx)
        except KernelError as error:
            return errno_name(error.errno)
    return "ok"


@check("ops.error.device-map.fault", since="1.0", profile="device-memory", requires=_BOTH, ref=_FAULT)
def test_map_fault(lab: Lab) -> None:
    """A fault in which device_map fails once is served in another round, and what it needs is mapped."""
    with watched_ops() as log:
        bench = small(lab)
        addr = on_device(bench)
        log.fail("device_map", EFAULT)
        bench.gpu_write(addr, BLOCK_PAGES)
        assert log.failed("device_map"), "device_map was not called: the GPU has mapped device pages in another way"
        assert bench.mapped_pages(addr, BLOCK_PAGES) == BLOCK_PAGES
    bench.cpu_read(addr, BLOCK_PAGES)


@family(
    "ops.error.peer.{op}",
    every(op=("device-map", "copy-to-ram", "populate-devmem-pfn")),
    since="1.0",
    profile="multi-device",
    requires=_BOTH,
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_remote_to_local",
)
def test_peer(lab: Lab, op: str) -> None:
    """If {op} fails while pages move from one device to another they stay on the first, and nothing is held for it."""
    name, errno = op.replace("-", "_"), {"device-map": EFAULT, "copy-to-ram": EIO}.get(op, ENOMEM)
    with watched_ops() as log:
        bench = small(lab, hardware="dual-p2p", thp="never")
        addr = on_device(bench, device=1)
        before = pfns_of(bench, addr)
        contents = tokens_of(bench, before)
        with nothing_left(bench):
            log.fail(name, errno)
            answer = answer_of(bench, addr)
            bench.kernel.settle()
        assert log.failed(name) == 1
        assert answer == errno_name(errno), f"populate_mm answered {answer}"
        assert pfns_of(bench, addr).tolist() == before.tolist(), "pages are elsewhere than before"
        assert tokens_of(bench, before) == contents, "what they hold has changed"
        mapped = [call for call in log.of("device_map") if call.error is None]
        assert len(mapped) == len(log.of("device_unmap")), "pages stay mapped for the peer"
        assert answer_of(bench, addr) == "ok", "it does not succeed when nothing fails any more"
    bench.cpu_read(addr, BLOCK_PAGES)
