"""Do the operations that the real helpers' answers were recorded for, as commands of two devices."""

from collections.abc import Callable, Sequence
from errno import ENOENT
from typing import TYPE_CHECKING, Final

from gpusvm.driver.operations import Answer, OperationHost, OperationTarget
from gpusvm.drm import DMA_BIDIRECTIONAL, DRM_INTERCONNECT_SYSTEM, Devmem, GpuSvmNotifier, GpuSvmRange, PagemapAddrs
from gpusvm.errors import KernelError
from gpusvm.mm.api import MmuNotifierRange

from gpusvm_svmdev.device import device_page
from gpusvm_svmdev.profiles import PROFILES
from gpusvm_svmdev.races import RACES

if TYPE_CHECKING:
    from gpusvm_svmdev.commands import SvmdevCommands, Transfer
    from gpusvm_svmdev.device import Svmdev
    from gpusvm_svmdev.faults import FaultCommand, Stage
    from gpusvm_svmdev.file import SvmdevFile

__all__ = ["OPERATIONS", "SvmdevOperations"]


class SvmdevOperations:
    """Answer the operations on svmdev devices of one sequence. Page numbers count from slot 0."""

    def __init__(self, host: OperationHost) -> None:
        self.host = host
        self.files: list[SvmdevFile] = list(host.vms)  # type: ignore[arg-type]  # what vm_create of svmdev returns
        self._page_shift = host.memory.geometry.page_shift
        self._first = host.address(0, 0)
        every: list[str] = []
        one_log = all(file.device.tunables.one_log for file in self.files)
        self._events: list[list[str]] = [every] if one_log else [[] for _ in self.files]
        for i, file in enumerate(self.files):
            file.log = _Log(file, every if one_log else self._events[i], self._page)
            if one_log:
                file.device.log = _DeviceLog(every)
                file.device.vram.copied = _copied(file.device, every)

    def take_events(self) -> tuple[str, ...]:
        """Return what was logged since the last call, file by file."""
        events = tuple(event for of_file in self._events for event in of_file)
        for of_file in self._events:
            of_file.clear()
        return events

    def execute(self, name: str, numbers: Sequence[int]) -> Answer:
        """Do one operation. KernelError stands for an answer of -1."""
        answer: Answer = getattr(self, name)(*numbers)
        return answer

    def sf(self, dev: int, slot: int, page: int, flags: int, target: int) -> Answer:
        device = self.files[target % len(self.files)].device
        command = self._commands(dev).fault(self.host.address(slot, page), flags, target=device)
        text = [self._stage(stage) for stage in command.stages]
        if not command.errno:
            text.append(self._map(command))
        return Answer(-1 if command.errno else 0, command.errno, payload=" ".join(text))

    def sp(self, dev: int, slot: int, page: int, n: int) -> Answer:
        self._commands(dev).populate(self.host.address(slot, page), n)
        return Answer()

    def se(self, dev: int, slot: int, page: int) -> Answer:
        self._commands(dev).evict(self.host.address(slot, page))
        return Answer()

    def sb(self, dev: int, k: int) -> Answer:
        self._commands(dev).evict_nth(k)
        return Answer()

    def sr(self, dev: int, slot: int, page: int, n: int) -> Answer:
        done = self._commands(dev).read(self.host.address(slot, page), n)
        return self._transfer(done, self.host.words.of_tokens(done.tokens))

    def sw(self, dev: int, slot: int, page: int, n: int, value: int) -> Answer:
        tokens = self.host.words.new_tokens(n, value)
        return self._transfer(self._commands(dev).write(self.host.address(slot, page), tokens), None)

    def sv(self, dev: int, slot: int, page: int) -> Answer:
        self._commands(dev).range_evict(self.host.address(slot, page))
        return Answer()

    def sd(self, dev: int, slot: int, page: int) -> Answer:
        self._commands(dev).drop(self.host.address(slot, page))
        return Answer()

    def sg(self, dev: int) -> Answer:
        self._commands(dev).collect()
        return Answer()

    def sc(self, dev: int, slot: int, page: int) -> Answer:
        return Answer(done=self._commands(dev).scan(self.host.address(slot, page)))

    def si(self, dev: int, slot: int, page: int, n: int) -> Answer:
        """Write down what the pages map to: equal ones, and consecutive ones of a device, counted."""
        runs: list[tuple[int | None, int]] = []
        size = 1 << self._page_shift
        for addr in self._commands(dev).where(self.host.address(slot, page), n):
            if runs:
                first, count = runs[-1]
                if addr == (first + count * size if first is not None and first > 0 else first):
                    runs[-1] = first, count + 1
                    continue
            runs.append((addr, 1))
        return Answer(payload=" ".join(f"{self._place(first)}*{count}" for first, count in runs))

    def st(self, dev: int) -> Answer:
        found = self._commands(dev).stat()
        return Answer(
            payload=f"alloc={found.allocated} rel={found.released} inuse={found.pages_in_use} ranges={found.ranges} "
            f"notifiers={found.notifiers} gc={found.garbage} maps={found.mapped_rows}"
        )

    def su(self, dev: int) -> Answer:
        return Answer(done=self._commands(dev).unplug())

    def sl(self, dev: int, ms: int) -> Answer:
        self._commands(dev).timeslice(ms)
        return Answer()

    def sa(self, dev: int) -> Answer:
        how, serial = self._commands(dev).hold()
        return Answer(payload=f"{how}#{serial}")

    def sz(self, dev: int) -> Answer:
        self._commands(dev).release()
        return Answer()

    def sk(self, dev: int, count: int) -> Answer:
        """Have the shrinker of the device's pagemaps scan, as through debugfs (mm/shrinker_debug.c): 0 does nothing."""
        cache = self.files[dev].device.cache
        if cache is None:
            raise KernelError(ENOENT, "the device's pagemap is in no cache")
        return Answer(done=cache.shrinker.scan_objects(count) if count else 0)

    def sx(self, dev: int, what: int, count: int) -> Answer:
        self._commands(dev).fail(what, count)
        return Answer()

    def _commands(self, dev: int) -> "SvmdevCommands":
        return self.files[dev].commands

    def _page(self, addr: int) -> str:
        return f"{(addr - self._first) >> self._page_shift:x}"

    def _transfer(self, done: "Transfer", payload: str | None) -> Answer:
        return Answer(-1 if done.errno else 0, done.errno, done.done, payload=payload)

    def _stage(self, stage: "Stage") -> str:
        name, what = stage
        if name != "rng":
            return f"{name}({-what[0]})"
        start, end, migrates = what
        return f"rng({self._page(start)},{self._page(end)},{'mig' if migrates else '-'})"

    def _map(self, command: "FaultCommand") -> str:
        """Write down the entries that map a range: equal ones in a row are counted."""
        addrs = command.mapped
        if addrs is None:
            return "map(none)"
        runs: list[tuple[str, int]] = []
        for row in range(len(addrs)):
            entry = f"{self._location(addrs, row)}{addrs.order[row]}"
            if runs and runs[-1][0] == entry:
                runs[-1] = entry, runs[-1][1] + 1
            else:
                runs.append((entry, 1))
        access = "rw" if addrs.direction == DMA_BIDIRECTIONAL else "ro"
        return f"map({access},{','.join(f'{entry}*{count}' for entry, count in runs)})"

    def _location(self, addrs: PagemapAddrs, row: int) -> str:
        if addrs.proto[row] == DRM_INTERCONNECT_SYSTEM:
            return "s"
        return str(device_page(int(addrs.addr[row]), self._page_shift)[0])

    def _place(self, addr: int | None) -> str:
        if addr is None:
            return "-"
        if addr <= 0:
            return "n" if addr else "s"
        device, page = device_page(addr, self._page_shift)
        return f"{device}:{page:x}"


