"""Make random sequences of operations for two dmirror devices, of several kinds."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final

from attrs import define, field
from gpusvm.driver.operations import COHERENT_AT, OperationProfile

__all__ = ["PROFILES"]

_DONTNEED: Final = 4
_HUGEPAGE: Final = 14
_NOHUGEPAGE: Final = 15
_FAIL_ALLOC: Final = 1
_BLOCK: Final = 512
_HUGE_SHARE: Final = 0.4
_SHARED_SHARE: Final = 0.3

_Weights = Mapping[str, int]


def _weights(text: str) -> _Weights:
    """Read how often each operation comes, as a share of the sum."""
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


_BASE: Final = _weights(
    "w 8 r 6 pm 2 mmap 1 munmap 2 mprot 4 madv 3 mremap 2 fr 3 fw 3 dr 8 dw 8 mtd 12 mts 6 snap 4 ex 4 cex 2 fl 2"
)
_THP: Final = _weights(
    "w 9 r 5 pm 1 munmap 2 mprot 3 madv 2 mremap 3 fr 2 fw 3 dr 6 dw 6 mtd 14 mts 7 snap 3 ex 2 cex 1 fl 2"
)
_FORK: Final = _weights(
    "w 6 r 4 munmap 2 mprot 2 madv 2 fr 3 fw 3 kf 3 ke 1 kr 8 kw 8 kp 2 dr 6 dw 6 mtd 12 mts 4 snap 2 ex 3"
)
_TWO: Final = _weights("w 4 r 3 munmap 1 mprot 2 fw 1 dr 12 dw 12 mtd 16 mts 6 snap 6 ex 10 cex 4 fl 3 dru 4")
_RELEASE: Final = _weights("w 6 r 4 madv 2 fr 2 fw 2 dr 8 dw 6 mtd 16 mts 6 snap 2 ex 3 fl 2 rel 5")
_COHERENT: Final = _weights(
    "w 8 r 6 pm 2 mmap 1 munmap 2 mprot 4 madv 3 mremap 2 fr 3 fw 3 dr 8 dw 8 mtd 16 mts 8 snap 4 ex 4 cex 2 fl 2"
)
_FILE: Final = _weights(
    "w 8 r 8 pm 2 mapf 4 ft 3 pr 3 pw 4 munmap 1 mprot 3 madv 3 mremap 2 fr 3 fw 3 dr 8 dw 8 mtd 8 mts 3 snap 3 ex 4 "
    "fl 1"
)


@define
class _Draft:
    """Write one sequence down: what there is of each slot, and which words were written already."""

    chance: Random
    weights: _Weights
    slots: Sequence[int]
    pages: int
    most: int
    block: bool
    devices: int = 2
    words: int = 1
    text: list[str] = field(factory=list)

    def add(self, *words: object) -> None:
        self.text.append(" ".join(map(str, words)))

    def some(self, count: int) -> None:
        for _ in range(count):
            self.one(self.chance.choices([*self.weights], [*self.weights.values()])[0])

    def one(self, name: str) -> None:
        chance = self.chance
        slot, device = chance.choice(self.slots), chance.randrange(self.devices)
        page, n = self.where(name)
        self.words += 2 * max(self.most, 8)
        match name:
            case "w" | "fw" | "kw":
                self.add(name, slot, page, n, self.words)
            case "r" | "fr" | "kr" | "kp" | "munmap":
                self.add(name, slot, page, n)
            case "pm":
                self.add("pm", slot, page, n)
            case "mmap":
                self.add("mmap", slot, page, n, chance.choice((1, 3, 3)), int(chance.random() < 0.3))
            case "mprot":
                self.add("mprot", slot, page, n, chance.choice((0, 1, 3, 3)))
            case "madv":
                advice = (_DONTNEED, _DONTNEED, _HUGEPAGE, _NOHUGEPAGE) if self.block else (_DONTNEED,)
                self.add("madv", slot, page, n, chance.choice(advice))
            case "mremap":
                other = 1 - slot if self.block else chance.choice((2 + slot, 1 - slot))
                self.add("mremap", slot, page, n, other, page if chance.random() < 0.6 else self.where(name)[0])
            case "kf" | "ke":
                self.add(name)
            case "mapf":
                self.map_file(slot, page, n)
            case "ft":
                self.add("ft", chance.randrange(2), chance.choice((0, 4, 8, 12, 16, 20, page)))
            case "pr":
                self.add("pr", chance.randrange(2), page, n)
            case "pw":
                self.add("pw", chance.randrange(2), page, n, self.words)
            case "rel":
                self.add("rel", device)
            case "fl":
                self.add("fl", device, _FAIL_ALLOC)
            case "dw":
                self.add("dw", device, slot, page, n, self.words)
            case _:
                self.add(name, device, slot, page, n)

    def map_file(self, slot: int, page: int, n: int) -> None:
        chance = self.chance
        shared, offset = int(chance.random() < 0.5), chance.choice((page, page, 0, chance.randrange(16)))
        self.add("mapf", slot, page, n, chance.choice((1, 3, 3)), shared, chance.randrange(2), offset)

    def where(self, name: str) -> tuple[int, int]:
        """Choose a page and a number of pages: anywhere, at the edges of a block, or a whole one."""
        chance = self.chance
        if self.block and name in {"mtd", "mts", "mremap"} and chance.random() < 0.6:
            return chance.choice((0, _BLOCK)), _BLOCK
        if self.block and chance.random() < 0.2:
            edge = chance.choice((0, 1, 448, 480, 500, _BLOCK - 1, _BLOCK, _BLOCK + 1))
            return edge, chance.randrange(1, self.most + 1)
        page = chance.randrange(self.pages)
        return page, chance.randrange(1, min(self.most, self.pages - page) + 1)

    def look(self, slots: Sequence[int]) -> None:
        """End with where every page is, for the CPU and for both devices."""
        for slot in slots:
            self.add("pm", slot, 0, self.pages)
            for device in range(self.devices):
                self.add("snap", device, slot, 0, self.pages)
        self.add("warn")


def _small(weights: _Weights, count: int = 20, devices: int = 2) -> Callable[[Random], list[str]]:
    def sequence(chance: Random) -> list[str]:
        draft = _Draft(chance, weights, slots=(0, 1), pages=16, most=8, block=False, devices=devices)
        draft.add("mmap", 0, 0, 16, 3, 0)
        draft.add("mmap", 1, 0, 16, 3, int(chance.random() < _SHARED_SHARE))
        draft.some(count)
        draft.look((0, 1))
        return draft.text

    return sequence


def _huge(devices: int) -> Callable[[Random], list[str]]:
    def sequence(chance: Random) -> list[str]:
        pages = 2 * _BLOCK
        draft = _Draft(chance, _THP, slots=(0, 0, 0, 0, 0, 1), pages=pages, most=64, block=True, devices=devices)
        draft.add("mmap", 0, 0, pages, 3, 0)
        draft.add("madv", 0, 0, pages, _HUGEPAGE)
        draft.some(16)
        draft.look((0, 1))
        return draft.text

    return sequence


def _release(chance: Random) -> list[str]:
    """Begin with the end of what the devices have: which page a device gives next depends on those it got back."""
    draft = _Draft(chance, _RELEASE, slots=(0, 1), pages=16, most=8, block=False)
    draft.add("rel", 0)
    draft.add("rel", 1)
    draft.add("mmap", 0, 0, 16, 3, 0)
    draft.add("mmap", 1, 0, 16, 3, int(chance.random() < _SHARED_SHARE))
    draft.some(24)
    draft.look((0, 1))
    return draft.text


def _coherent(chance: Random) -> list[str]:
    sequence = _huge(4) if chance.random() < _HUGE_SHARE else _small(_COHERENT, devices=4)
    return sequence(chance)


def _file(chance: Random) -> list[str]:
    draft = _Draft(chance, _FILE, slots=(0, 1), pages=16, most=8, block=False)
    for number in (0, 1):
        draft.add("ft", number, chance.choice((8, 16, 16)))
    for slot in (0, 1):
        draft.map_file(slot, 0, 16)
    draft.some(22)
    draft.look((0, 1))
    for number in (0, 1):
        draft.add("pr", number, 0, 16)
    return draft.text


_SPM: Final = (f"spm_addr_dev0={COHERENT_AT:#x}", f"spm_addr_dev1={COHERENT_AT + (256 << 20):#x}")


def _profile(name: str, about: str, sequence: Callable[[Random], list[str]], *, devices: int = 2) -> OperationProfile:
    coherent = devices > 2  # of the module's devices, the third and fourth
    return OperationProfile(
        name=name,
        about=about,
        sequence=sequence,
        module="test_hmm_repaired",
        parameters=_SPM if coherent else (),
        settings={"quirk.device_page": "fixed", **({"spm": "both"} if coherent else {})},
        coherent=coherent,
        devices=devices,
    )


PROFILES: Final = (
    _profile("base", "two regions of 16 pages, private or shared, one page at a time", _small(_BASE)),
    _profile("thp", "two blocks of 2 MiB that may be huge, split, moved", _huge(2)),
    _profile("fork", "children that end, and one that stays and touches the memory", _small(_FORK)),
    _profile("two-device", "two devices that take the same pages from each other", _small(_TWO, 24)),
    _profile("release", "two devices that give up all their memory now and then", _release),
    _profile("coherent", "two devices whose memory the CPU reaches too, beside the two others", _coherent, devices=4),
    _profile("file", "private and shared mappings of two files that are written, read and truncated", _file),
)
