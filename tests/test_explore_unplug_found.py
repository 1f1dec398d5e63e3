"""What exploring found of xe's unplug (docs/case-studies/xe-unplug.md): in the model as written, and not when fixed."""

import pytest
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.case import Case
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())
WARNS = "xe_bo_pci_dev_remove_all: evacuating gpu0 ended with"


def explore(name, spec, schedules):
    (scenario,) = find_scenario(name)
    case = Case(scenario=scenario, driver=spec, drivers=DRIVERS)
    campaign = Campaign(boot=case.boot, scheduler=read_scheduler("pct:depth=3").make(seed=1))
    return next((execution.failure for _, execution in campaign.run(schedules=schedules)), None)


@pytest.mark.parametrize(
    ("quirk", "name", "kind", "invariant", "message"),
    [
        ("evict_dying", "unplug-two-processes", "driver", "xe_bo_pci_dev_remove_all", f"{WARNS} -EFAULT: "),
        ("evict_all_stops", "unplug-two-processes", "driver", "xe_bo_pci_dev_remove_all", f"{WARNS} -ENOSPC: "),
        (
            "pagemap_freed",
            "unplug-close",
            "use-after-free",
            "I-LIFE",
            "use after free: task 'hand' reads .ref of DevPagemap of XePagemap at mm/memremap.py:",
        ),
        (
            "devmem_mm",
            "unplug-exit",
            "use-after-free",
            "I-LIFE",
            "use after free: task 'hand' reads .mmget_not_zero of MmStruct('p', users=0, count=0) at drm/evict.py:",
        ),
        (
            "ioctl_unplug",
            "unplug-open",
            "use-after-free",
            "I-LIFE",
            "use after free: task 'opener' reads .unlock of mutex 'drm_pagemap_cache.lookup_mutex' at ",
        ),
    ],
)
def test_each_defect_of_the_unplug_is_found_as_written(quirk, name, kind, invariant, message):
    failure = explore(name, f"xe:quirk.{quirk}=as_written", 200)
    assert failure is not None
    assert (failure.kind, failure.invariant) == (kind, invariant)
    assert failure.message.startswith(message)


@pytest.mark.parametrize("name", ["unplug-exit", "unplug-two-processes", "unplug-close", "unplug-open"])
def test_nothing_is_found_when_all_are_fixed(name):
    assert explore(name, "xe", 40) is None
