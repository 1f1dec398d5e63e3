"""Small programs of several tasks, in some dozens of orders each: whatever the order, no rule of the kernel is broken.

The orders are the same in every run. What the mm of Linux as written breaks by itself is no rule of a driver's.
"""

from collections.abc import Callable, Iterator
from typing import Final

from attrs import frozen

from gpusvm.conformance.explored import is_of_the_mm
from gpusvm.conformance.suite import Lab, Profile, check
from gpusvm.explore.case import Case
from gpusvm.explore.chunk import Chunk, run_chunk
from gpusvm.explore.execution import Failure
from gpusvm.explore.scenario import find_scenario

SCHEDULERS: Final = (("pct:depth=3", 25), ("random", 15))
"""What decides about the orders, and in how many of each scenario."""


@frozen(kw_only=True)
class Orders:
    """Name a bundled scenario, and how many failures may be injected while it runs."""

    scenario: str
    failures: int = 0
    ref: str


ORDERS: Final = (
    Orders(scenario="fault-two-streams", failures=1, ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages"),
    Orders(scenario="iommu-fault", failures=1, ref="drivers/gpu/drm/drm_gpusvm.c:__drm_gpusvm_unmap_pages"),
    Orders(scenario="fault-cpu-write-huge", ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_hmm_pfn_to_order"),
    Orders(scenario="fault-mprotect", ref="mm/hmm.c:hmm_range_fault"),
    Orders(scenario="fault-dontneed", ref="mm/mmu_notifier.c:mmu_interval_read_retry"),
    Orders(scenario="fault-three", ref="mm/mmu_notifier.c:mmu_interval_read_begin"),
    Orders(scenario="fault-munmap-part", ref="mm/mmu_notifier.c:mmu_interval_read_begin"),
    Orders(scenario="fault-collapse", ref="mm/khugepaged.c:collapse_huge_page"),
    Orders(scenario="atomic-block", ref="drivers/gpu/drm/drm_pagemap.c:__drm_pagemap_migrate_to_ram"),
    Orders(scenario="home-two-threads", ref="mm/memory.c:do_swap_page"),
    Orders(scenario="home-two-threads", failures=1, ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram"),
    Orders(scenario="home-discard", ref="mm/memory.c:do_swap_page"),
    Orders(scenario="cpus-drain", ref="mm/memory.c:do_swap_page"),
    Orders(scenario="evict-two-processes", ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram"),
    Orders(scenario="evict-exit-other", ref="drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_evict_svm_bo"),
    Orders(scenario="devices-populate", ref="drivers/gpu/drm/xe/xe_svm.c:xe_drm_pagemap_populate_mm"),
    Orders(scenario="devices-read-part", ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_get_pages"),
    Orders(scenario="devices-read-part", failures=1, ref="drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_evict"),
    Orders(scenario="devices-take-part", failures=1, ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem"),
    Orders(scenario="populate-late-clear", ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_sys_to_dev"),
    Orders(scenario="devices-late-clear", ref="drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_remote_to_local"),
    Orders(scenario="close-munmap", ref="mm/mmu_notifier.c:mmu_interval_notifier_remove"),
    Orders(scenario="close-fault", ref="drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_svmm_fini"),
    Orders(scenario="exit-swap", ref="drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_cpu_invalidate_pagetables"),
    Orders(scenario="shutdown-cpu-write", ref="drivers/gpu/drm/nouveau/nouveau_dmem.c:nouveau_dmem_fini"),
)


def _failed(case: Case, scheduler: str, schedules: int) -> Iterator[tuple[int, Failure]]:
    """Yield what breaks in the orders, the first, and whatever there is if the first is of the mm alone."""
    for keep_going in (False, True):
        # What an exploration says besides of the code, and of what it has reached of that, nobody asks here.
        came = run_chunk(
            Chunk(
                campaign=0,
                case=case,
                scheduler=scheduler,
                seed=1,
                first=0,
                schedules=schedules,
                deadline_s=None,
                keep_going=keep_going,
            )
        )
        if came.interrupted:
            raise KeyboardInterrupt
        failed = [(number, execution.failure) for number, execution, _ in came.failed]
        yield from ((at, each) for at, each in failed if each is not None and not is_of_the_mm(each.invariant))
        if not failed:
            return


def _check_of(orders: Orders) -> Callable[[Lab], None]:
    (scenario,) = find_scenario(orders.scenario)

    def run(lab: Lab) -> None:
        for scheduler, schedules in SCHEDULERS:
            case = Case(
                scenario=scenario,
                driver=lab.driver,
                drivers=lab.drivers,
                quirks=lab.quirks,
                failures_max=orders.failures,
            )
            for schedule, failure in _failed(case, scheduler, schedules):
                raise AssertionError(f"in schedule {schedule} of {scheduler} ({failure.kind}): {failure.message}")

    failing = f".{orders.failures}-failure" if orders.failures else ""
    what = "and one allocation, mapping or copy fails" if orders.failures else "and nothing fails"
    run.__doc__ = f"Whatever the order of steps, no rule is broken where {scenario.about}, {what}."
    run.__name__ = f"test_{orders.scenario.replace('-', '_')}{'_failing' if orders.failures else ''}"
    run.__qualname__ = run.__name__
    devmem = {"device_memory", "explicit_populate", "eviction"} & set(scenario.needs)
    profile: Profile = "atomics" if "atomics" in scenario.needs else "device-memory" if devmem else "core"
    made = check(
        f"orders.{orders.scenario}{failing}", since="1.0", profile=profile, requires=scenario.needs, ref=orders.ref
    )
    return made(run)


for _orders in ORDERS:
    _one = _check_of(_orders)
    globals()[_one.__name__] = _one
del _one
