"""Defects of the drivers, and of what closes files and ends processes, that exploring has found: the same schedules now
end well.
"""

from functools import partial

import pytest
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.execution import Execution, execute
from gpusvm.explore.pct import Pct
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()


def run(scenario: str, spec: str, schedule: int, *, failures: int = 0) -> Execution:
    (found,) = find_scenario(scenario)
    walk = RandomWalk(seed=0, first=schedule)
    walk.new_execution()
    world = World(found, spec, drivers=DRIVERS)
    execution = execute(world, walk, failures_max=failures)
    world.kernel.close()
    return execution


@pytest.mark.parametrize(
    ("scenario", "driver", "schedules", "failures"),
    [
        # A fault that the worker had looked up after the flush was mapped when the address space had been cleared.
        pytest.param("close-fault", "nouveau", range(8), 0, id="instance-found-after-flush"),
        # The GPU wrote pages that exit_mmap had freed (quirk no_release).
        pytest.param("exit-threads", "nouveau", range(3, 9), 0, id="no-release-callback"),
        # The device went on writing pages that its own migration had copied (quirk own_migrate_seq).
        pytest.param("close-other-file", "dmirror", (80,), 0, id="write-after-copy"),
        # A file was released while an ioctl on it ran.
        pytest.param("exit-threads", "dmirror", range(3, 6), 0, id="released-in-ioctl"),
        # An evacuation ended at the first object whose process was ending, or that somebody was busy with.
        pytest.param("unplug-exit", "xe", range(4), 0, id="evacuation-mm-gone"),
        pytest.param("shutdown-cpu-write", "xe", (79,), 0, id="evacuation-busy"),
        # A failed DMA mapping left the pages of a chunk locked for ever.
        pytest.param("shutdown-cpu-write", "nouveau", (17, 42), 1, id="evacuation-dma"),
    ],
)
def test_what_was_found_once_is_mended(scenario: str, driver: str, schedules: range, failures: int) -> None:
    for schedule in schedules:
        assert run(scenario, driver, schedule, failures=failures).failure is None


def test_the_gpu_keeps_the_pages_of_a_process_that_has_ended() -> None:
    for schedule in range(60):
        failure = run("exit-threads", "nouveau:quirk.no_release=as_written", schedule).failure
        if failure is not None:
            break
    assert failure is not None
    assert failure.kind == "errno"
    assert "was done though the page was unmapped all the while" in failure.message


def test_a_page_that_stays_on_the_device_names_a_file_that_is_freed() -> None:
    (scenario,) = find_scenario("devices-close")
    found = {}
    for quirk in ("as_written", "fixed"):
        spec = f"dmirror:quirk.freed_file={quirk}"
        campaign = Campaign(partial(World, scenario, spec, drivers=DRIVERS), Pct(seed=3), self_test_every=0)
        found[quirk] = [execution.failure for _, execution in campaign.run(schedules=20)]
    assert found["fixed"] == []
    failure, *_ = found["as_written"]
    assert failure is not None
    assert failure.kind == "use-after-free"
    assert failure.message.startswith("use after free: task 'cpu' reads .fail_alloc of Dmirror at ")
