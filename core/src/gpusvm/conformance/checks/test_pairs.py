"""Two drivers of different kinds in one machine, which mirror one process: each keeps to what is its own.

Beside the driver under test stands the one of `gpusvm.conformance.partner`, or that of ``--beside``; it has owners, ops
and a page table of its own, as each driver in Linux has. Between the two is no path unless a check says so. The rules
are for every driver, so the profile is not multi-device, but where one maps what lies on the other.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpusvm.conformance.agreement import no_more_than_the_process
from gpusvm.conformance.areas import fork, huge, written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.hand import HandFirst, after_look
from gpusvm.conformance.pair import MINE, THEIRS, both_agree, bring, by, lies_on, mapped, owners, owners_named, pair
from gpusvm.conformance.recorder import recorded
from gpusvm.conformance.small import BLOCK, BLOCK_PAGES, PAGE
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_READ, ACCESS_WRITE
from gpusvm.drm import OwnerList
from gpusvm.errors import CpuSignal, KernelError
from gpusvm.mm.api import (
    MADV_DONTNEED,
    MMU_NOTIFY_MIGRATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

if TYPE_CHECKING:
    from gpusvm.testing import Bench

_FEW: Final = 2
_RW: Final = PROT_READ | PROT_WRITE
_NEEDS: Final = ("explicit_populate",)
_NOTIFIER: Final = "mm/mmu_notifier.c:mn_itree_invalidate"
_OWNER: Final = "mm/hmm.c:hmm_vma_handle_pte; include/linux/mmu_notifier.h:mmu_notifier_range.owner"
_HOME: Final = "mm/memory.c:do_swap_page; include/linux/memremap.h:dev_pagemap_ops.migrate_to_ram"
_TAKE: Final = "mm/migrate_device.c:migrate_vma_collect_pmd"
_FAIL: Final = "lib/fault-inject.c:should_fail; drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem"
_REMOVE: Final = "mm/memremap.c:memunmap_pages; mm/mmu_notifier.c:mmu_interval_notifier_remove"


def _write(bench: "Bench", device: int, addr: int, pages: int = BLOCK_PAGES) -> None:
    with by(bench, device):
        bench.gpu_write(addr, pages)


def _read(bench: "Bench", device: int, addr: int, pages: int = BLOCK_PAGES) -> None:
    with by(bench, device):
        bench.gpu_read(addr, pages)


# ---- what one wrote, the other reads


@check("pair.turns.all-see", since="1.0", ref=_NOTIFIER)
def test_turns(lab: Lab) -> None:
    """The GPUs of two drivers and a CPU that write the same pages in turns each see what the others wrote."""
    bench = pair(lab)
    addr = written(bench)
    for _ in range(2):
        for device in (MINE, THEIRS):
            _read(bench, device, addr)
            _write(bench, device, addr)
        bench.cpu_read(addr, BLOCK_PAGES)
        bench.cpu_write(addr, BLOCK_PAGES)


@check("pair.three.all-see", since="1.0", ref=_NOTIFIER)
def test_three(lab: Lab) -> None:
    """A process that three devices of two drivers mirror is one memory to all of them."""
    bench = pair(lab, hardware="triple-p2p")
    addr = written(bench)
    bring(bench, THEIRS, addr, BLOCK_PAGES // 2)
    for device in (0, 1, 2, 1, 0):
        _read(bench, device, addr, 4)
        _write(bench, device, addr, 4)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.mm.munmap(addr, BLOCK)
    assert [mapped(bench, device, addr) for device in (0, 1, 2)] == [0, 0, 0]


@family("pair.reach.{access}.{size}", every(access=("read", "write"), size=("small", "huge")), since="1.0", ref=_OWNER)
def test_reach(lab: Lab, access: str, size: str) -> None:
    """A {access} of {size} pages that lie on a device of another driver is served, and nothing is lost on the way."""
    bench = pair(lab)
    addr = bring(bench, THEIRS, huge(bench) if size == "huge" else written(bench))
    _write(bench, THEIRS, addr)
    (_read if access == "read" else _write)(bench, MINE, addr)
    assert not lies_on(bench, THEIRS, addr, 1), "a page lies on a device that another, without a path to it, has used"
    both_agree(lab, bench, addr, 1)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("pair.atomic.theirs", since="1.0", profile="atomics", ref="mm/rmap.c:make_device_exclusive")
def test_atomic(lab: Lab) -> None:
    """Atomics on pages that lie on a device of another driver are done, and the others see what they came to."""
    bench = pair(lab)
    addr = bring(bench, THEIRS, written(bench))
    bench.gpu_atomic(addr, _FEW)
    _read(bench, THEIRS, addr, _FEW)
    bench.gpu_atomic(addr, _FEW)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("pair.mixed.one-block", since="1.0", profile="device-memory", requires=_NEEDS, ref=_OWNER)
def test_mixed(lab: Lab) -> None:
    """A block of which each driver was asked for a part, whatever they did, is one block to both GPUs and to CPUs."""
    bench = pair(lab)
    addr = written(bench)
    bench.vms[MINE].populate(addr, addr + 5 * PAGE)
    bench.vms[THEIRS].populate(addr + 5 * PAGE, addr + 11 * PAGE)
    bench.cpu_read(addr + 8 * PAGE)
    both_agree(lab, bench, addr + 3 * PAGE, 4)
    bench.cpu_read(addr, BLOCK_PAGES)


# ---- whose pages are whose


@check("pair.owner.none-of-theirs", since="1.0", ref=_OWNER)
def test_owner(lab: Lab) -> None:
    """A driver names to HMM no owner but its own, so that pages of another driver's device come home to be mapped."""
    bench = pair(lab)
    addr = bring(bench, THEIRS, written(bench))
    with owners_named(bench) as named, recorded(bench) as record:
        _write(bench, MINE, addr, _FEW)
    assert named, "the driver has served a write without a look at the process's pages"
    assert named.isdisjoint(owners(bench, THEIRS)), "the driver takes pages for its own that are another's"
    assert owners(bench, MINE).isdisjoint(owners(bench, THEIRS)), (
        "two drivers have one owner, with no path between them"
    )
    assert all(each.answer == 0 for each in record.homes)
    assert record.homes, "pages of another driver's device were used, and its migrate_to_ram was not called"


