"""Steps that footprints call independent may be swapped, on every driver: the machine is the same afterwards."""

from functools import partial

import pytest
from gpusvm.explore import watch
from gpusvm.explore.commute import swaps
from gpusvm.explore.scenario import Operation, Scenario
from gpusvm.explore.watch_log import LOG
from gpusvm.explore.world import World
from gpusvm.plugins import load_drivers
from machine_state import describe

PROGRAMS = {
    "fault-fault-munmap": (["gpu_write 0 3"], ["cpu_write 0 2"], ["munmap 1 2"]),
    "populate-dontneed-mprotect": (["populate 0 4"], ["dontneed 0 2", "cpu_read 0 1"], ["mprotect 0 4 ro"]),
    "apart": (["gpu_write 0 2"], ["cpu_write 4 2"], ["gpu_read 8 2"]),
}


def state(world: World) -> list[str]:
    with LOG.paused():
        return describe(world)


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror", "svmdev", "kfd"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_independent_neighbours_may_be_swapped(driver: str, name: str) -> None:
    scenario = Scenario(
        name=name,
        about="",
        setup=tuple(map(Operation.parse, ("map 0 12", "cpu_write 0 8"))),
        tasks={f"t{i}": tuple(map(Operation.parse, lines)) for i, lines in enumerate(PROGRAMS[name])},
    )
    boot = partial(World, scenario, driver, drivers=dict(load_drivers()))
    for counts in swaps(boot, f"gpusvm_{driver}", state=state, seeds=range(2), pairs=4):
        assert [(each.first.label, each.second.label, each.what) for each in counts.differences] == []
    assert counts.swapped >= 4


def test_a_class_that_nobody_watches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    every = watch._classes
    monkeypatch.setattr(
        watch,
        "_classes",
        lambda packages: {
            cls: fields for cls, fields in every(packages).items() if not cls.__module__.startswith("gpusvm.mm")
        },
    )
    tasks = {
        "gpu": ("gpu_write 0 4", "gpu_read 0 4"),
        "cpu": ("cpu_write 0 4", "cpu_read 0 4", "cpu_write 0 4"),
        "other": ("dontneed 0 4", "cpu_write 0 4"),
    }
    scenario = Scenario(
        name="unwatched",
        about="",
        setup=tuple(map(Operation.parse, ("map 0 4", "cpu_write 0 4"))),
        tasks={name: tuple(map(Operation.parse, lines)) for name, lines in tasks.items()},
    )
    boot = partial(World, scenario, "dmirror", drivers=dict(load_drivers()))
    counts = next(
        counts for counts in swaps(boot, "gpusvm_dmirror", state=state, seeds=range(40), pairs=6) if counts.differences
    )
    assert counts.differences[0].what.startswith(("the state behind both: ", "step ", "the state at the end: "))
