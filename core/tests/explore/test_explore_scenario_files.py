"""Scenario files: what is read, and the one line that each mistake gets."""

import pytest
from gpusvm.errors import InputError
from gpusvm.explore.operation import MAIN_PROCESS, OPERATIONS, Operation, bind
from gpusvm.explore.scenario import bundled, find_scenario, read_scenarios

_SPAN = ["first", "pages"]

GOOD = """
[[scenario]]
name = "good"
about = "nothing happens"
setup = ["map 0 4 ro", "fork child"]
tasks.one = ["child.cpu_read@1 0 2"]
tasks.two = ["gpu_together write 0 1"]
end = ["idle 3", "ioctl snap"]
devices = 2
settings.xe = "tries=2"
needs = ["eviction"]
"""


def test_a_file_is_read() -> None:
    (scenario,) = read_scenarios(GOOD, source="it")
    assert [str(each) for each in scenario.operations] == [
        "map 0 4 ro",
        "fork child",
        "child.cpu_read@1 0 2",
        "gpu_together write 0 1",
        "idle 3",
        "ioctl snap",
    ]
    step = bind(scenario.tasks["one"][0])
    assert (step.kind.name, step.process, step.file, step.args) == ("cpu_read", "child", 1, (0, 2))
    assert bind(scenario.setup[0]).args == (0, 4, "ro")
    assert bind(scenario.end[1]).args == ("snap",)


def test_what_is_written_is_read_again() -> None:
    for scenario in (*bundled(), *read_scenarios(GOOD, source="it")):
        assert read_scenarios(scenario.to_toml(), source=scenario.source) == [scenario]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[scenario]]", "[[scenarios]]", "it: expected [[scenario]] tables and nothing else"),
        (
            "tasks.one",
            "taks.one",
            "it: scenario[0]: top level: unknown key 'taks', did you mean 'tasks'?",
        ),
        (
            "child.cpu_read@1 0 2",
            "child.cpu_raed 0 2",
            "it: scenario[0].tasks.one[0]: unknown operation 'cpu_raed', did you mean 'cpu_read'?",
        ),
        (
            '["child.cpu_read@1 0 2"]',
            "[]",
            "it: scenario[0]: 'good' needs at least one task, and each task an operation",
        ),
        ("child.cpu_read@1 0 2", "", "it: scenario[0].tasks.one[0]: expected an operation, got an empty line"),
        (
            "child.cpu_read@1 0 2",
            ".cpu_read 0 2",
            "it: scenario[0].tasks.one[0]: operation '.cpu_read 0 2': expected [PROCESS.]NAME[@FILE], got '.cpu_read'",
        ),
        (
            "child.cpu_read@1 0 2",
            "x@y 0",
            "it: scenario[0].tasks.one[0]: operation 'x@y 0': expected [PROCESS.]NAME[@FILE], got 'x@y'",
        ),
        (
            "child.cpu_read@1 0 2",
            "cpu_read 0",
            "it: scenario[0].tasks.one[0]: operation 'cpu_read 0': expected 'cpu_read FIRST PAGES'",
        ),
        (
            "child.cpu_read@1 0 2",
            "munmap 0 0",
            "it: scenario[0].tasks.one[0]: operation 'munmap 0 0': PAGES: expected a whole number, 1 or more, got '0'",
        ),
        (
            "map 0 4 ro",
            "map 0 4 wo",
            "it: scenario[0].setup[0]: operation 'map 0 4 wo': PROT: expected one of rw, ro, none, got 'wo'",
        ),
        (
            "map 0 4 ro",
            "map 0 4 ro 1",
            "it: scenario[0].setup[0]: operation 'map 0 4 ro 1': expected 'map FIRST PAGES [PROT]'",
        ),
        (
            "fork child",
            "fork the-child",
            "it: scenario[0].setup[1]: operation 'fork the-child': CHILD: expected a name, got 'the-child'",
        ),
        (
            '["map 0 4 ro", "fork child"]',
            '["fork chidl", "child.exit"]',
            "it: scenario[0]: operation 'child.exit': no line starts a process 'child'; did you mean 'chidl'?",
        ),
        (
            "devices = 2",
            "devices = 1",
            "it: scenario[0]: operation 'child.cpu_read@1 0 2': a process has 1 file(s), counted from 0",
        ),
        ("devices = 2", "devices = 2\npmd_order = 12", "it: scenario[0]: pmd_order: expected 1 to 9, got 12"),
        (
            "devices = 2",
            "devices = 2\nvram_pages = 2",
            "it: scenario[0]: vram_pages and ram_pages: expected at least one block of 4 pages",
        ),
        ('"eviction"', '"evictoin"', "it: scenario[0].needs: unknown capability 'evictoin', did you mean 'eviction'?"),
        (
            "about =",
            "thp = 'sometimes'\nabout =",
            "it: scenario[0]: thp: expected one of 'always', 'never', got 'sometimes'",
        ),
    ],
)
def test_a_mistake_gets_one_line(old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new)
    with pytest.raises(InputError) as caught:
        read_scenarios(text, source="it")
    assert str(caught.value) == message