class _Log:
    """Write down what happens to a file as the recorded module does (`FileLog`)."""

    def __init__(self, file: "SvmdevFile", events: list[str], page: Callable[[int], str]) -> None:
        self._file = file
        self._events = events
        self._page = page

    def invalidated(self, notifier: GpuSvmNotifier, mmu_range: MmuNotifierRange) -> None:
        device, page = self._file.device, self._page
        start, end = max(notifier.start, mmu_range.start), min(notifier.end, mmu_range.end)
        owner = "-" if mmu_range.owner is None else "own" if mmu_range.owner is device.owner else "other"
        hit = "".join(
            f";{page(range_.start)}-{page(range_.end)}{'m' if range_.pages.has_dma_mapping else ''}"
            for range_ in notifier.ranges(start, end)
        )
        self._events.append(f"inv({device.number},{page(start)},{page(end)},{mmu_range.event},{owner}{hit})")

    def collected(self, range_: GpuSvmRange, errno: int) -> None:
        kind = "part" if range_.partial_unmap else "whole"
        where = f"{self._page(range_.start)},{self._page(range_.end)}"
        self._events.append(f"gc({self._file.device.number},{where},{kind},{-errno})")


class _DeviceLog:
    """Write down what happens to a device (`DeviceLog`)."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def destroyed(self, device: int, serial: int, *, in_atomic: bool) -> None:
        self._events.append(f"destroy({device},{serial},{int(in_atomic)})")


def _copied(device: "Svmdev", events: list[str]) -> Callable[[Devmem], None]:
    """Write down whether pages that have a timeslice stayed as long as it lasts."""

    def copied(devmem: Devmem) -> None:
        if device.timeslice_ms:
            early = device.kernel.now_ns < devmem.timeslice_expiration_ns
            events.append(f"copy({device.number},{'early' if early else 'late'})")

    return copied


_MODULE: Final = {"same_owner": "1", "notifier_size": "512M", "can_migrate_same_pagemap": "0"}

OPERATIONS = OperationTarget(
    driver="svmdev",
    devices=2,
    operations={
        "sf": ("dev", "slot", "page", "flags", "target"),
        "sp": ("dev", "slot", "page", "n"),
        "se": ("dev", "slot", "page"),
        "sb": ("dev", "k"),
        "sr": ("dev", "slot", "page", "n"),
        "sw": ("dev", "slot", "page", "n", "value"),
        "sv": ("dev", "slot", "page"),
        "sd": ("dev", "slot", "page"),
        "sg": ("dev",),
        "sc": ("dev", "slot", "page"),
        "si": ("dev", "slot", "page", "n"),
        "st": ("dev",),
        "su": ("dev",),
        "sl": ("dev", "ms"),
        "sa": ("dev",),
        "sz": ("dev",),
        "sk": ("dev", "count"),
        "sx": ("dev", "what", "count"),
    },
    start=SvmdevOperations,
    events=("inv", "gc", "copy", "destroy"),
    settings=_MODULE,
    profiles=PROFILES,
    races=RACES,
    race_settings={"device_pages": "16"},
    # What each recording was made with, which its name says.
    settings_by_name=(
        ("*-base.json.gz", {"device_pages": "48"}),
        ("*-thp.json.gz", {"device_pages": "1280"}),
        ("svmdev-two-diff-*", {"same_owner": "0"}),
        ("svmdev-ntf-base*", {"notifier_size": "64K"}),
        ("svmdev-ntf-thp*", {"notifier_size": "1M"}),
        ("svmdev-samepm-*", {"can_migrate_same_pagemap": "1"}),
    ),
)
