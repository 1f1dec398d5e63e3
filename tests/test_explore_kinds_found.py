"""Each kind of failure, planted in a shipped driver or in the model, is found in a bundled scenario in a fixed number
of schedules, and says what is wrong; without the plant the same schedules end well.

Uses after free and late work are planted in core/tests/explore/test_explore_planted.py, livelocks in
test_explore_livelocks.py, and what differs from run to run in test_explore_self_test_machine.py.
"""

import re
from errno import ENOSPC
from functools import partial
from typing import Any

import gpusvm_xe.copy
import pytest
from gpusvm.errors import KernelError
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.execution import Failure
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers
from gpusvm_dmirror.mirror import Dmirror
from gpusvm_nouveau.dmem import NouveauDmem
from gpusvm_nouveau.faults import NouveauPipeline
from gpusvm_svmdev.faults import SvmdevFaults
from gpusvm_xe.faults import XeFaults
from gpusvm_xe.garbage import GarbageCollector

DRIVERS = load_drivers()


def explore(name: str, driver: str, schedules: int, *, checked: bool = True) -> tuple[int, Failure] | None:
    """Run so many schedules at most; the number of the first that fails, and its failure without line numbers."""
    (scenario,) = find_scenario(name)
    boot = partial(World, scenario, driver, drivers=DRIVERS, checked=checked)
    campaign = Campaign(boot=boot, scheduler=read_scheduler("pct:depth=3").make(seed=1), self_test_every=0)
    for schedule, execution in campaign.run(schedules=schedules):
        failure = execution.failure
        assert failure is not None
        message = re.sub(r"\.py:\d+", ".py", failure.message)
        return schedule, Failure(kind=failure.kind, invariant=failure.invariant, message=message)
    return None


def locks_for_a_moment(self: SvmdevFaults, job: Any, *, plain: Any = SvmdevFaults.begin) -> bool:
    """Look the file up under its lock, and serve the fault without it."""
    ok: bool = plain(self, job)
    job.vm.lock.unlock()
    return ok


def answers_with_another_errno(self: XeFaults, job: Any, *, plain: Any = XeFaults.lookup) -> bool:
    """Turn an errno of drm_gpusvm into one that no caller expects."""
    try:
        ok: bool = plain(self, job)
    except KernelError as error:
        raise KernelError(ENOSPC) from error
    return ok


def loses_late_faults(self: NouveauPipeline, buffer: Any) -> Any:
    """Empty the buffer again when the interrupt has come, and look at what was there before alone."""
    batch = buffer.drain()
    if batch:
        self.kernel.cond_resched()
        buffer.drain()
    return batch


def polls_for_an_empty_list(self: GarbageCollector) -> None:
    """Wait until somebody has removed all ranges, though nobody does so any more."""
    self.work.disable_sync()
    while len(self):
        self.kernel.cond_resched()


def does_nothing(*_: object) -> None:
    """Be what a driver has forgotten to do."""


PLANTED = {
    "invariant": (
        gpusvm_xe.copy,
        {"copy_contents": does_nothing},
        ("fault-cpu-write", "xe", 0),
        "23",
        (
            "invariant 23 (contents): the page holds new device memory, and version 5 by writer 0 was written last "
            "[p:0x100000000000, pfn 0x10000, task 'kworker/xe_page_fault_work_queue:0']"
        ),
    ),
    "contents": (
        NouveauDmem,
        {"_map_moved": does_nothing},
        ("populate-fault", "nouveau:quirk.migrate_seq=as_written", 6),
        "I-DATA",
        (
            "1 reads did not see the last write; main read page 0x100000000 of p at 218000 ns and found version 1 by "
            "writer 0 in pfn 0x10005 instead of version 5 by writer 0"
        ),
    ),
    "ledger": (
        Dmirror,
        {"fput": does_nothing},
        ("fault-munmap", "dmirror", 0),
        "I-REF",
        "ledger: not given back\n  'dmirror' held by 'file': 1",
    ),
    "lockdep": (
        SvmdevFaults,
        {"begin": locks_for_a_moment, "end": does_nothing},
        ("fault-cpu-write", "svmdev", 0),
        "I-LOCK",
        "gpu0 svmdev: ranges are looked up or removed without the driver's lock 'svmdev_file->lock'",
    ),
    "errno": (
        XeFaults,
        {"lookup": answers_with_another_errno},
        ("fault-munmap", "xe", 0),
        "I-ERRNO",
        (
            "gpu: gpu_write 0 4: xe answered ENOSPC for page 0 without a reason (it never answers so; -ENOSPC: GPU "
            "access of page 0). Pages in reach meanwhile: 0 unmapped, 1 unmapped, 2 unmapped, 3 unmapped. At the same "
            "time: nothing else. Made to fail: nothing."
        ),
    ),
    "deadlock": (
        NouveauPipeline,
        {"take": loses_late_faults},
        ("fault-together", "nouveau", 24),
        "I-PROG",
        """\
deadlock: nothing can run
  task 'main' waits for end of task 'reads'
  task 'reads' waits for completion 'gpu_access'
    operations/accesses.py in _raise
    operations/accesses.py in gpu_together
    explore/world.py in do
    explore/world.py in run_task""",
    ),
    "progress": (
        GarbageCollector,
        {"stop": polls_for_an_empty_list},
        ("close-munmap", "xe", 3),
        "I-PROG",
        """\
no end after 20000 steps of all tasks: closer: close is still not done
  task 'main' waits for end of task 'closer'
  task 'closer' runs
    tests/test_explore_kinds_found.py in polls_for_an_empty_list
    gpusvm_xe/vm.py in close
    explore/world.py in destroy
    explore/world.py in _put_file
    explore/world.py in close
    operations/processes.py in close
    explore/world.py in do
    explore/world.py in run_task""",
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_found_and_nothing_without_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, plants, (scenario, driver, schedule), invariant, message = PLANTED[kind]
    checked = kind != "contents"  # the rule about contents falls before anybody reads
    assert explore(scenario, driver, schedule + 1, checked=checked) is None
    for name, plant in plants.items():
        monkeypatch.setattr(target, name, plant)
    found = explore(scenario, driver, schedule + 1, checked=checked)
    assert found == (schedule, Failure(kind=kind, invariant=invariant, message=message))