def test_two_of_one_name() -> None:
    with pytest.raises(InputError) as caught:
        read_scenarios(GOOD + GOOD, source="it")
    assert str(caught.value) == "it: two scenarios are named 'good'; names are unique"


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(InputError) as caught:
        find_scenario("fault-munmp")
    assert str(caught.value) == (
        "unknown scenario 'fault-munmp', did you mean 'fault-munmap'? (or the path of a .toml file)"
    )


def test_every_operation_is_explained() -> None:
    for kind in OPERATIONS.values():
        assert kind.about.endswith("."), kind.name
        assert kind.by in {"thread", "gpu", "machine"}


def test_every_operation_is_used_by_a_scenario() -> None:
    used = {bind(operation).kind.name for scenario in bundled() for operation in scenario.operations}
    assert sorted(set(OPERATIONS) - used) == []


def test_there_are_enough_and_of_every_kind() -> None:
    scenarios = bundled()
    assert len(scenarios) >= 35
    standard = [scenario for scenario in scenarios if scenario.standard]
    assert len(standard) >= 8
    for scenario in scenarios:
        assert 2 <= len(scenario.tasks) <= 4, scenario.name
        assert scenario.pmd_order in {2, 3}, scenario.name
    for scenario in standard:
        assert len(scenario.tasks) <= 3, scenario.name
        assert not scenario.source.endswith("suspects.toml"), scenario.name
        assert scenario.devices == 1, scenario.name
        steps = [bind(operation) for operation in scenario.operations]
        assert {step.process for step in steps} == {MAIN_PROCESS}, scenario.name
        spans = [step.args[:2] for step in steps if [each.name for each in step.kind.parameters[:2]] == _SPAN]
        assert all(first + pages <= 1 << scenario.pmd_order for first, pages in spans), scenario.name


def test_an_operation_reads_as_it_is_written() -> None:
    assert str(Operation.parse("  child.munmap@1   0  4 ")) == "child.munmap@1 0 4"


def test_without_the_operation_that_starts_a_process_it_does_nothing() -> None:
    text = """
[[scenario]]
name = "orphan"
about = "a child is forked by a task, and looked at in the end"
setup = ["map 0 4"]
tasks.cpu = ["fork child", "cpu_write 0 1"]
tasks.other = ["child.cpu_read 0 1"]
end = ["cpu_read 0 4", "child.cpu_read 0 4"]
"""
    (scenario,) = read_scenarios(text, source="it")
    fewer = scenario.with_tasks({"cpu": scenario.tasks["cpu"][1:], "other": scenario.tasks["other"]})
    assert [str(each) for each in fewer.operations] == ["map 0 4", "cpu_write 0 1", "cpu_read 0 4"]
    assert list(fewer.tasks) == ["cpu"]
    assert read_scenarios(fewer.to_toml(), source="it") == [fewer]