@check("pair.owner.migrates-its-own", since="1.0", profile="device-memory", requires=_NEEDS, ref=_TAKE)
def test_migrates_own(lab: Lab) -> None:
    """A driver migrates with an owner of its own: pages on another driver's device are not what it collects."""
    bench = pair(lab)
    addr = bring(bench, THEIRS, written(bench))
    with recorded(bench) as record:
        bench.vms[MINE].populate(addr, addr + BLOCK)
        _read(bench, MINE, addr, _FEW)
    theirs = owners(bench, THEIRS)
    taken = [each for each in record.setups if id(each.owner) in theirs]
    home = [each for each in record.homes if each.answer == 0]
    assert len(taken) <= len(home), "the driver collects pages in the name of the other one's owner"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("pair.notify.their-migration", since="1.0", ref=_OWNER)
def test_their_migration(lab: Lab) -> None:
    """A driver is told that another migrates what it has mapped, and has nothing of it mapped then."""
    bench = pair(lab)
    bring(bench, THEIRS, written(bench))
    theirs = owners(bench, THEIRS)
    addr = written(bench)
    _write(bench, MINE, addr)
    with recorded(bench) as record:
        bench.vms[THEIRS].populate(addr, addr + BLOCK)  # what lies on this device stays there
    told = [each for each in record.callbacks if each.range.event == MMU_NOTIFY_MIGRATE and each.mapped_before]
    assert any(id(each.range.owner) in theirs for each in told), "nobody was told of the migration"
    assert not mapped(bench, MINE, addr), (
        "the migration is another owner's, and skipped: pages that have moved are mapped"
    )
    both_agree(lab, bench, addr, _FEW)


