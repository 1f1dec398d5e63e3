"""What executions reach is counted, and what they could have reached is known from the code."""

import pytest
from gpusvm.explore.case import Case
from gpusvm.explore.coverage import STATES_EVERY, Coverage, is_looked_at
from gpusvm.explore.exploring import explore_cases
from gpusvm.explore.scenario import find_scenario
from gpusvm.explore.sites import sites_of, yield_points_of
from gpusvm.plugins import Installed

DRIVERS = ("dmirror", "nouveau", "xe")
NAMES = ("fault-cpu-write-huge", "populate-munmap-part", "home-child-exit", "exit-fault")


def a_case(name, driver):
    (scenario,) = find_scenario(name)
    return Case(scenario=scenario, driver=driver, drivers=Installed(()))


@pytest.fixture(scope="module", params=DRIVERS)
def explored(request):
    (info,) = [info for name, info in Installed(()).registry().items() if name == request.param]
    cases = [a_case(name, request.param) for name in NAMES if not find_scenario(name)[0].refuses(info)]
    return explore_cases(cases, schedules=34, keep_going=True, shrunk=False).results


def line(place):
    return place.partition(" ")[0]


def test_every_yield_point_that_is_reached_is_known(explored):
    """The names by which code yields are told from the source: none that runs may be missing there."""
    for result in explored:
        known = {line(place) for place in result.coverage.known_yields}
        reached = {line(place) for place in result.coverage.yields_reached}
        assert reached - known == set()
        assert len(reached) + len(result.coverage.yields_missed) == len(known)


def files(places):
    return {place.partition(":")[0] for place in places}


def test_some_are_reached_and_some_are_not(explored):
    assert {"mm/rmap_walk.py", "mm/mmu_notifier.py"} <= files(explored[-2].coverage.yields_reached)
    for result in explored:
        coverage = result.coverage
        assert "mm/userfaultfd.py" in files(coverage.yields_missed)
        assert set(coverage.sites_reached) | set(coverage.sites_missed) == coverage.known_sites
        assert "dma.sync" in coverage.sites_missed


def test_states_are_those_of_the_ends_of_one_execution_in_32(explored):
    for result in explored:
        # One that broke has no end at rest.
        assert STATES_EVERY == 32
        assert result.coverage.looked_at == 2 or result.findings
        assert 1 <= len(result.coverage.states) <= 2


def test_an_end_that_is_the_same_is_one_state():
    case = a_case("close-fault", "dmirror")
    (result,) = explore_cases([case], schedules=100).results
    assert result.coverage.looked_at == 4
    assert len(result.coverage.states) < 4


def test_later_ones_are_looked_at_more_seldom():
    numbers = [number for number in range(900) if is_looked_at(number, 32, first=1)]
    assert numbers == [*range(1, 512, 32), *range(513, 900, 128)]
    assert not any(is_looked_at(number, 0) for number in range(3))


def test_what_is_known_of_a_machine():
    world = a_case("fault-munmap", "xe").boot()
    places = yield_points_of(world)
    assert any(place.startswith("gpusvm_xe/vm.py:") and place.endswith(" in close") for place in places)
    assert not any(place.startswith("gpusvm_nouveau/") for place in places)
    assert not any(place.startswith("kernel/") for place in places)
    assert {"xe.copy_to_ram", "alloc.folio"} <= sites_of(world)
    world.kernel.close()


def test_the_document():
    coverage = Coverage(
        sites={"alloc.folio": 3, "driver.own": 2},
        places={("down_read", "mm/cpu.py:250 in fault"): 2, ("join", "explore/execution.py:107 in _run"): 2},
        recorded=2,
        known_sites=frozenset({"alloc.folio", "dma.map"}),
        known_yields=frozenset({"mm/cpu.py:250 in fault", "mm/cpu.py:1000 in other", "mm/cpu.py:300 in one"}),
    )
    coverage.add_state(7)
    coverage.add_state(7)
    assert coverage.to_dict(places=True) == {
        "outcomes": 0,
        "states": {"distinct": 1, "executions": 2},
        "injection_sites": {"reached": {"alloc.folio": 3}, "never": ["dma.map"]},
        "yield_points": {
            "reached": 1,
            "never": 2,
            "executions": 2,
            "reached_places": {"mm/cpu.py:250 in fault": ["down_read"]},
            "never_places": ["mm/cpu.py:300 in one", "mm/cpu.py:1000 in other"],
        },
    }
    assert "never_places" not in coverage.to_dict()["yield_points"]
