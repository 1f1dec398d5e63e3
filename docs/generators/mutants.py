"""Write the table of the bugs that exploration finds again, from what benchmarks/mutants.py has measured."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpusvm.conformance.caught import catchers, read_trials
from gpusvm.conformance.hunt import SCHEDULERS, Hunt, HuntPlan, Outcome, cheapest, read_outcomes, read_plan
from gpusvm.conformance.mutants import BROKEN, MUTANTS, OPS_BROKEN, Mutant

from generators.markdown import NOTICE, code, table

__all__ = ["page"]

HEAD = """\
# Bugs that exploration finds again

{notice}

Each mutant is a bug that Linux had, brought back by a switch (`gpusvm explore … --mutant {example}`;
[mutants](../../core/src/gpusvm/conformance/mutants/__init__.py)). Here is what exploration makes of them without being
told any order: the [cases](../../benchmarks/mutants.toml) are small programs and drivers, chosen by what the changed
code needs in order to run at all, such as two devices or a failure, and each scheduler explores each case with seed
{seed} until something breaks or its budget is used up ({schedules} schedules, unless the case says otherwise). All that
breaks is found by the oracles of every exploration, none of which knows of a mutant. The model without a mutant is
explored in the same cases by the same schedulers with the same seed, for the whole budget, or for as many schedules as
a hunt of the case took that had more.

Of {total} mutants {found} are found; of the {total_s} that are graded S, {found_s}. Without a mutant, {plain} schedules
in {cases} cases found {unclean}.

