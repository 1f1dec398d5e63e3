"""The hook gpusvm_operations: what a plugin with a good one gets, and what one with a bad one is told."""

import pytest

GOOD = """
from gpusvm.driver.operations import Answer, OperationTarget

class Executor:
    def __init__(self, host):
        pass

    def execute(self, name, numbers):
        return Answer()

    def take_events(self):
        return ()

def target(**changes):
    fields = dict(driver="acme", devices=1, operations={"ping": ("dev",)}, start=Executor)
    return OperationTarget(**{**fields, **changes})

@hookimpl
def gpusvm_drivers():
    return [info("acme"), info("base")]

@hookimpl
def gpusvm_operations():
    return RESULT
"""


@pytest.fixture
def told(install, problems):
    """Install a plugin whose hook returns `result`; its problems, without plugin and place."""

    def told(result, source=GOOD):
        install("acme", source.replace("RESULT", result))
        return [problem.rpartition(".py:")[2].partition(": ")[2] for problem in problems()]

    return told


def test_a_driver_may_execute_operations(install, survey):
    install("acme", GOOD.replace("RESULT", "target()"))
    drivers = survey().registry()
    assert drivers.find("acme").operations.operations == {"ping": ("dev",)}
    assert drivers.find("base").operations is None


def test_each_driver_may(install, survey):
    install("acme", GOOD.replace("RESULT", "[target(), target(driver='base', devices=4)]"))
    assert [driver.operations.devices for driver in survey().registry().drivers] == [1, 4]


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ("None", "gpusvm_operations() returned None, expected an OperationTarget or a sequence of them"),
        ("[5]", "gpusvm_operations() returned a list with int, expected an OperationTarget or a sequence of them"),
        ("1 / 0", "gpusvm_operations(): ZeroDivisionError: division by zero"),
        ("target(driver='acne')", "driver: expected a driver of this plugin (acme, base), got 'acne'"),
        ("[target(), target()]", "driver: acme has operations already"),
        ("target(devices=0)", "devices: expected 1 or more, got 0"),
        ("target(operations={'a b': ()})", "operations: expected names of one word, got 'a b'"),
        ("target(operations={'mmap': ()})", "operations: 'mmap' is done by core, for every driver"),
        ("target(residency=frozenset({'pong'}))", "residency: 'pong' not among the operations"),
        ("target(start=None)", "start: expected a class or function that takes an OperationHost, got None"),
    ],
)
def test_what_a_bad_target_is_told(told, result, problem):
    assert told(result) == [problem]


def test_an_executor_that_lacks_a_method(told):
    source = GOOD.replace("take_events", "give_events")
    (line,) = told("target()", source)
    assert line == (
        "Executor has no take_events() (OperationExecutor of the contract); "
        "see docs/reference/driver-rules.md#signature"
    )


def test_an_executor_that_cannot_be_called_as_it_must(told):
    source = GOOD.replace("def execute(self, name, numbers)", "def execute(self, name)")
    (problem,) = told("target()", source)
    assert problem.startswith("Executor.execute: expected execute(name, numbers), got execute(name): ")


def test_a_broken_driver_is_told_of_its_driver_only(told):
    source = GOOD.replace('info("acme")', 'info("acme", summary="")')
    assert told("target(devices=0)", source) == ["summary: expected one line of text, got ''"]
