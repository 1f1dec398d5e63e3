"""Mistakes of drivers that are told where memory should be."""

from typing import Any, Final

from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, gone

__all__ = ["ADVICE"]

_BLOCK: Final = 16 * 4096


def _prefetch_alone(guard: Any) -> Any:
    def set_attributes(file: Any, start: int, end: int, attributes: Any) -> None:
        if attributes.preferred_loc is None:
            guard(file, start, end, attributes)

    return set_attributes


def _whole_blocks(guard: Any) -> Any:
    # A range is made for what is not cut, so nothing has to be split.
    def set_attributes(file: Any, start: int, end: int, attributes: Any) -> None:
        if attributes.preferred_loc is not None:
            start, end = start & -_BLOCK, (end + _BLOCK - 1) & -_BLOCK
        guard(file, start, end, attributes)

    return set_attributes


def _first_said(guard: Any) -> Any:
    def set_(vm: Any, vma: Any, what: Any, dpagemap: Any) -> bool:
        return vma.attr.preferred.devmem_fd == 0 and bool(guard(vm, vma, what, dpagemap))

    return set_


def _always_new(guard: Any) -> Any:
    def set_(vm: Any, vma: Any, what: Any, dpagemap: Any) -> bool:
        guard(vm, vma, what, dpagemap)
        return True

    return set_


def _rest_lost(guard: Any) -> Any:
    def cut(prange: Any, start: int, end: int, inserted: list[Any], remapped: list[Any], at: int) -> None:
        guard(prange, start, end, [], remapped, at)

    return cut


def _not_from_ram(guard: Any) -> Any:
    def populate(file: Any, start: int, end: int) -> int:
        shift = file.pdd.device.page_shift
        prange = file.process.svms.from_addr(start >> shift)
        if prange is not None and prange.preferred_loc == 0:
            return 0
        return int(guard(file, start, end))

    return populate


ADVICE: Final = (
    BrokenDriver(
        id="deaf-to-advice",
        rule="it takes what a program says of a preferred location, and does nothing with it",
        driver="kfd",
        swaps=(Swap("gpusvm_kfd.process:set_attributes", _prefetch_alone),),
    ),
    BrokenDriver(
        id="advice-for-blocks",
        rule="it gives a whole block the location that was said of a part",
        driver="kfd",
        swaps=(Swap("gpusvm_kfd.process:set_attributes", _whole_blocks),),
    ),
    BrokenDriver(
        id="first-advice-only",
        rule="it heeds the first location that it is told, and none after it",
        driver="xe",
        swaps=(Swap("gpusvm_xe.madvise:_set", _first_said),),
    ),
    BrokenDriver(
        id="advice-always-new",
        rule="it unmaps what is where it should be, when it is told so again",
        driver="xe",
        swaps=(Swap("gpusvm_xe.madvise:_set", _always_new),),
    ),
    BrokenDriver(
        id="advice-unchecked",
        rule="it takes the number of any device for one that there is",
        driver="kfd",
        swaps=(Swap("gpusvm_kfd.attributes:Attributes.check", gone),),
    ),
    BrokenDriver(
        id="advice-over-populate",
        rule="it does not bring memory to the device that was said to be better in RAM",
        driver="kfd",
        swaps=(Swap("gpusvm_kfd.process:KfdFile.populate", _not_from_ram),),
    ),
    BrokenDriver(
        id="advice-loses-rest",
        rule="it cuts a range for what a program says of a part, and loses sight of the rest",
        driver="kfd",
        swaps=(Swap("gpusvm_kfd.attributes:_cut", _rest_lost),),
    ),
)
"""Drivers whose programs' wishes came in later."""
