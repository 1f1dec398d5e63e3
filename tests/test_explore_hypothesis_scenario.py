"""Hypothesis decides the schedule of a scenario on a driver, and shrinks a bug that Linux had to one preemption."""

import pytest
from gpusvm.conformance.mutants import load
from gpusvm.errors import InputError
from gpusvm.explore import ScenarioError, scenario_program
from gpusvm.explore.hypothesis import given_schedules
from gpusvm.explore.scenario import read_scenarios
from hypothesis import Phase, settings

DISCARD = """
[[scenario]]
name = "discard"
about = "a CPU reads device memory that another discards"
setup = ["map 0 4", "cpu_write 0 4", "populate 0 4"]
tasks.cpu = ["cpu_read 0 4"]
tasks.drop = ["dontneed 0 4"]
end = ["cpu_read 0 4"]
"""


@settings(max_examples=50, print_blob=False, phases=set(Phase) - {Phase.explain})
@given_schedules()
def check(schedule, program):
    schedule.run(program)


def test_a_fault_without_a_reference_is_shrunk():
    (scenario,) = read_scenarios(DISCARD, source="test")
    with load("MM-03").active():
        program = scenario_program(scenario, "dmirror")
        with pytest.raises(ScenarioError) as error:
            check(program=program)
    assert [str(error.value), *error.value.__notes__] == [
        "error ModelError: use after free: migrate_to_ram is called for page 0x1000e, which is free",
        "Failing test case: check(\n    program=program,\n    schedule=Schedule({(1, 29): 1}),\n)",
        "cpu at its choice 29: drop goes on",
        "of 44 choices; all others as without a schedule",
    ]


def test_nothing_is_found_without_the_bug():
    (scenario,) = read_scenarios(DISCARD, source="test")
    check(program=scenario_program(scenario, "dmirror"))


def test_a_program_is_made_of_one_scenario():
    with pytest.raises(InputError) as error:
        scenario_program("all", "dmirror")
    assert str(error.value).startswith("a program is made of one scenario, and 'all' are ")
