"""Hunt for the bugs of Linux that `gpusvm.conformance.mutants` can bring back, and hold what each hunt came to.

A hunt explores one case (a scenario on a driver, with so many failures) under one scheduler until something breaks or
a number of schedules is used up: with a mutant, or without one, where nothing may break. The cases are chosen by what
the code that a mutant changes needs in order to run at all; no order of steps is directed.
"""

import json
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import Factory, frozen

from gpusvm.conformance.mutants import load
from gpusvm.documents import structure
from gpusvm.errors import InputError
from gpusvm.explore import explore_cases
from gpusvm.explore.case import Case
from gpusvm.explore.scenario import find_scenario
from gpusvm.plugins import Installed

__all__ = [
    "SCHEDULERS",
    "Hunt",
    "HuntCase",
    "HuntPlan",
    "Outcome",
    "cheapest",
    "hunt",
    "read_outcomes",
    "read_plan",
    "write_outcomes",
]

SCHEDULERS: Final = ("random", "pct:depth=3", "delay:delays=2", "dfs:preemptions=2")
"""What each case is explored with."""

SCHEMA: Final = 1


@frozen(kw_only=True)
class HuntCase:
    """Name a scenario, a driver by its spec string and how many failures there may be, and the mutants that run there.

    `about` says what the case has that these mutants need, `schedules` and `schedulers` how many it may take
    and by whom, if not as others.
    """

    about: str
    scenario: str
    driver: str
    mutants: tuple[str, ...]
    failures: int = 0
    schedules: int | None = None
    schedulers: tuple[str, ...] = SCHEDULERS


@frozen(kw_only=True)
class _Budget:
    seed: int
    schedules: int


@frozen(kw_only=True)
class HuntPlan:
    """Hold the cases, the seed and how many schedules each may take, and why a mutant is found in none of them."""

    budget: _Budget
    case: tuple[HuntCase, ...]
    why: dict[str, str] = Factory(dict)

    def hunts(self) -> "dict[Hunt, int]":
        """List what is to be explored with a mutant, in the order of the cases, and how many schedules it may take."""
        return {
            Hunt(
                mutant=mutant,
                scenario=case.scenario,
                driver=case.driver,
                failures=case.failures,
                scheduler=scheduler,
                seed=self.budget.seed,
            ): case.schedules or self.budget.schedules
            for case in self.case
            for mutant in case.mutants
            for scheduler in case.schedulers
        }


@frozen(kw_only=True)
class Hunt:
    """Say what is explored, and how. `mutant` is an id, empty for the model as it is."""

    mutant: str
    scenario: str
    driver: str
    failures: int
    scheduler: str
    seed: int

    def without_mutant(self) -> "Hunt":
        """Return the same exploration of the model as it is."""
        return attrs.evolve(self, mutant="")


@frozen(kw_only=True)
class Outcome:
    """Hold what a hunt came to.

    `schedules` is how many there were, the one that broke something included; `kind` and `invariant` say what broke,
    and are empty if nothing did. `exhausted`: there are no more. `seconds` is the CPU time that it took, measured; all
    else is the same on every machine.
    """

    hunt: Hunt
    schedules: int
    kind: str
    invariant: str
    exhausted: bool
    seconds: float

    @property
    def found(self) -> bool:
        """Tell whether something broke."""
        return bool(self.kind)


def hunt(what: Hunt, *, schedules: int) -> Outcome:
    """Explore until something breaks, in `schedules` schedules at most. InputError for names that there are not."""
    mutant = load(what.mutant) if what.mutant else None
    (scenario,) = find_scenario(what.scenario)
    case = Case(scenario=scenario, driver=what.driver, drivers=Installed(()), failures_max=what.failures, mutant=mutant)
    begun_s = time.process_time()
    exploration = explore_cases(
        [case], scheduler=what.scheduler, seed=what.seed, schedules=schedules, shrunk=False
    ).results[0]
    seconds = time.process_time() - begun_s
    found = exploration.findings[0] if exploration.findings else None
    return Outcome(
        hunt=what,
        schedules=exploration.schedules if found is None else found.schedule + 1,
        kind="" if found is None else found.finding.kind,
        invariant="" if found is None else found.finding.invariant,
        exhausted=exploration.exhausted,
        seconds=round(seconds, 2),
    )


def cheapest(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """Return for each mutant that was found where that took the least time."""
    best: dict[str, Outcome] = {}
    for outcome in outcomes:
        mutant = outcome.hunt.mutant
        if mutant and outcome.found and (mutant not in best or outcome.seconds < best[mutant].seconds):
            best[mutant] = outcome
    return best


def read_plan(path: Path) -> HuntPlan:
    """Read a file of cases. InputError for what is wrong with it, scenarios and mutants that there are not included."""
    plan = structure(tomllib.loads(path.read_text("utf-8")), HuntPlan, source=path.name)
    for case in plan.case:
        find_scenario(case.scenario)
        for mutant in case.mutants:
            load(mutant)
    for mutant in plan.why:
        load(mutant)
    return plan


def read_outcomes(path: Path) -> list[Outcome]:
    """Read a file that `write_outcomes` wrote."""
    document = json.loads(path.read_text("utf-8"))
    if document.get("schema") != SCHEMA:
        raise InputError(f"{path.name}: expected schema {SCHEMA}, got {document.get('schema')!r}")
    found = []
    for number, flat in enumerate(document["outcomes"]):
        nested = {key: value for key, value in flat.items() if key not in _HUNT_FIELDS}
        nested["hunt"] = {key: flat[key] for key in _HUNT_FIELDS if key in flat}
        found.append(structure(nested, Outcome, source=f"{path.name}: outcomes[{number}]"))
    return found


def write_outcomes(outcomes: list[Outcome], path: Path, *, command: str) -> None:
    """Write outcomes one to a line, and the command that they came from. A reader never finds half a file."""
    head = {"schema": SCHEMA, "command": command}
    lines = [json.dumps(_flat(each), ensure_ascii=False) for each in outcomes]
    text = json.dumps(head)[:-1] + ', "outcomes": [\n' + ",\n".join(lines) + "\n]}\n"
    half = path.with_suffix(".part")
    half.write_text(text, "utf-8")
    half.replace(path)


_HUNT_FIELDS: Final = tuple(each.name for each in attrs.fields(Hunt))


def _flat(outcome: Outcome) -> dict[str, Any]:
    nested = attrs.asdict(outcome)
    return {**nested.pop("hunt"), **nested}
