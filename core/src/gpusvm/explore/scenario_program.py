"""Make a program of a scenario and a driver, for whoever runs programs under choices of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from gpusvm.errors import InputError, ModelError
from gpusvm.explore.case import Case
from gpusvm.explore.execution import Failure, execute
from gpusvm.explore.scenario import Scenario, select_scenarios
from gpusvm.explore.stage import Stage
from gpusvm.kernel import Abandoned
from gpusvm.plugins import Installed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpusvm.driver import DriverInfo
    from gpusvm.explore.programs import Program
    from gpusvm.kernel import Choices, Task, Timer

__all__ = ["ScenarioError", "scenario_program"]


class ScenarioError(ModelError):
    """Report what broke in an execution of a scenario; `failure` has its kind and invariant."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind} {failure.invariant}: {failure.message}")
        self.failure = failure


class _Asks:
    """Put a scheduler's questions to choices."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    def new_execution(self) -> bool:
        return True

    def next_task(self, candidates: Sequence[Task | Timer], running: Task | None) -> int:
        return self._choices.pick_task(candidates, running)

    def next_int(self, n: int, label: str) -> int:
        return self._choices.pick(n, label)


def scenario_program(
    scenario: str | Scenario,
    driver: str,
    *,
    failures_max: int = 0,
    quirks: Literal["as_written", "fixed"] = "fixed",
    registry: Mapping[str, DriverInfo] | None = None,
) -> Program:
    """Return a program that runs one scenario on one driver and raises ScenarioError if anything breaks.

    The machine is booted at the first call and put back before each of the others. InputError, at once, for a scenario
    or a driver that there is not.
    """
    chosen = select_scenarios([scenario])
    if len(chosen) != 1:
        raise InputError(f"a program is made of one scenario, and {scenario!r} are {len(chosen)}")
    drivers = Installed(()) if registry is None else registry
    case = Case(scenario=chosen[0], driver=driver, drivers=drivers, quirks=quirks, failures_max=failures_max)
    case.boot().kernel.close()
    stage = Stage(case.boot)

    def program(choices: Choices) -> None:
        execution = execute(stage.ready(), _Asks(choices), failures_max=failures_max)
        if execution.abandoned:
            raise Abandoned
        if execution.failure is not None:
            raise ScenarioError(execution.failure)

    return program
