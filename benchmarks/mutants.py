"""Hunt for the bugs that Linux had, and keep how many schedules and seconds each scheduler takes to find one.

    uv run python benchmarks/mutants.py [--mutant ID …] [--jobs N] [--again] [--suite [--all]]

The cases and the budget are in benchmarks/mutants.toml, what comes out in docs/reference/mutants.json, which a second
run goes on with: only what is not there is explored, or what there is of the mutants named, with `--again`. Each case
is explored without its mutants as well, for the whole budget; if that finds something, the exit status is 1. Seconds
are CPU time, so that they can be compared between runs on a busy machine, too.

With `--suite` the conformance suite is run instead, with each mutant on the drivers of its cases, until a check fails
that passes without, or with `--all` to the end; docs/reference/mutants-suite.json keeps what they came to.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from gpusvm.conformance.caught import Trial, catchers, likely_first, places, read_trials, trial, write_trials
from gpusvm.conformance.hunt import SCHEDULERS, Hunt, HuntPlan, Outcome, hunt, read_outcomes, read_plan, write_outcomes
from gpusvm.conformance.mutants import BROKEN, MUTANTS, load
from gpusvm.conformance.suite.catalogue import catalogue
from gpusvm.run.executor import ProcessExecutor

ROOT = Path(__file__).resolve().parent.parent
PLAN = ROOT / "benchmarks" / "mutants.toml"
RESULTS = ROOT / "docs" / "reference" / "mutants.json"
SUITE = ROOT / "docs" / "reference" / "mutants-suite.json"
COMMAND = "python benchmarks/mutants.py"


@frozen
class Job:
    """Be one hunt with its budget."""

    hunt: Hunt
    schedules: int


def work(job: Job) -> Outcome:
    """Do one."""
    return hunt(job.hunt, schedules=job.schedules)


def wanted(plan: HuntPlan, have: dict[Hunt, Outcome]) -> Iterator[Job]:
    """Yield the hunts with a mutant that are not there, or not for the whole budget."""
    # An exhaustive search takes longest, and most of the others find more.
    for what, schedules in sorted(plan.hunts().items(), key=lambda each: SCHEDULERS.index(each[0].scheduler)):
        outcome = have.get(what)
        if outcome is None or not (outcome.found or outcome.exhausted or outcome.schedules >= schedules):
            yield Job(what, schedules)


def controls(plan: HuntPlan, have: dict[Hunt, Outcome]) -> Iterator[Job]:
    """Yield the explorations of the model as it is that are not there for the whole budget, or what a hunt took."""
    longest: dict[Hunt, int] = {}
    for what, budget in plan.hunts().items():
        if what in have:
            plain = what.without_mutant()
            longest[plain] = max(longest.get(plain, 0), have[what].schedules, budget)
    for plain, schedules in longest.items():
        outcome = have.get(plain)
        if outcome is None or not (outcome.exhausted or outcome.schedules >= schedules):
            yield Job(plain, schedules)


def in_order(plan: HuntPlan, have: dict[Hunt, Outcome]) -> list[Outcome]:
    """List what belongs to the plan, by mutant; what is no longer in it goes."""
    hunts = sorted(plan.hunts(), key=lambda what: list(MUTANTS).index(what.mutant))
    plain = dict.fromkeys(what.without_mutant() for what in plan.hunts())
    return [have[what] for what in (*hunts, *plain) if what in have]


@frozen
class SuiteJob:
    """Be one trial: a mutant, a driver, the checks that are not there, in order, and whether all of them are to run."""

    mutant: str
    driver: str
    checks: tuple[str, ...]
    every: bool


def try_suite(job: SuiteJob) -> tuple[Trial, Trial]:
    """Do one."""
    by_id = {check.id: check for check in catalogue()}
    return trial(job.mutant, job.driver, [by_id[name] for name in job.checks], every=job.every)


def suite_jobs(chosen: set[str], have: dict[tuple[str, str], Trial], *, every: bool) -> Iterator[SuiteJob]:
    """Yield the trials that are not there: of mutants that nothing has caught, or of all with all checks."""
    plan, checks = read_plan(PLAN), catalogue()
    for mutant, drivers in places(plan).items():
        caught = catchers(mutant, have)
        for driver in drivers:
            if (chosen and mutant not in chosen) or (caught.get(driver) and not every):
                continue
            one = have.get((mutant, driver))
            known = set() if one is None else one.tried()
            left = tuple(check.id for check in likely_first(checks, mutant, plan) if check.id not in known)
            if left:
                yield SuiteJob(mutant, driver, left, every)


def suite(chosen: set[str], jobs: int, *, again: bool, every: bool) -> int:
    """Run the suite against mutants; the exit status."""
    have = read_trials(SUITE) if SUITE.is_file() else {}
    if again:
        have = {key: one for key, one in have.items() if chosen and one.mutant not in chosen}
    wanted = list(suite_jobs(chosen, have, every=every))
    for done, (_, found) in enumerate(ProcessExecutor(jobs).run(try_suite, wanted), start=1):
        for one in found:
            key = (one.mutant, one.driver)
            have[key] = have[key].and_also(one) if key in have else one
        order = sorted(have.values(), key=lambda one: (["", *MUTANTS, *BROKEN].index(one.mutant), one.driver))
        write_trials(order, [check.id for check in catalogue()], SUITE, command=f"{COMMAND} --suite")
        mutant, driver = found[0].mutant, found[0].driver
        caught = catchers(mutant, have).get(driver, ())
        sys.stdout.write(f"{done}/{len(wanted)} {mutant} {driver}: caught by {', '.join(caught[:3]) or 'nothing'}\n")
        sys.stdout.flush()
    return 1 if any(not any(catchers(name, have).values()) for name in (*MUTANTS, *BROKEN)) else 0


def main() -> int:
    """Run what is missing; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutant", nargs="+", default=[], metavar="ID", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", action="store_true", help="explore again what the file has")
    parser.add_argument("--suite", action="store_true", help="run the conformance suite with each mutant")
    parser.add_argument("--all", action="store_true", help="with --suite, every check, and not until one catches it")
    options = parser.parse_args()
    chosen = {name if name in BROKEN else load(name).id for name in options.mutant}
    if options.suite:
        return suite(chosen, options.jobs, again=options.again, every=options.all)
    plan = read_plan(PLAN)
    have = {outcome.hunt: outcome for outcome in read_outcomes(RESULTS)} if RESULTS.is_file() else {}
    if options.again:
        forget = {what for what in plan.hunts() if not chosen or what.mutant in chosen}
        forget |= {what.without_mutant() for what in forget}
        have = {what: outcome for what, outcome in have.items() if what not in forget}
    unclean = 0
    for phase in (wanted, controls):
        jobs = [job for job in phase(plan, have) if not chosen or not job.hunt.mutant or job.hunt.mutant in chosen]
        for done, (_, outcome) in enumerate(ProcessExecutor(options.jobs).run(work, jobs), start=1):
            what = outcome.hunt
            have[what] = outcome
            write_outcomes(in_order(plan, have), RESULTS, command=COMMAND)
            result = f"{outcome.kind} {outcome.invariant}" if outcome.found else "nothing"
            sys.stdout.write(
                f"{done}/{len(jobs)} {what.mutant or 'none'} {what.scenario} {what.driver} {what.scheduler}: {result} "
                f"in {outcome.schedules} schedules{', all there are' if outcome.exhausted else ''}, "
                f"{outcome.seconds:.1f} s\n"
            )
            sys.stdout.flush()
            unclean += outcome.found and not what.mutant
    if unclean:
        sys.stdout.write(f"{unclean} of the explorations without a mutant found something\n")
    return 1 if unclean else 0


if __name__ == "__main__":
    sys.exit(main())