@check("pair.notify.my-migration", since="1.0", profile="device-memory", requires=_NEEDS, ref=_OWNER)
def test_my_migration(lab: Lab) -> None:
    """Another driver is told that this one migrates what it has mapped, and whose migration it is."""
    bench = pair(lab)
    bring(bench, MINE, written(bench))
    addr = written(bench)
    _write(bench, THEIRS, addr)
    with by(bench, THEIRS), recorded(bench) as record:
        bench.vms[MINE].populate(addr, addr + BLOCK)
    told = [each for each in record.callbacks if each.range.event == MMU_NOTIFY_MIGRATE and each.mapped_before]
    assert any(id(each.range.owner) in owners(bench, MINE) for each in told), "nobody was told whose migration it is"
    assert not mapped(bench, THEIRS, addr), "the other device has pages mapped that may have moved"
    both_agree(lab, bench, addr, _FEW)


@check("pair.home.whose-it-is", since="1.0", profile="device-memory", requires=_NEEDS, ref=_HOME)
def test_home(lab: Lab) -> None:
    """A CPU that touches one page on each device has each brought home by its own driver, and the rest is unharmed."""
    bench = pair(lab)
    mine, theirs = bring(bench, MINE, written(bench)), bring(bench, THEIRS, written(bench))
    with recorded(bench) as record:
        bench.cpu_write(mine)
        assert lies_on(bench, THEIRS, theirs) == BLOCK_PAGES, "the other device lost pages by what happened to this one"
        bench.cpu_write(theirs)
    assert [each.answer for each in record.homes] == [0, 0]
    assert not lies_on(bench, MINE, mine, 1)
    assert not lies_on(bench, THEIRS, theirs, 1)
    for addr in (mine, theirs):
        both_agree(lab, bench, addr, _FEW)


@check("pair.take.back-and-forth", since="1.0", profile="device-memory", requires=_NEEDS, ref=_TAKE)
def test_back_and_forth(lab: Lab) -> None:
    """Memory that two drivers bring to their devices in turns is all of what it was, wherever it ends."""
    bench = pair(lab)
    addr = written(bench)
    for device in (MINE, THEIRS, MINE, THEIRS, MINE):
        bench.vms[device].populate(addr, addr + BLOCK)
        _write(bench, device, addr, _FEW)
    bench.cpu_read(addr, BLOCK_PAGES)
    bench.kernel.settle()
    assert not bench.device_pages(addr, BLOCK_PAGES)


@check("pair.looked.they-take-it", since="1.0", ref="include/linux/mmu_notifier.h:mmu_interval_read_retry")
def test_looked(lab: Lab) -> None:
    """What another driver brings to its device just after this one has looked at it is not used where it was."""
    bench = pair(lab, mode="explored", choices=HandFirst(), thp="never")
    addr = written(bench)

    def take() -> None:
        bench.vms[THEIRS].populate(addr, addr + BLOCK)

    with after_look(bench, take) as looked:
        fault = bench.fault(addr, ACCESS_WRITE)
    assert looked.times, "the driver has answered without a look at the process's pages"
    assert not fault.errno, f"a write that the process may do was refused with {fault.errno}"
    both_agree(lab, bench, addr, _FEW)


# ---- what happens to the memory under both


def _munmap(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr, 2 * BLOCK)