`{command}` wrote the [figures](mutants.json); the numbers of schedules are the same on every machine,
[a test](../../tests/test_explore_mutants.py) repeats the cheapest of each mutant. Seconds are CPU time, booting the
machine included, on one core of a busy machine: good for comparing, not for more. What the schedulers cover, and what
not, says [the page on exploration](../explanation/exploration.md).
"""


def page(root: Path) -> str:
    """Return docs/reference/mutants.md."""
    plan = read_plan(root / "benchmarks" / "mutants.toml")
    results = root / "docs" / "reference" / "mutants.json"
    outcomes = {outcome.hunt: outcome for outcome in read_outcomes(results)}
    best = cheapest(outcomes.values())
    grave = [mutant for mutant in MUTANTS.values() if mutant.importance == "S"]
    plain = [outcome for what, outcome in outcomes.items() if not what.mutant]
    unclean = sum(outcome.found for outcome in plain)
    head = HEAD.format(
        notice=NOTICE,
        example=next(iter(MUTANTS)),
        seed=plan.budget.seed,
        schedules=plan.budget.schedules,
        total=len(MUTANTS),
        found=len(best),
        total_s=len(grave),
        found_s=sum(mutant.id in best for mutant in grave),
        plain=f"{sum(outcome.schedules for outcome in plain):,}",
        cases=len(plan.case),
        unclean=f"something in {unclean} explorations" if unclean else "nothing",
        command=json.loads(results.read_text("utf-8"))["command"],
    )
    lines = [head, "## By scheduler", ""]
    lines += [
        "How many mutants each found in any case, how many that are graded S, and how many that no other found.",
        "Then what it explored without a mutant: how many cases, all there is of how many of them, and the schedules.",
        "",
        *table(
            ("scheduler", "mutants:", "graded S:", "by it alone:", "cases without:", "all of:", "schedules without:"),
            _schedulers(outcomes.values(), grave),
        ),
        "",
        "## By mutant",
        "",
        "The best that each scheduler did in any case: schedules until it was found, and seconds. The grade is its",
        "importance (S first), where the bug was. No entry: not found.",
        "",
        *table(
            ("mutant", "grade", "bug", "where", *SCHEDULERS, "found as"),
            [_row(mutant, outcomes.values(), best.get(mutant.id)) for mutant in MUTANTS.values()],
        ),
        "",
        "## By the conformance suite",
        "",
        *_suite(root),
        "",
        "## Broken drivers",
        "",
        *_broken(root),
        "",
        "## Not found",
        "",
        "In no case: not explored.",
        "",
        *table(
            ("mutant", "grade", "explored in", "what it would take"),
            [
                (mutant.id, mutant.importance, _places(plan, mutant), plan.why.get(mutant.id, "not known"))
                for mutant in MUTANTS.values()
                if mutant.id not in best
            ],
        ),
        "",
        "## By case",
        "",
        "With each mutant and, in the row `none` after them, without any: in which schedule it was found, or how many",
        "found nothing. `all` says that there are no more within the bound.",
        "",
        *table(("case", "mutant", *SCHEDULERS), _cases(plan, outcomes)),
    ]
    return "\n".join(lines) + "\n"


def _suite(root: Path) -> list[str]:
    trials = read_trials(root / "docs" / "reference" / "mutants-suite.json")
    caught = {mutant: catchers(mutant, trials) for mutant in MUTANTS}
    by_any = sum(any(found.values()) for found in caught.values())
    catching = {name for found in caught.values() for names in found.values() for name in names}
    rows = [
        (mutant.id, mutant.importance, code(driver), ", ".join(map(code, names[:3])))
        for mutant in MUTANTS.values()
        for driver, names in (caught[mutant.id] or {"": ()}).items()
    ]
    return [
        "Which checks of `gpusvm conform` fail with a mutant and pass without it, on the drivers of the mutant's",
        "cases, with all quirks fixed; the first three of each. Not every check was tried with every mutant, so that",
        f"there may be more. {by_any} of {len(MUTANTS)} mutants are caught, by {len(catching)} checks in all.",
        "`python benchmarks/mutants.py --suite` wrote the [outcomes](mutants-suite.json), and",
        "[a test](../../tests/test_mutants_caught.py) repeats one check of each mutant.",
        "",
        *table(("mutant", "grade", "driver", "caught by check"), rows),
    ]


def _broken(root: Path) -> list[str]:
    trials = read_trials(root / "docs" / "reference" / "mutants-suite.json")
    rows = []
    for broken in (*BROKEN.values(), *OPS_BROKEN.values()):
        names = catchers(broken.id, trials).get(broken.driver, ())
        one = trials.get((broken.id, broken.driver))
        ran = 0 if one is None else len(one.failed) + len(one.passed)
        named = ", ".join(map(code, names[:3]))
        rows.append((code(broken.id), broken.driver, broken.rule, str(len(names)), str(ran), named))
    return [
        "Drivers that ship, each with one rule of the contract",
        "[broken](../../core/src/gpusvm/conformance/mutants/broken/__init__.py) as an author may: they show that the",
        "checks of the suite can fail ([which of them shows which](conformance.md#checks)). A check that something",
        "else has failed already need not be among those that were run.",
        "",
        *table(("broken", "driver", "what it does", "fail:", "run:", "caught by check"), rows),
    ]


def _schedulers(outcomes: Iterable[Outcome], grave: Sequence[Mutant]) -> list[tuple[str, ...]]:
    found: dict[str, set[str]] = {scheduler: set() for scheduler in SCHEDULERS}
    plain: dict[str, list[Outcome]] = {scheduler: [] for scheduler in SCHEDULERS}
    for outcome in outcomes:
        what = outcome.hunt
        if not what.mutant:
            plain[what.scheduler].append(outcome)
        elif outcome.found:
            found[what.scheduler].add(what.mutant)
    rows = []
    for scheduler, mutants in found.items():
        others = set().union(*(each for other, each in found.items() if other != scheduler))
        numbers = (
            len(mutants),
            len(mutants & {mutant.id for mutant in grave}),
            len(mutants - others),
            len(plain[scheduler]),
            sum(outcome.exhausted for outcome in plain[scheduler]),
            sum(outcome.schedules for outcome in plain[scheduler]),
        )
        rows.append((code(scheduler), *(f"{number:,}" for number in numbers)))
    return rows


def _places(plan: HuntPlan, mutant: Mutant) -> str:
    places = [f"{code(case.scenario)} on {code(case.driver)}" for case in plan.case if mutant.id in case.mutants]
    return ", ".join(places) or "no case"


def _row(mutant: Mutant, outcomes: Iterable[Outcome], best: Outcome | None) -> tuple[str, ...]:
    cells = []
    for scheduler in SCHEDULERS:
        found = cheapest(each for each in outcomes if (each.hunt.mutant, each.hunt.scheduler) == (mutant.id, scheduler))
        one = found.get(mutant.id)
        cells.append("" if one is None else f"{one.schedules} in {one.seconds:.1f} s")
    kind = "" if best is None else f"{best.kind} {best.invariant}"
    return (mutant.id, mutant.importance, mutant.title, code(mutant.where), *cells, kind)


def _cases(plan: HuntPlan, outcomes: dict[Hunt, Outcome]) -> list[tuple[str, ...]]:
    rows = []
    told: set[tuple[str, str, int]] = set()
    for case in plan.case:
        failures = f", {case.failures} failure{'s' * (case.failures > 1)}" if case.failures else ""
        name = f"{case.about}: `{case.scenario}` on `{case.driver}`{failures}"
        for mutant in (*case.mutants, ""):
            if not mutant and (case.scenario, case.driver, case.failures) in told:
                continue
            of_case = {
                what.scheduler: outcome
                for what, outcome in outcomes.items()
                if (what.mutant, what.scenario, what.driver, what.failures)
                == (mutant, case.scenario, case.driver, case.failures)
            }
            rows.append((name, mutant or "none", *(_cell(of_case.get(each)) for each in SCHEDULERS)))
            name = ""
        told.add((case.scenario, case.driver, case.failures))
    return rows


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not explored"
    if outcome.found:
        return f"found in {outcome.schedules}, {outcome.seconds:.1f} s"
    return f"not in {outcome.schedules:,}{', all' if outcome.exhausted else ''}, {outcome.seconds:.1f} s"
