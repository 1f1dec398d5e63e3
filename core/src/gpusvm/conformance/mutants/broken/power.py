"""Mistakes with power: nobody woken, references that stay, contents that go with it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.mutant import Swap, gone, instead
from gpusvm.drm import D3COLD

__all__ = ["POWER"]


def _wakes_nobody(_pm: Any) -> AbstractContextManager[None]:
    return nullcontext()


def _refused_is_not_answered(guard: Any) -> Any:
    def respond(pipeline: Any, job: Any, answer: int) -> None:
        if answer:
            job.fault.complete(answer)
        else:
            guard(pipeline, job, answer)

    return respond


def _off_at_once(pm: Any) -> None:
    pm._driver.queues.pause()
    for tile in pm._driver.tiles:
        bos = tile.vram.bos
        for bo in list(bos.lru):
            devmem = getattr(bo.container, "devmem", None)
            if devmem is not None:
                pfns = tile.vram.pfns(bo, devmem.dpagemap.pagemap)
                pm._driver.memory.clear_pages(pfns)
    pm.rpm.excuse = "nobody"
    pm.rpm.power_off(D3COLD)


def _reference_only(pm: Any) -> None:
    pm.rpm.get("system_sleep")


def _asleep_for_ever(pm: Any) -> None:
    pm.rpm.power_on()
    pm.rpm.excuse = None


def _stops_the_worker(guard: Any) -> Any:
    def runtime_suspend(pm: Any, state: str) -> None:
        guard(pm, state)
        pm.device.queues.pause()

    return runtime_suspend


def _whatever_state(_pm: Any, _state: str) -> None:
    """Save nothing."""


POWER: Final = (
    BrokenDriver(
        id="stays-stopped",
        rule="it stops its fault worker when the device falls asleep, and does not start it again",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.pm:IoctlPm.runtime_suspend", _stops_the_worker),),
    ),
    BrokenDriver(
        id="ioctl-wakes-nobody",
        rule="it takes no reference for calls, and copies to a device that sleeps",
        driver="nouveau",
        swaps=(
            Swap("gpusvm_nouveau.pm:IoctlPm.ioctl", instead(_wakes_nobody)),
            Swap("gpusvm_nouveau.pm:IoctlPm.populate", instead(_wakes_nobody)),
        ),
    ),
    BrokenDriver(
        id="leaves-waking-to-others",
        rule="it takes no reference for address spaces, calls and faults",
        driver="xe",
        swaps=(
            Swap("gpusvm_xe.pm:XeRuntimePm.vm_open", gone),
            Swap("gpusvm_xe.pm:XeRuntimePm.vm_close", gone),
            Swap("gpusvm_xe.pm:XeRuntimePm.ioctl", instead(_wakes_nobody)),
            Swap("gpusvm_xe.pm:XeRuntimePm.populate", instead(_wakes_nobody)),
            Swap("gpusvm_xe.pm:XeRuntimePm.fault", instead(_wakes_nobody)),
        ),
    ),
    BrokenDriver(
        id="sleeps-on-contents",
        rule="it falls asleep with pages in its memory, and saves nothing of them",
        driver="xe",
        swaps=(
            Swap("gpusvm_xe.pm:XeRuntimePm.pages_present", gone),
            Swap("gpusvm_xe.pm:XeRuntimePm.pages_gone", gone),
            Swap("gpusvm_xe.pm:XeRuntimePm.vm_open", gone),
            Swap("gpusvm_xe.pm:XeRuntimePm.vm_close", gone),
            Swap("gpusvm_xe.pm:XeRuntimePm.runtime_suspend", instead(_whatever_state)),
        ),
    ),
    BrokenDriver(
        id="refusal-keeps-awake",
        rule="it gives a fault's reference back only where the fault was served",
        driver="nouveau",
        swaps=(Swap("gpusvm_nouveau.faults:NouveauPipeline.respond", _refused_is_not_answered),),
    ),
    BrokenDriver(
        id="vm-keeps-awake",
        rule="it keeps the device awake for address spaces that are closed",
        driver="xe",
        swaps=(Swap("gpusvm_xe.pm:XeRuntimePm.vm_close", gone),),
    ),
    BrokenDriver(
        id="never-sleeps",
        rule="it declares runtime PM, and does not let the device sleep",
        driver="nouveau",
        swaps=(Swap("gpusvm.drm.runtime_pm:RuntimePm.enable", gone),),
    ),
    BrokenDriver(
        id="off-with-contents",
        rule="it lets the system sleep with what processes have in its memory",
        driver="xe",
        swaps=(
            Swap("gpusvm_xe.pm:XeRuntimePm.prepare", instead(_reference_only)),
            Swap("gpusvm_xe.pm:XeRuntimePm.suspend", instead(_off_at_once)),
        ),
    ),
    BrokenDriver(
        id="gpu-stays-paused",
        rule="it does not let the GPU go on after the system has slept",
        driver="xe",
        swaps=(Swap("gpusvm_xe.pm:XeRuntimePm.resume", instead(_asleep_for_ever)),),
    ),
    BrokenDriver(
        id="sleep-keeps-awake",
        rule="it keeps the reference that it took for the system's sleep",
        driver="xe",
        swaps=(Swap("gpusvm_xe.pm:XeRuntimePm.complete", gone),),
    ),
)
"""Drivers whose device is asleep when it must not be, or awake when it need not."""
