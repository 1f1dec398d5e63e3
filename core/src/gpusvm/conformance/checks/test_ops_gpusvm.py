"""What core asks of a driver that mirrors range by range (struct drm_gpusvm_ops), and what it answers the driver."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from gpusvm.conformance.areas import AREAS, huge, written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.ops import OpCall, OpsLog, watched_ops
from gpusvm.conformance.ops_scenes import DmaCount, drivers_lock, find_range, gpusvm_of
from gpusvm.conformance.recorder import subscriptions
from gpusvm.conformance.scene import instead
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check
from gpusvm.drm import GpuSvm, GpuSvmCtx
from gpusvm.errors import KernelError, errno_name
from gpusvm.mm.api import (
    MADV_DONTNEED,
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_UNMAP,
    PROT_NONE,
    PROT_READ,
    MmuNotifierRange,
)

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_INVALIDATE: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_notifier_invalidate"
_FIND: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_find_or_insert"
_SIZE: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_chunk_size"
_REMOVE: Final = "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_remove"
_NEEDS: Final = ("drm_gpusvm",)
_NOTIFIER_LOCK: Final = "drm_gpusvm_notifier_lock"


def _mapped(lab: Lab) -> "tuple[Bench, int]":
    bench = small(lab, thp="never")
    addr = written(bench)
    bench.gpu_write(addr, BLOCK_PAGES)
    return bench, addr


# ---- invalidate


def _munmap(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr, BLOCK)


def _munmap_page(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr + 7 * PAGE, PAGE)


def _mprotect(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, BLOCK, PROT_NONE)


def _dontneed(bench: "Bench", addr: int) -> None:
    bench.mm.madvise(addr, BLOCK, MADV_DONTNEED)


CAUSES: Final[Mapping[str, Callable[["Bench", int], None]]] = {
    "munmap": _munmap,
    "munmap-page": _munmap_page,
    "mprotect": _mprotect,
    "dontneed": _dontneed,
}


@family("ops.invalidate.called.{cause}", every(cause=CAUSES), since="1.0", requires=_NEEDS, ref=_INVALIDATE)
def test_called(lab: Lab, cause: str) -> None:
    """For {cause} invalidate is called in a notifier, which may wait, with the notifier lock held for writing and the
    new sequence set.
    """
    with watched_ops() as log:
        bench, addr = _mapped(lab)

        @log.before("invalidate")
        def sequence(call: OpCall) -> str | None:
            subs = bench.mm.notifiers
            assert subs is not None
            seq = call.args[1].notifier.invalidate_seq
            return None if seq == subs.invalidate_seq else "the sequence is that of before"

        begun = len(log.calls)
        CAUSES[cause](bench, addr)
        calls = [call for call in log.some("invalidate") if call.at >= begun]
    assert calls, "what the GPU has mapped changes, and invalidate is not called"
    for call in calls:
        gpusvm, notifier, window = call.args
        assert gpusvm is gpusvm_of(log)
        assert notifier.gpusvm is gpusvm
        assert window.start < notifier.end, "the window is behind the notifier"
        assert notifier.start < window.end, "the window is before the notifier"
        assert call.in_notifier
        assert not call.atomic, "it is called in atomic context"
        assert _NOTIFIER_LOCK in call.written, "the notifier lock is not held for writing"
        assert call.result is None, f"it returned {call.result!r}"


@family("ops.invalidate.unmaps.{cause}", every(cause=CAUSES), since="1.0", requires=_NEEDS, ref=_INVALIDATE)
def test_unmaps(lab: Lab, cause: str) -> None:
    """When invalidate returns ({cause}) no range in the window is mapped for DMA, and none has gone meanwhile."""
    with watched_ops() as log:
        bench, addr = _mapped(lab)

        @log.before("invalidate")
        def remember(call: OpCall) -> None:
            call.seen["ranges"] = _touched(call)

        @log.after("invalidate")
        def compare(call: OpCall) -> str | None:
            if _touched(call) != call.seen["ranges"]:
                return "a notifier must not remove a range: whoever works on it does not see that"
            mapped = [each for each in _touched(call) if call.args[0].drm and each.pages.has_dma_mapping]
            return f"{mapped[0]!r} is still mapped for DMA" if mapped else None

        CAUSES[cause](bench, addr)
        assert any(call.seen.get("ranges") for call in log.some("invalidate")), "no range was in a window"


def _touched(call: OpCall) -> list[Any]:
    _, notifier, window = call.args
    return list(notifier.ranges(max(notifier.start, window.start), min(notifier.end, window.end)))


@family(
    "ops.invalidate.set-unmapped.{cause}",
    every(cause=("munmap", "munmap-page", "mprotect", "dontneed")),
    since="1.0",
    requires=_NEEDS,
    ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_set_unmapped",
)
def test_set_unmapped(lab: Lab, cause: str) -> None:
    """After {cause} the ranges whose memory is unmapped, those and no others, are marked; as partly so where it is."""
    with watched_ops() as log:
        bench, addr = _mapped(lab)

        @log.after("invalidate")
        def marked(call: OpCall) -> str | None:
            window = call.args[2]
            call.seen["ranges"] = _touched(call)
            for each in _touched(call):
                gone = window.event == MMU_NOTIFY_UNMAP
                if each.unmapped is not gone:
                    return f"{each!r} is {'' if each.unmapped else 'not '}marked as unmapped"
                if each.partial_unmap is not (gone and (each.start < window.start or each.end > window.end)):
                    return f"{each!r} is {'' if each.partial_unmap else 'not '}marked as unmapped in part"
            return None

        CAUSES[cause](bench, addr)
        assert any(call.seen.get("ranges") for call in log.some("invalidate")), "no range was in a window"


@check("ops.invalidate.non-blockable", since="1.0", requires=_NEEDS, ref=_INVALIDATE)
def test_non_blockable(lab: Lab) -> None:
    """Where nobody may wait invalidate is not called: the invalidation is refused."""
    with watched_ops() as log:
        bench, addr = _mapped(lab)
        begun = len(log.of("invalidate"))
        window = MmuNotifierRange(bench.mm, addr, addr + BLOCK, MMU_NOTIFY_CLEAR, flags=0)
        refused = bench.memory.invalidate_range_start(window)
        assert refused, "it is not refused"
        assert len(log.of("invalidate")) == begun, "it is called"
    assert bench.mapped_pages(addr, BLOCK_PAGES) == BLOCK_PAGES


@check("ops.invalidate.no-range", since="1.0", requires=_NEEDS, ref=_INVALIDATE)
def test_no_range(lab: Lab) -> None:
    """In a window with no range in it invalidate changes nothing, and no range beside it loses its pages."""
    with watched_ops() as log:
        bench, addr = _mapped(lab)
        before = [each for each in gpusvm_of(log).ranges(addr, addr + BLOCK) if each.pages.has_dma_mapping]
        beside = MmuNotifierRange(bench.mm, addr + BLOCK, addr + 2 * BLOCK, MMU_NOTIFY_CLEAR)
        begun = len(log.of("invalidate"))
        bench.memory.invalidate_range_start(beside)
        bench.memory.invalidate_range_end(beside)
        assert len(log.of("invalidate")) == begun + 1, "the notifier has the window, and was not called"
        after = [each for each in gpusvm_of(log).ranges(addr, addr + BLOCK) if each.pages.has_dma_mapping]
    assert before, "the GPU has nothing mapped"
    assert after == before, f"of {len(before)} ranges {len(after)} are mapped"
    assert bench.mapped_pages(addr, BLOCK_PAGES) == BLOCK_PAGES


# ---- range_find_or_insert


def _gpusvm(lab: Lab, log: OpsLog) -> "tuple[Bench, GpuSvm]":
    return small(lab), gpusvm_of(log)


def _outside(bench: "Bench", gpusvm: GpuSvm) -> int:
    return gpusvm.mm_end + PAGE


def _no_area(bench: "Bench", gpusvm: GpuSvm) -> int:
    addr = written(bench)
    bench.mm.munmap(addr, BLOCK)
    return addr


def _read_only(bench: "Bench", gpusvm: GpuSvm) -> int:
    addr = written(bench)
    bench.mm.mprotect(addr, BLOCK, PROT_READ)
    return addr


def _registers(bench: "Bench", gpusvm: GpuSvm) -> int:
    from gpusvm.mm.api import VM_PFNMAP

    addr = bench.map(BLOCK)
    with bench.mm.mmap_lock.write():
        vma = bench.mm.vma_lookup(addr)
        assert vma is not None
        vma.flags |= VM_PFNMAP
    return addr


REFUSED: Final[Mapping[str, tuple[Callable[["Bench", GpuSvm], int], str]]] = {
    "outside": (_outside, "EINVAL"),
    "no-area": (_no_area, "ENOENT"),
    "read-only": (_read_only, "EPERM"),
    "registers": (_registers, "EIO"),
}


@family("ops.range-find.refused.{what}", every(what=REFUSED), since="1.0", requires=_NEEDS, ref=_FIND)
def test_refused(lab: Lab, what: str) -> None:
    """No range is made for {what}: the driver hears the errno, and no notifier or range is left of it."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        lay, wanted = REFUSED[what]
        addr = lay(bench, gpusvm)
        answer = _found(gpusvm, addr)
        assert answer == wanted, f"it is answered {answer}"
        assert not gpusvm.nr_ranges, "a range is there"
        assert not gpusvm.notifiers(), "a notifier is there without a range"
        assert len(log.of("notifier_alloc")) == len(log.of("notifier_free")), "a notifier is not freed"
        assert len(log.of("range_alloc")) == 0, "a range is allocated"


