"""Make random sequences of operations for svmdev devices, of several kinds."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

from attrs import define, field
from gpusvm.driver.operations import OperationProfile

from gpusvm_svmdev.uapi import (
    SVMDEV_F_ALLOW_MIXED,
    SVMDEV_F_CHECK,
    SVMDEV_F_DEVMEM_ONLY,
    SVMDEV_F_MIGRATE,
    SVMDEV_F_NO_DEVMEM,
    SVMDEV_F_NO_OWNER,
    SVMDEV_F_READ_ONLY,
    SVMDEV_F_RETRY,
)

__all__ = ["PROFILES"]

_DONTNEED: Final = 4
_HUGEPAGE: Final = 14
_NOHUGEPAGE: Final = 15
_COLLAPSE: Final = 25
_BLOCK: Final = 512
_SLICE_MS: Final = 60
"""Long enough that what follows at once comes within it, on a machine that is emulated; short, as somebody waits."""

_Weights = Mapping[str, int]


def _weights(text: str) -> _Weights:
    """Read how often each operation comes, as a share of the sum."""
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


_FAULTS: Final = "sf 26 sp 6 se 5 sb 3 sr 9 sw 9 sv 3 sd 2 sg 2 sc 3 si 3 sx 3 st 1"
_PROCESS: Final = "w 10 r 6 pm 1 munmap 3 mprot 5 madv 4 mremap 3 fr 2 fw 2 fork 3"
_PLAIN: Final = _weights(f"{_FAULTS} {_PROCESS}")
_PRESSURE: Final = _weights("sf 34 sp 14 sb 2 se 2 sr 9 sw 9 st 3 si 3 sx 2 w 8 r 6 munmap 2 mprot 2 madv 2 fork 2")
_UNPLUG: Final = _weights(f"{_FAULTS} {_PROCESS} su 5")
_CACHE: Final = _weights("sa 12 sz 12 sk 8 sf 20 sp 6 sb 6 se 4 sr 4 sw 4 w 6 r 6 munmap 4 madv 3 st 2 fork 1")
_TIMESLICE: Final = _weights("sl 3 sf 14 sp 4 sb 2 se 2 sv 1 sr 5 sw 5 w 5 r 3 munmap 1 madv 1 si 1")


@define
class _Draft:
    """Write one sequence down; `touched` are pages that a device faulted on, and are likely to be of interest again."""

    chance: Random
    weights: _Weights
    slots: Sequence[int]
    pages: int
    most: int
    devices: int
    words: int = 1
    child: bool = False
    sliced: bool = False
    touched: list[tuple[int, int]] = field(factory=list)
    text: list[str] = field(factory=list)

    @property
    def huge(self) -> bool:
        return self.pages > _BLOCK

    def add(self, *words: object) -> None:
        self.text.append(" ".join(map(str, words)))

    def some(self, count: int) -> None:
        for _ in range(count):
            self.one(self.chance.choices([*self.weights], [*self.weights.values()])[0])

    def one(self, name: str) -> None:
        chance = self.chance
        device, target = chance.randrange(self.devices), chance.randrange(self.devices)
        slot, page = self.where()
        n = chance.randrange(1, min(self.most, self.pages - page) + 1)
        self.words += 2 * self.most
        match name:
            case "sf":
                self.add("sf", device, slot, page, self.flags(), target)
                self.touched.append((slot, page))
            case "sp":
                self.add("sp", device, *self.part(slot))
            case "si" | "pm" if self.huge:
                self.add(*(("si", device) if name == "si" else ("pm",)), slot, chance.choice((0, _BLOCK)), _BLOCK)
            case "sr" | "si":
                self.add(name, device, slot, page, n)
            case "sw":
                self.add("sw", device, slot, page, n, self.words)
            case "se" | "sv" | "sd" | "sc":
                self.add(name, device, slot, page)
            case "sb" | "sk":
                self.add(name, device, chance.choice((0, 0, 1)) if name == "sb" else chance.choice((1, 1, 2, 0)))
            case "sg" | "st" | "su" | "sa" | "sz":
                self.add(name, device)
            case "sx":
                self.add("sx", device, chance.randrange(4), chance.choice((1, 1, 2)))
            case "sl":
                self.add("sl", device, chance.choice((0, _SLICE_MS)))
            case "w" | "fw":
                self.add(name, slot, page, n, self.words)
            case "fork":
                self.fork(slot, page, n)
            case "mprot":
                self.add("mprot", slot, page, n, chance.choice((0, 1, 3, 3)))
            case "madv":
                advice = (_DONTNEED, _DONTNEED, _COLLAPSE, _NOHUGEPAGE) if self.huge else (_DONTNEED,)
                chosen = chance.choice(advice)
                self.add(
                    "madv",
                    *((slot, chance.choice((0, _BLOCK)), _BLOCK) if chosen == _COLLAPSE else (slot, page, n)),
                    chosen,
                )
            case "mremap":
                page, n = (chance.choice((0, _BLOCK)), _BLOCK) if self.huge and chance.random() < 0.5 else (page, n)
                self.add("mremap", slot, page, n, slot + 2, page)
            case _:
                self.add(name, slot, page, n)

    def fork(self, slot: int, page: int, n: int) -> None:
        """Begin or end the child that stays, or have it do something."""
        if not self.child:
            self.add("kf")
        elif self.chance.random() < 0.4:
            self.add("ke")
        else:
            name = self.chance.choice(("kr", "kw", "kp"))
            self.add(name, slot, page, n, *((self.words,) if name == "kw" else ()))
            return
        self.child = not self.child

    def flags(self) -> int:
        """Choose what a fault asks for: mostly little."""
        chance = self.chance
        shares = {
            SVMDEV_F_MIGRATE: 0.5,
            SVMDEV_F_DEVMEM_ONLY: 0.06,
            SVMDEV_F_READ_ONLY: 0.15,
            SVMDEV_F_ALLOW_MIXED: 0.3,
            SVMDEV_F_RETRY: 0.4,
            SVMDEV_F_CHECK: 0.2,
            SVMDEV_F_NO_DEVMEM: 0.04,
            SVMDEV_F_NO_OWNER: 0.06,
        }
        return sum(flag for flag, share in shares.items() if chance.random() < share)

    def where(self) -> tuple[int, int]:
        """Choose a page: one that a device had a fault on, one at the edge of something, or any."""
        chance = self.chance
        if self.touched and chance.random() < 0.35:
            return chance.choice(self.touched)
        if self.huge and chance.random() < 0.2:
            return chance.choice(self.slots), chance.choice((0, 1, 15, 16, _BLOCK - 1, _BLOCK, _BLOCK + 1))
        return chance.choice(self.slots), chance.randrange(self.pages)

    def part(self, slot: int) -> tuple[int, int, int]:
        """Choose what to populate: a whole block, an aligned chunk, or anything."""
        chance = self.chance
        if self.huge and chance.random() < 0.6:
            return slot, chance.choice((0, _BLOCK)), _BLOCK
        size = chance.choice((1, 2, 4, 8, 16))
        page = chance.randrange(self.pages // size) * size
        if chance.random() < 0.2:
            page = min(page + 1, self.pages - size)
        return slot, page, size

    def look(self) -> None:
        """End with where every page is, for the CPU and the devices, what it holds, and what the kernel warned of."""
        for slot in self.slots:
            self.add("pm", slot, 0, self.pages)
            for device in range(self.devices):
                self.add("si", device, slot, 0, self.pages)
        for device in range(self.devices):
            self.add("st", device)
        part = self.pages // 4
        for slot in self.slots:
            for page in range(0, self.pages, part):
                self.add("r", slot, page, part)
        for device in range(self.devices):
            self.add("st", device)
        self.add("warn")


def _small(weights: _Weights, *, devices: int, count: int = 20) -> Callable[[Random], list[str]]:
    def sequence(chance: Random) -> list[str]:
        draft = _Draft(chance, weights, slots=(0, 1), pages=32, most=8, devices=devices)
        draft.add("mmap", 0, 0, 32, 3, 0)
        draft.add("mmap", 1, 0, 32, 3, int(chance.random() < 0.2))
        draft.some(count)
        draft.look()
        return draft.text

    return sequence


def _huge(weights: _Weights, *, devices: int, count: int = 18) -> Callable[[Random], list[str]]:
    def sequence(chance: Random) -> list[str]:
        pages = 2 * _BLOCK
        draft = _Draft(chance, weights, slots=(0,), pages=pages, most=4, devices=devices)
        if chance.random() < 0.2:  # an area that grows: what is inside is older than the huge page
            first = chance.choice((16, 64, 100))
            draft.add("mmap", 0, 0, first, 3, 0)
            draft.add("sf", chance.randrange(devices), 0, chance.randrange(first), chance.choice((0, 1)), 0)
            draft.add("mmap", 0, first, pages - first, 3, 0)
        else:
            draft.add("mmap", 0, 0, pages, 3, 0)
        if chance.random() < 0.85:
            draft.add("madv", 0, 0, pages, _HUGEPAGE)
        draft.some(count)
        draft.look()
        return draft.text

    return sequence


_SMALL_PAGES: Final = 48
_HUGE_PAGES: Final = 1280


def _profile(
    name: str, about: str, sequence: Callable[[Random], list[str]], *, device_pages: int = _SMALL_PAGES, **module: int
) -> OperationProfile:
    """Load the module, and set the driver up, alike."""
    parameters = {"device_pages": device_pages, "one_log": 1, **module}
    return OperationProfile(
        name=name,
        about=about,
        sequence=sequence,
        module="svmdev",
        parameters=tuple(f"{key}={value}" for key, value in parameters.items()),
        settings={key: str(value) for key, value in parameters.items()},
        coherent=bool(parameters.get("coherent")),
    )


PROFILES: Final = (
    _profile("one-base", "one device, two regions of 32 pages, private or shared", _small(_PLAIN, devices=1)),
    _profile(
        "one-thp",
        "one device, two blocks of 2 MiB that may be huge, split, moved",
        _huge(_PLAIN, devices=1),
        device_pages=_HUGE_PAGES,
    ),
    _profile("two-same-base", "two devices that reach each other's memory", _small(_PLAIN, devices=2)),
    _profile(
        "two-same-thp",
        "two devices that reach each other's memory, and blocks that may be huge",
        _huge(_PLAIN, devices=2),
        device_pages=_HUGE_PAGES,
    ),
    _profile("two-diff-base", "two devices with owners of their own", _small(_PLAIN, devices=2), same_owner=0),
    _profile(
        "two-diff-thp",
        "two devices with owners of their own, and blocks that may be huge",
        _huge(_PLAIN, devices=2),
        device_pages=_HUGE_PAGES,
        same_owner=0,
    ),
    _profile("ntf-base", "notifiers of 64 KiB", _small(_PLAIN, devices=2), notifier_size=64 << 10),
    _profile(
        "ntf-thp",
        "notifiers of 1 MiB, smaller than a huge page",
        _huge(_PLAIN, devices=2),
        device_pages=_HUGE_PAGES,
        notifier_size=1 << 20,
    ),
    _profile(
        "samepm-base",
        "pages on the device may move within it",
        _small(_PLAIN, devices=2),
        can_migrate_same_pagemap=1,
    ),
    _profile(
        "samepm-thp",
        "pages on the device may move within it, and blocks that may be huge",
        _huge(_PLAIN, devices=2),
        device_pages=_HUGE_PAGES,
        can_migrate_same_pagemap=1,
    ),
    _profile(
        "pressure-base",
        "devices of 24 pages, whose oldest allocations make room",
        _small(_PRESSURE, devices=2, count=24),
        device_pages=24,
        make_room=1,
    ),
    _profile(
        "pressure-thp",
        "devices with room for one huge page and a little, whose oldest allocations make room",
        _huge(_PRESSURE, devices=2),
        device_pages=640,
        make_room=1,
    ),
    _profile("unplug-base", "devices that are unplugged", _small(_UNPLUG, devices=2)),
    _profile(
        "unplug-thp",
        "devices that are unplugged, and blocks that may be huge",
        _huge(_UNPLUG, devices=2),
        device_pages=_HUGE_PAGES,
    ),
    _profile("coherent-base", "devices whose memory the CPU reaches too", _small(_PLAIN, devices=2), coherent=1),
    _profile(
        "cache-base", "pagemaps in a cache, that a shrinker empties", _small(_CACHE, devices=2, count=26), cached=1
    ),
    _profile("slice-base", "what is on a device stays for some time", _small(_TIMESLICE, devices=2, count=14)),
)
