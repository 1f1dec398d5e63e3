"""Mistakes where there is more than one: devices, files, processes."""

from typing import Any, Final

from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, instead

__all__ = ["DEVICES"]


def _first_file_only(guard: Any) -> Any:
    # Where the process has a notifier already, there seems to be no need for another.
    def start(svmm: Any, range_: Any) -> int:
        first = svmm.mm.notifiers.classic[-1].invalidate_range_start.__self__
        return int(guard(svmm, range_)) if first is svmm else 0

    return start


def _others_of_the_process(guard: Any) -> Any:
    def close(svmm: Any) -> None:
        others = [each.invalidate_range_start.__self__ for each in svmm.mm.notifiers.classic]
        guard(svmm)
        for other in others:
            guard(other)

    return close


def _first_device(guard: Any) -> Any:
    def populate(device: Any, _dpagemap: Any, start: int, end: int, mm: Any, timeslice_ms: int) -> None:
        first = next((each for each in device.host.peers if isinstance(each, type(device))), device)
        guard(first, first.dpagemap, start, end, mm, timeslice_ms)

    return populate


def _whosever(_memory: Any, _table: Any, mask: int, _owner: object) -> int:
    return mask


def _any_instance(guard: Any) -> Any:
    # One table of contexts for all processes: who comes last has the entry.
    def find(device: Any, faults: Any) -> Any:
        found = guard(device, faults)
        last = next(reversed(list(device.svmms.values())), None)
        return dict.fromkeys(found, last)

    return find


DEVICES: Final = (
    BrokenDriver(
        id="first-file-hears",
        rule="it subscribes the first file of a process, and not those after it",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.svmm:NouveauSvmm.invalidate_range_start", _first_file_only),),
    ),
    BrokenDriver(
        id="closes-others",
        rule="it closes all that a process has open with the first file that is closed",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.svmm:NouveauSvmm.close", _others_of_the_process),),
    ),
    BrokenDriver(
        id="populates-first-device",
        rule="it brings everything to the first of its devices",
        driver="svmdev",
        swaps=(Swap("gpusvm_svmdev.device:Svmdev.populate_mm", _first_device),),
    ),
    BrokenDriver(
        id="owner-unasked",
        rule="it takes every device's pages for its own, with a path to them or not",
        driver="nouveau",
        swaps=(Swap("gpusvm.mm.hmm:owned_by", instead(_whosever)),),
    ),
    BrokenDriver(
        id="last-address-space",
        rule="it serves every fault in the address space that was opened last",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.device:NouveauDevice.find", _any_instance),),
    ),
)
"""Drivers that were tried with one device, one file, one process."""