def _found(gpusvm: GpuSvm, addr: int, ctx: GpuSvmCtx | None = None) -> str:
    with drivers_lock(gpusvm):
        try:
            find_range(gpusvm, addr, ctx)
        except KernelError as error:
            return errno_name(error.errno)
    return "ok"


@check("ops.range-find.mm-gone", since="1.0", requires=_NEEDS, ref=_FIND)
def test_mm_gone(lab: Lab) -> None:
    """Of a process that has ended no range is made (EFAULT)."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        addr = written(bench)
        bench.machine.processes.remove(bench.process)
        bench.mm.mmput()
        bench.kernel.settle()
        answer = _found(gpusvm, addr)
        assert answer == "EFAULT", f"it is answered {answer}"
        bench.machine.close(bench.process)


@check("ops.range-find.no-chunk-fits", since="1.0", requires=_NEEDS, ref=_SIZE)
def test_no_chunk(lab: Lab) -> None:
    """Where the GPU's own area has no room for the smallest chunk no range is made (EINVAL)."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        addr = written(bench)
        with drivers_lock(gpusvm):
            try:
                gpusvm.range_find_or_insert(addr, addr + PAGE, addr + BLOCK, GpuSvmCtx())
                answer = "ok"
            except KernelError as error:
                answer = errno_name(error.errno)
    assert answer == "EINVAL", f"it is answered {answer}"