def _munmap_middle(bench: "Bench", addr: int) -> None:
    bench.mm.munmap(addr + BLOCK // 2, BLOCK)


def _mprotect(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, 2 * BLOCK, PROT_READ)


def _mprotect_none(bench: "Bench", addr: int) -> None:
    bench.mm.mprotect(addr, 2 * BLOCK, PROT_NONE)


def _dontneed(bench: "Bench", addr: int) -> None:
    bench.mm.madvise(addr, 2 * BLOCK, MADV_DONTNEED)


def _fork(bench: "Bench", addr: int) -> None:
    child = fork(bench)
    first = addr // PAGE
    bench.memory.cpu_access(child, np.arange(first, first + 2 * BLOCK_PAGES), np.ones(2 * BLOCK_PAGES, np.bool_))


def _remap(bench: "Bench", addr: int) -> None:
    bench.mm.mmap(addr, 2 * BLOCK, _RW)


def _mremap(bench: "Bench", addr: int) -> None:
    to = bench.map(2 * BLOCK)
    bench.mm.mremap(addr, 2 * BLOCK, 2 * BLOCK, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=to)
    bench.cpu_read(to, 2 * BLOCK_PAGES)


CHANGES: Final[Mapping[str, Callable[["Bench", int], None]]] = {
    "munmap": _munmap,
    "munmap-middle": _munmap_middle,
    "mprotect": _mprotect,
    "mprotect-none": _mprotect_none,
    "dontneed": _dontneed,
    "fork": _fork,
    "remap": _remap,
    "mremap": _mremap,
}


@family(
    "pair.change.{change}",
    every(change=CHANGES),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref=f"{_NOTIFIER}; mm/memory.c:zap_nonpresent_ptes",
)
def test_change(lab: Lab, change: str) -> None:
    """After {change} of memory of which two drivers have a half each, neither GPU has more than the process."""
    bench = pair(lab)
    addr = written(bench, 2 * BLOCK_PAGES)
    bring(bench, MINE, addr)
    bring(bench, THEIRS, addr + BLOCK)
    _write(bench, MINE, addr)
    _write(bench, THEIRS, addr + BLOCK)
    CHANGES[change](bench, addr)
    for device in (MINE, THEIRS):
        with by(bench, device):
            no_more_than_the_process(bench, addr, 2 * BLOCK_PAGES)
    both_agree(lab, bench, addr + BLOCK - _FEW * PAGE, 2 * _FEW)


@check("pair.unmapped.both-refuse", since="1.0", ref="mm/hmm.c:hmm_vma_walk_hole")
def test_refuse(lab: Lab) -> None:
    """Once memory is unmapped, both drivers refuse the accesses of their GPUs, and neither has it mapped."""
    bench = pair(lab)
    addr = written(bench)
    for device in (MINE, THEIRS):
        _read(bench, device, addr)
    bench.mm.munmap(addr, BLOCK)
    for device in (MINE, THEIRS):
        with by(bench, device):
            errno = bench.fault(addr, ACCESS_READ).errno
            assert errno in bench.machine.drivers[device].info.refusals.access.unmapped
            assert not bench.mapped_pages(addr, BLOCK_PAGES)


# ---- one goes, the other stays


@check("pair.close.theirs", since="1.0", ref=_REMOVE)
def test_close_theirs(lab: Lab) -> None:
    """A GPU is served on what lies on another driver's device, and on what it had, after that one's file is closed."""
    bench = pair(lab)
    addr, other = bring(bench, THEIRS, written(bench)), written(bench)
    _write(bench, MINE, other)
    bench.machine.close(bench.process, THEIRS)
    bench.vms.pop()
    both_agree(lab, bench, addr, _FEW)
    both_agree(lab, bench, other, _FEW)
    bench.cpu_read(addr, BLOCK_PAGES)


@check("pair.remove.theirs", since="1.0", ref=_REMOVE)
def test_remove_theirs(lab: Lab) -> None:
    """A driver goes on when another leaves its device: what was there comes home, and what it has itself stays."""
    bench = pair(lab)
    addr, other = bring(bench, THEIRS, written(bench)), written(bench)
    _write(bench, MINE, other)
    _write(bench, MINE, addr, _FEW)
    bench.vms[THEIRS].populate(addr + BLOCK // 2, addr + BLOCK)
    bench.machine.close(bench.process, THEIRS)
    bench.vms.pop()
    had = mapped(bench, MINE, other)
    bench.machine.remove(THEIRS)
    assert mapped(bench, MINE, other) == had, "a device lost pages because another one's driver has gone"
    both_agree(lab, bench, addr + BLOCK // 2, _FEW)
    bench.cpu_read(addr, BLOCK_PAGES)
    both_agree(lab, bench, other, _FEW)


@check("pair.remove.mine", since="1.0", profile="device-memory", requires=_NEEDS, ref=_REMOVE)
def test_remove_mine(lab: Lab) -> None:
    """A driver that leaves its device harms nothing of another's, and what was on it comes home."""
    bench = pair(lab)
    mine, theirs = bring(bench, MINE, written(bench)), bring(bench, THEIRS, written(bench))
    _write(bench, MINE, mine)
    _write(bench, THEIRS, theirs)
    bench.machine.close(bench.process, MINE)
    bench.machine.remove(MINE)
    assert lies_on(bench, THEIRS, theirs) == BLOCK_PAGES, "the other device lost pages"
    assert mapped(bench, THEIRS, theirs) == BLOCK_PAGES, "the other GPU lost what it has mapped"
    bench.cpu_read(mine, BLOCK_PAGES)
    _write(bench, THEIRS, mine)
    bench.cpu_read(theirs, BLOCK_PAGES)


@check(
    "pair.unplug.mine",
    since="1.0",
    profile="device-memory",
    requires=(*_NEEDS, "unplug"),
    ref="drivers/gpu/drm/drm_drv.c:drm_dev_unplug",
)
def test_unplug(lab: Lab) -> None:
    """A device that is unplugged while another driver's is at work takes nothing from that, nor from the process."""
    bench = pair(lab)
    mine, theirs = bring(bench, MINE, written(bench)), bring(bench, THEIRS, written(bench))
    _write(bench, MINE, mine)
    _write(bench, THEIRS, theirs)
    bench.machine.unplug(MINE)
    assert lies_on(bench, THEIRS, theirs) == BLOCK_PAGES
    _read(bench, THEIRS, mine)
    bench.cpu_read(mine, BLOCK_PAGES)
    bench.cpu_read(theirs, BLOCK_PAGES)


@check("pair.exit.both", since="1.0", profile="device-memory", requires=_NEEDS, ref="mm/mmap.c:exit_mmap")
def test_exit(lab: Lab) -> None:
    """A process that ends with pages on devices of two drivers leaves nothing on either, and nothing mapped."""
    bench = pair(lab)
    mine, theirs = bring(bench, MINE, written(bench)), bring(bench, THEIRS, written(bench))
    _write(bench, MINE, mine)
    _write(bench, THEIRS, theirs)
    bench.machine.processes.remove(bench.process)
    bench.mm.mmput()
    assert [vm.page_table.mapped_pages for vm in bench.vms] == [0, 0]
    for device in (MINE, THEIRS):
        bench.machine.close(bench.process, device)
    bench.kernel.settle()


@check(
    "pair.sleep.system",
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref="kernel/power/suspend.c:suspend_devices_and_enter",
)
def test_sleep(lab: Lab) -> None:
    """What lies on devices of two drivers when the system sleeps is read by both, as it was written, after it."""
    bench = pair(lab)
    mine, theirs = bring(bench, MINE, written(bench)), bring(bench, THEIRS, written(bench))
    _write(bench, MINE, mine)
    _write(bench, THEIRS, theirs)
    bench.machine.sleep(1_000)
    for addr in (mine, theirs):
        both_agree(lab, bench, addr, _FEW)
        bench.cpu_read(addr, BLOCK_PAGES)


@check(
    "pair.sleep.idle",
    since="1.0",
    profile="device-memory",
    requires=("runtime_pm", *_NEEDS),
    ref="drivers/base/power/runtime.c:rpm_idle",
)
def test_idle(lab: Lab) -> None:
    """A device that is idle while another driver's works is as it was when its GPU is used again."""
    bench = pair(lab)
    mine, theirs = bring(bench, MINE, written(bench)), bring(bench, THEIRS, written(bench))
    for _ in range(3):
        bench.kernel.sleep_ns(10_000_000_000)
        _write(bench, THEIRS, theirs, _FEW)
    both_agree(lab, bench, mine, _FEW)
    bench.cpu_read(mine, BLOCK_PAGES)


# ---- room


@check("pair.room.theirs-is-full", since="1.0", ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram")
def test_their_room(lab: Lab) -> None:
    """What another driver puts out of its full memory is read by this one as it was, and this one keeps its own."""
    bench = pair(lab, vram_pages=3 * BLOCK_PAGES, thp="never")
    own, blocks = written(bench), [written(bench) for _ in range(5)]
    _write(bench, MINE, own)
    for addr in blocks:
        bench.vms[THEIRS].populate(addr, addr + BLOCK)
        _write(bench, THEIRS, addr, _FEW)
    assert mapped(bench, MINE, own) == BLOCK_PAGES, "a device lost pages by the pressure on another"
    for addr in blocks:
        _write(bench, MINE, addr, _FEW)
        bench.cpu_read(addr, BLOCK_PAGES)


@check(
    "pair.room.mine-is-full",
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram",
)
def test_my_room(lab: Lab) -> None:
    """A driver whose memory is full takes nothing from another's, which reads whatever had to leave."""
    bench = pair(lab, vram_pages=3 * BLOCK_PAGES, thp="never")
    own, blocks = bring(bench, THEIRS, written(bench)), [written(bench) for _ in range(5)]
    for addr in blocks:
        bench.vms[MINE].populate(addr, addr + BLOCK)
        _write(bench, MINE, addr, _FEW)
    assert lies_on(bench, THEIRS, own) == BLOCK_PAGES, "the other device lost pages by the pressure on this one"
    for addr in blocks:
        _read(bench, THEIRS, addr, _FEW)
        bench.cpu_read(addr, BLOCK_PAGES)


# ---- what fails in one


def _failing(bench: "Bench", act: Callable[[], None]) -> Iterator[str]:
    """Do something once, and once more for each site that it has passed, which fails; the site, after each."""
    injector = bench.kernel.injector
    before = dict(injector.sites)
    act()
    sites = [site for site, passed in injector.sites.items() if passed > before.get(site, 0)]
    assert sites, "nothing of it can fail"
    for site in sites:
        injector.arm(site)
        with suppress(KernelError, CpuSignal):  # its own program is told; what matters here is who else is harmed
            act()
        while site in injector.armed:
            bench.kernel.inject(site)  # it was not passed again
        yield site


@check("pair.failure.theirs", since="1.0", ref=_FAIL)
def test_failure(lab: Lab) -> None:
    """Whatever fails in another driver, while memory goes to its device and home, this one's GPU gets it as it was."""
    bench = pair(lab, thp="never")
    addr = written(bench, _FEW)

    def go() -> None:
        bench.vms[THEIRS].populate(addr, addr + _FEW * PAGE)
        bench.cpu_write(addr)

    for _ in _failing(bench, go):
        _write(bench, MINE, addr, _FEW)
        bench.cpu_write(addr, _FEW)


@check("pair.failure.mine", since="1.0", profile="device-memory", requires=_NEEDS, ref=_FAIL)
def test_failure_mine(lab: Lab) -> None:
    """Whatever fails while a driver brings memory to its device, another's pages and mappings stay what they were."""
    bench = pair(lab, thp="never")
    addr, own = written(bench, _FEW), bring(bench, THEIRS, written(bench, _FEW), _FEW)
    _write(bench, THEIRS, own, _FEW)

    def go() -> None:
        bench.vms[MINE].populate(addr, addr + _FEW * PAGE)
        bench.cpu_write(addr)

    for site in _failing(bench, go):
        assert lies_on(bench, THEIRS, own, _FEW) == _FEW, f"{site} takes pages from another device"
        assert mapped(bench, THEIRS, own, _FEW) == _FEW, f"{site} takes what another device has mapped"
        _write(bench, THEIRS, addr, _FEW)
        bench.cpu_write(addr, _FEW)


# ---- with a path between them, and one list of owners for all drivers: a what-if, as Linux has a list for each


def _with_path(lab: Lab, **options: Any) -> "Bench":
    return pair(lab, hardware="dual-p2p", beside=lab.partner, owners=OwnerList(), thp="never", **options)


@check("pair.path.maps-theirs", since="1.0", profile="multi-device", requires=_NEEDS, ref=_OWNER)
def test_path_maps(lab: Lab) -> None:
    """A driver that has a path to another's device uses the pages there, by its device_map, and gives them back."""
    bench = _with_path(lab)
    addr = bring(bench, MINE, written(bench))
    _write(bench, THEIRS, addr)
    assert lies_on(bench, MINE, addr) == BLOCK_PAGES, "pages left a device that the other has a path to"
    bench.cpu_write(addr, BLOCK_PAGES)
    assert [mapped(bench, device, addr) for device in (MINE, THEIRS)] == [0, 0], "pages that went home are mapped"
    both_agree(lab, bench, addr, _FEW)


@check(
    "pair.path.pushes",
    since="1.0",
    profile="multi-device",
    requires=_NEEDS,
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_remote_to_local",
)
def test_path_pushes(lab: Lab) -> None:
    """Memory that is brought from one driver's device to another's goes there by the hand of the one that has it."""
    bench = _with_path(lab)
    addr = bring(bench, THEIRS, written(bench))
    _write(bench, THEIRS, addr)
    home = bench.kernel.stats.migrated_to_ram_bytes
    bring(bench, MINE, addr)
    bring(bench, THEIRS, addr)
    assert bench.kernel.stats.migrated_to_ram_bytes == home, "pages went through RAM, with a path between the devices"
    both_agree(lab, bench, addr, _FEW)
    bench.cpu_read(addr, BLOCK_PAGES)


@check(
    "pair.path.evicted-under",
    since="1.0",
    profile="multi-device",
    requires=_NEEDS,
    ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram",
)
def test_path_evicted(lab: Lab) -> None:
    """Pages that one driver's device loses for want of room are not mapped by another that had mapped them there."""
    bench = _with_path(lab, vram_pages=3 * BLOCK_PAGES)
    addr = bring(bench, MINE, written(bench))
    _write(bench, THEIRS, addr)
    more = [written(bench) for _ in range(4)]
    for other in more:
        bench.vms[MINE].populate(other, other + BLOCK)
    if not lies_on(bench, MINE, addr):
        assert not mapped(bench, THEIRS, addr), "another device has pages mapped that are somebody else's now"
    bench.cpu_read(addr, BLOCK_PAGES)
    both_agree(lab, bench, addr, _FEW)


@check(
    "pair.path.removed-under", since="1.0", profile="multi-device", requires=_NEEDS, ref="mm/memremap.c:memunmap_pages"
)
def test_path_removed(lab: Lab) -> None:
    """A driver that leaves its device takes home what another has mapped there, and waits for nobody without end."""
    bench = _with_path(lab)
    addr = bring(bench, MINE, written(bench))
    _write(bench, THEIRS, addr)
    bench.machine.close(bench.process, MINE)
    bench.machine.remove(MINE)
    assert not mapped(bench, THEIRS, addr), "another device has pages mapped of a device that is gone"
    _write(bench, THEIRS, addr)
    bench.cpu_read(addr, BLOCK_PAGES)
