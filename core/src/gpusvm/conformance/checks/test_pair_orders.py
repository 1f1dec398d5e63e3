"""Two drivers of different kinds at the same time, in a few random orders: ``@1`` is the other's device.

What every order of the steps of two drivers has to leave as it is: all invariants, contents, each driver's own errnos
for what it refuses, locks, and nothing at the end.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from gpusvm.conformance.family import every, family
from gpusvm.conformance.story import told
from gpusvm.conformance.suite import Lab, check

_NOTIFIER: Final = "mm/mmu_notifier.c:mn_itree_invalidate"
_TAKE: Final = "mm/migrate_device.c:migrate_vma_collect_pmd"
_SETUP: Final = ("map 0 4", "cpu_write 0 4")
_END: Final = ("cpu_read 0 4",)

Program = Mapping[str, Sequence[str]]

CONTESTS: Final[Mapping[str, Program]] = {
    "both-write": {"mine": ["gpu_write 0 4"], "theirs": ["gpu_write@1 0 4"], "cpu": ["cpu_write 1 2"]},
    "they-migrate": {"mine": ["gpu_write 0 4"], "theirs": ["populate@1 0 4"], "cpu": ["cpu_write 1 2"]},
    "they-migrate-and-read": {"mine": ["gpu_read 0 4"] * 2, "theirs": ["populate@1 0 4", "gpu_write@1 0 2"]},
    "munmap": {"mine": ["gpu_write 0 4"], "theirs": ["gpu_write@1 0 4"], "cpu": ["munmap 1 2"]},
    "dontneed": {"mine": ["gpu_write 0 4"], "theirs": ["populate@1 0 4"], "cpu": ["dontneed 1 2"]},
    "fork": {"mine": ["gpu_write 0 4"], "theirs": ["populate@1 0 4"], "cpu": ["fork child", "child.cpu_write 1 2"]},
    "they-close": {"mine": ["gpu_write 0 4"], "theirs": ["populate@1 0 4", "close@1"], "cpu": ["cpu_read 0 2"]},
    "i-close": {"mine": ["gpu_write 0 4", "close"], "theirs": ["populate@1 0 4", "gpu_write@1 0 2"]},
}
"""Programs for any driver beside the other."""

DEVICE_CONTESTS: Final[Mapping[str, Program]] = {
    "i-migrate": {"mine": ["populate 0 4"], "theirs": ["gpu_write@1 0 4"], "cpu": ["cpu_write 1 2"]},
    "both-migrate": {"mine": ["populate 0 4"], "theirs": ["populate@1 0 4"], "cpu": ["cpu_write 1 2"]},
    "in-turns": {"mine": ["populate 0 4", "gpu_write 0 2"], "theirs": ["populate@1 0 4", "gpu_write@1 0 2"]},
    "i-shut-down": {"mine": ["populate 0 4", "close", "shutdown"], "theirs": ["gpu_write@1 0 4"]},
    "exit": {"mine": ["populate 0 4"], "theirs": ["populate@1 0 4"], "hand": ["exit"]},
}
"""Programs for a driver that brings memory to its device when asked."""


@family("pair.orders.{contest}", every(contest=CONTESTS), since="1.0", ref=_NOTIFIER)
def test_contest(lab: Lab, contest: str) -> None:
    """In {contest}, with another driver at the same time, every access ends and nothing is lost, whatever the order."""
    told(lab, setup=_SETUP, tasks=CONTESTS[contest], end=_END, beside=[lab.other], devices=2)


@family(
    "pair.orders.{contest}.device",
    every(contest=DEVICE_CONTESTS),
    since="1.0",
    ref=_TAKE,
    profile="device-memory",
    requires=("explicit_populate",),
)
def test_contest_with_memory(lab: Lab, contest: str) -> None:
    """In {contest}, with another driver at the same time, every access ends and nothing is lost, whatever the order."""
    end = () if contest == "exit" else _END
    told(lab, setup=_SETUP, tasks=DEVICE_CONTESTS[contest], end=end, beside=[lab.other], devices=2)


@check(
    "pair.orders.unplug",
    since="1.0",
    profile="device-memory",
    requires=("explicit_populate", "unplug"),
    ref="drivers/gpu/drm/drm_drv.c:drm_dev_unplug",
)
def test_unplug(lab: Lab) -> None:
    """A device that goes while the other driver's faults on what it holds takes nothing with it."""
    told(
        lab,
        setup=(*_SETUP, "populate 0 2"),
        tasks={"theirs": ["gpu_write@1 0 4"], "hand": ["unplug"], "cpu": ["cpu_write 1 1"]},
        end=_END,
        beside=[lab.other],
        devices=2,
    )