def _whole(bench: "Bench") -> tuple[int, int]:
    return written(bench), BLOCK


def _half(bench: "Bench") -> tuple[int, int]:
    addr = written(bench)
    bench.mm.munmap(addr + BLOCK // 2, BLOCK // 2)
    return addr, PAGE


def _unaligned(bench: "Bench") -> tuple[int, int]:
    addr = written(bench, 2 * BLOCK_PAGES)
    bench.mm.munmap(addr, PAGE)
    return addr + 2 * PAGE, PAGE


def _beside(bench: "Bench") -> tuple[int, int]:
    return written(bench, 2 * BLOCK_PAGES) + BLOCK, BLOCK


SIZES: Final = {"whole": _whole, "half": _half, "unaligned": _unaligned, "beside": _beside}


@family("ops.range-find.size.{what}", every(what=SIZES), since="1.0", requires=_NEEDS, ref=_SIZE)
def test_size(lab: Lab, what: str) -> None:
    """A range is the largest chunk that fits the area ({what} of a block): aligned, in one window, and found again."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        addr, wanted = SIZES[what](bench)
        with drivers_lock(gpusvm):
            range_ = find_range(gpusvm, addr)
            again = find_range(gpusvm, addr + PAGE if wanted > PAGE else addr)
            vma = bench.mm.vma_lookup(addr)
    chunks = [size for size in gpusvm.chunk_sizes if size <= max(wanted, PAGE)]
    assert range_.size_bytes == chunks[0], f"it has {range_.size_bytes} bytes, and chunks are {gpusvm.chunk_sizes}"
    assert range_.start == addr & -range_.size_bytes, "it is not aligned to its size"
    assert again is range_, "another is found for the same memory"
    assert vma is not None
    assert vma.start <= range_.start < range_.end <= vma.end, "it is larger than the area"
    assert range_.notifier.start <= range_.start < range_.end <= range_.notifier.end, "it crosses its notifier's window"


@check("ops.range-find.beside-another", since="1.0", requires=_NEEDS, ref=_SIZE)
def test_beside_another(lab: Lab) -> None:
    """A new range does not overlap one that is there: a smaller chunk is taken."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        addr = written(bench)
        first = addr + 5 * PAGE
        with drivers_lock(gpusvm):
            small_one = gpusvm.range_find_or_insert(first, first, first + PAGE, GpuSvmCtx())
            other = find_range(gpusvm, addr)
    assert small_one.size_bytes == PAGE
    assert other is not small_one
    assert other.end <= small_one.start, "they overlap"


@check(
    "ops.range-find.pages-present",
    since="1.0",
    requires=_NEEDS,
    ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_check_pages",
)
def test_pages_present(lab: Lab) -> None:
    """Up to the threshold a range is made only where the CPU has every page; the smallest chunk is made anyway."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        ctx = GpuSvmCtx(check_pages_threshold=BLOCK)
        there, holes, none = written(bench), AREAS["every-other"](bench), bench.map(BLOCK)
        with drivers_lock(gpusvm):
            sizes = [find_range(gpusvm, addr, ctx).size_bytes for addr in (there, holes, none)]
    largest = max(size for size in gpusvm.chunk_sizes if size <= BLOCK)
    assert sizes == [largest, gpusvm.chunk_sizes[-1], gpusvm.chunk_sizes[-1]], f"the ranges have {sizes} bytes"


@family(
    "ops.range-find.migrate-devmem.{kind}",
    every(kind=("small", "huge", "shared", "file", "hugetlb")),
    since="1.0",
    requires=_NEEDS,
    ref=_FIND,
)
def test_migrate_devmem(lab: Lab, kind: str) -> None:
    """Whether a range of {kind} memory can go to a device is fixed when it is made: anonymous, and if it is wanted."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        one, two = AREAS[kind](bench), AREAS["small"](bench)
        with drivers_lock(gpusvm):
            wanted = find_range(gpusvm, one, GpuSvmCtx(devmem_possible=True))
            unwanted = find_range(gpusvm, two, GpuSvmCtx())
            again = find_range(gpusvm, two, GpuSvmCtx(devmem_possible=True))
    assert wanted.migrate_devmem is (kind in {"small", "huge"})
    assert unwanted is again
    assert not again.migrate_devmem, "it was made without, and has changed"


# ---- the life of ranges and notifiers


@check("ops.range.window", since="1.0", requires=_NEEDS, ref=_REMOVE)
def test_window(lab: Lab) -> None:
    """The notifier of a window comes with its first range, is subscribed, and goes with its last."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        addr = written(bench, 2 * BLOCK_PAGES)
        assert not gpusvm.notifiers()
        with drivers_lock(gpusvm):
            ranges = [find_range(gpusvm, at) for at in (addr, addr + BLOCK)]
            notifiers = gpusvm.notifiers()
            assert {id(each.notifier) for each in ranges} == {id(each) for each in notifiers}
            assert sum(each.nr_ranges for each in notifiers) == gpusvm.nr_ranges == len(ranges)
            watching = [sub.ops for sub in subscriptions(bench)[0]]
            assert all(each in watching for each in notifiers), "a notifier is not subscribed"
            for range_ in ranges:
                gpusvm.range_remove(range_)
            assert not gpusvm.notifiers(), "the last range is gone, and a notifier is left"
            assert not [sub for sub in subscriptions(bench)[0] if sub.ops in notifiers], "it is still subscribed"
        _assert_paired(log)


def _assert_paired(log: OpsLog) -> None:
    for what in ("range", "notifier"):
        made = [call.result for call in log.of(f"{what}_alloc")]
        freed = [call.args[0] for call in log.of(f"{what}_free")]
        if made and freed:
            assert {id(each) for each in made} == {id(each) for each in freed}, f"{what}s are freed that were not made"
        assert len(freed) == len({id(each) for each in freed}), f"a {what} is freed twice"


@family(
    "ops.range.end.{how}",
    every(how=("close", "exit")),
    since="1.0",
    requires=_NEEDS,
    ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_fini",
)
def test_end(lab: Lab, how: str) -> None:
    """After {how} no range, no notifier, no subscription and no mapping for DMA is left."""
    with watched_ops() as log:
        bench = small(lab, thp="never")
        mapped = DmaCount(bench)
        before = mapped()
        addr = written(bench)
        bench.gpu_write(addr, BLOCK_PAGES)
        gpusvm = gpusvm_of(log)
        assert gpusvm.nr_ranges, "the GPU has memory mapped, and there is no range"
        if how == "exit":
            bench.machine.processes.remove(bench.process)
            bench.mm.mmput()
            bench.kernel.settle()
        bench.machine.close(bench.process)
        bench.process.vms.clear()
        bench.kernel.settle()
        assert not gpusvm.nr_ranges, f"{gpusvm.nr_ranges} ranges are left"
        assert not gpusvm.notifiers(), "notifiers are left"
        assert not subscriptions(bench)[0], "a subscription is left"
        assert mapped() == before, f"{mapped() - before} mappings are left"
        _assert_paired(log)


@check("ops.range.collected", since="1.0", requires=_NEEDS, ref=_REMOVE)
def test_collected(lab: Lab) -> None:
    """A range whose memory was unmapped is gone before the GPU's next access to other memory there is served."""
    with watched_ops() as log:
        bench, addr = _mapped(lab)
        gpusvm = gpusvm_of(log)
        bench.mm.munmap(addr, BLOCK)
        bench.mm.mmap(addr, BLOCK, 3)
        bench.cpu_write(addr, BLOCK_PAGES)
        bench.gpu_write(addr, BLOCK_PAGES)
        left = [each for each in gpusvm.ranges(addr, addr + BLOCK) if each.unmapped]
    assert not left, f"{left[0]!r} is of memory that was unmapped"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.range.locked", since="1.0", requires=_NEEDS, ref="include/drm/drm_gpusvm.h:drm_gpusvm_driver_set_lock")
def test_locked(lab: Lab) -> None:
    """The driver says which lock protects its ranges, and holds it when it looks one up or makes one."""
    with watched_ops() as log:
        bench, gpusvm = _gpusvm(lab, log)
        lock: Any = gpusvm._driver_lock
        assert lock is not None, "the driver has named no lock (drm_gpusvm_driver_set_lock)"
        addr = huge(bench)
        seen = []
        find = gpusvm.range_find_or_insert

        def watched(*args: Any) -> Any:
            seen.append(lock in bench.kernel.current.held)
            return find(*args)

        with instead(gpusvm, "range_find_or_insert", watched):
            bench.gpu_write(addr)
    assert seen, "no range was looked up for a fault"
    assert all(seen), "a range is looked up without the lock"
