"""Hypothesis decides the schedule of a program, finds a race that is planted in it, and shrinks it."""

import sys
from importlib import import_module

import pytest
from gpusvm.errors import InputError, ModelError
from gpusvm.explore.hypothesis import Schedule, given_schedules, schedules
from gpusvm.kernel import Kernel
from hypothesis import Phase, example, given, settings


class Shared:
    value = 0


def race(choices):
    """Be an error if the other task writes 2 and 3 between two reads."""
    with Kernel(mode="explored", choices=choices) as kernel:
        shared = Shared()

        def writer():
            for value in (1, 2, 3):
                kernel.write_once(shared, "value", value)

        def reader():
            if [kernel.read_once(shared, "value") for _ in range(2)] == [1, 3]:
                raise ModelError("read 1, then 3")

        kernel.spawn(writer, name="writer")
        kernel.spawn(reader, name="reader")
        kernel.settle()


def told(error):
    return [str(error), *error.__notes__]


PLAIN = settings(max_examples=1000, print_blob=False, phases=set(Phase) - {Phase.explain})


@PLAIN
@given_schedules(tasks=2, points=5)
def check(schedule, program):
    schedule.run(program)


def test_a_race_is_found_and_shrunk():
    with pytest.raises(ModelError) as error:
        check(program=race)
    assert told(error.value) == [
        "read 1, then 3",
        "Failing test case: check(\n    program=race,\n    schedule=Schedule({(0, 1): 1, (1, 1): 1}),\n)",
        "writer at its choice 1: reader goes on",
        "reader at its choice 1: writer goes on",
        "of 6 choices; all others as without a schedule",
    ]


def test_a_schedule_can_be_given_as_it_is_printed():
    @PLAIN
    @example(schedule=Schedule({(0, 1): 1, (1, 1): 1}))
    @given(schedule=schedules(deviations_max=1, points=1))
    def run(schedule):
        schedule.run(race)

    with pytest.raises(ModelError) as error:
        run()
    assert told(error.value) == [
        "read 1, then 3",
        "Failing explicit example: run(\n    schedule=Schedule({(0, 1): 1, (1, 1): 1}),\n)",
        "writer at its choice 1: reader goes on",
        "reader at its choice 1: writer goes on",
        "of 6 choices; all others as without a schedule",
    ]


def test_failures_and_data_are_drawn_too():
    def program(choices):
        with Kernel(mode="explored", choices=choices) as kernel:
            kernel.explore_failures(failures_max=1)
            if kernel.choose(3, "which page") == 2 and kernel.inject("alloc"):
                raise ModelError("page 2 was not allocated")

    with pytest.raises(ModelError) as error:
        check(program=program)
    assert told(error.value) == [
        "page 2 was not allocated",
        "Failing test case: check(\n    program=program,\n    schedule=Schedule({('data', 0): 2, ('data', 1): 1}),\n)",
        "data 0: which page is 2 of 3",
        "data 1: alloc fails",
        "of 2 choices; all others as without a schedule",
    ]


def test_outside_of_hypothesis_a_schedule_is_run_as_well():
    schedule = Schedule({(0, 1): 1, (1, 1): 1})
    with pytest.raises(ModelError, match=r"^read 1, then 3$"):
        schedule.run(race)
    assert repr(schedule) == "Schedule({(0, 1): 1, (1, 1): 1})"
    Schedule({}).run(race)


@pytest.mark.parametrize("deviations", [{(-1, 0): 1}, {("later", 0): 1}, {(0, -1): 1}, {(0, 0): 0}])
def test_what_is_no_schedule_is_refused(deviations):
    with pytest.raises(InputError) as error:
        Schedule(deviations)
    ((moment, choice),) = deviations.items()
    assert str(error.value) == (
        "a schedule takes an alternative, from 1 on, at a choice, from 0 on, of a task, from 0 on, of 'next' or of "
        f"'data': got {moment}: {choice}"
    )


def test_without_hypothesis_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "gpusvm.explore.hypothesis")
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ModuleNotFoundError) as error:
        import_module("gpusvm.explore.hypothesis")
    assert str(error.value) == (
        "gpusvm.explore.hypothesis needs the package hypothesis: install gpusvm-core[hypothesis]"
    )
