"""Drivers that are broken so that the checks of two drivers in one machine have something to find."""

from gpusvm.conformance.mutants import BROKEN
from gpusvm.conformance.mutants.mutant import Swap, gone, replaced
from gpusvm.mm.api import MMU_NOTIFY_MIGRATE


def _names_theirs(guard):
    def ctx(pipeline, flags):
        made = guard(pipeline, flags)
        object.__setattr__(made, "device_private_page_owner", pipeline.device.host.peers[1].pgmap.owner)
        return made

    return ctx


def _migrates_theirs(guard):
    def populate_mm(device, *arguments):
        device.pgmap.owner = device.host.peers[1].pgmap.owner
        return guard(device, *arguments)

    return populate_mm


def _skips_every_migration(guard):
    def invalidate(mirror, sub, mmu_range, cur_seq):
        return mmu_range.event == MMU_NOTIFY_MIGRATE or guard(mirror, sub, mmu_range, cur_seq)

    return invalidate


BREAKS = {
    "names-theirs": ("svmdev", (Swap("gpusvm_svmdev.faults:SvmdevFaults._ctx", _names_theirs),)),
    "migrates-theirs": ("svmdev", (Swap("gpusvm_svmdev.device:Svmdev.populate_mm", _migrates_theirs),)),
    "skips-every-migration": ("dmirror", (Swap("gpusvm_dmirror.mirror:Dmirror.invalidate", _skips_every_migration),)),
    "maps-nothing": ("svmdev", (Swap("gpusvm_svmdev.file:SvmdevFile.map", gone),)),
    "stays-on-removal": ("svmdev", (Swap("gpusvm_svmdev.device:Svmdev.evict", gone),)),
    "xe-copies-nothing": ("xe", (Swap("gpusvm_xe.copy:XeDevmemOps.copy_to_ram", gone),)),
    **{name: (broken.driver, broken.swaps) for name, broken in BROKEN.items()},
}


def active(name):
    driver, swaps = BREAKS[name]
    return replaced(swaps, by=name, of=driver)
