"""Hunt for the bugs that Linux had, and keep how many schedules and seconds each scheduler takes to find one.

    uv run python benchmarks/mutants.py [--mutant ID …] [--jobs N] [--again]
    uv run python benchmarks/mutants.py --suite [--all | --quiet] [--check GLOB …] [--mutant ID …] [--jobs N] [--again]

The cases and the budget are in benchmarks/mutants.toml, what comes out in docs/reference/mutants.json, which a second
run goes on with: only what is not there is explored, or what there is of the mutants named, with `--again`. Each case
is explored without its mutants as well, for the whole budget; if that finds something, the exit status is 1. Seconds
are CPU time, so that they can be compared between runs on a busy machine, too.

With `--suite` the conformance suite is run instead, with each mutant and each broken driver on the drivers of its
cases, until a check fails that passes without, or with `--all` to the end, or with `--quiet` only the checks that
nothing has made fail yet; docs/reference/mutants-suite.json keeps what they came to, and each run goes on with it.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from gpusvm.conformance.caught import Trial, catchers, likely_first, places, read_trials, trial, write_trials
from gpusvm.conformance.hunt import SCHEDULERS, Hunt, HuntPlan, Outcome, hunt, read_outcomes, read_plan, write_outcomes
from gpusvm.conformance.mutants import BROKEN, MUTANTS, OPS_BROKEN, load
from gpusvm.conformance.shown import quiet
from gpusvm.conformance.suite.catalogue import catalogue, choose
from gpusvm.conformance.suite.check import Check
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
    """Be one trial: a mutant, a driver, the checks that are not there, in order, those of them that the driver is known
    to pass, and whether all are to run.
    """

    mutant: str
    driver: str
    checks: tuple[str, ...]
    known: frozenset[str]
    every: bool


@frozen(kw_only=True)
class Wanted:
    """Say which trials: of which mutants, in order (all if none is named), and of which checks: of `every` one that is
    not there, or of those that nothing has failed yet (`quiet`), or until one fails.
    """

    mutants: tuple[str, ...]
    checks: tuple[Check, ...]
    every: bool
    quiet: bool


def try_suite(job: SuiteJob) -> tuple[Trial, Trial]:
    """Do one."""
    by_id = {check.id: check for check in catalogue()}
    return trial(job.mutant, job.driver, [by_id[name] for name in job.checks], every=job.every, known=job.known)


def suite_jobs(wanted: Wanted, have: dict[tuple[str, str], Trial]) -> Iterator[SuiteJob]:
    """Yield the trials that are not there, each when the ones before it are begun."""
    plan = read_plan(PLAN)
    drivers_of = places(plan)
    for mutant in wanted.mutants or drivers_of:
        for driver in drivers_of[mutant]:
            if catchers(mutant, have).get(driver) and not wanted.every and not wanted.quiet:
                continue
            one, plain = have.get((mutant, driver)), have.get(("", driver))
            tried = set() if one is None else one.tried()
            left = [check.id for check in likely_first(wanted.checks, mutant, plan) if check.id not in tried]
            if wanted.quiet:
                left = quiet(left, have)
            if left:
                known = frozenset(() if plain is None else plain.passed)
                yield SuiteJob(mutant, driver, tuple(left), known, wanted.every or wanted.quiet)


def suite(wanted: Wanted, jobs: int, *, again: bool) -> int:
    """Run the suite against mutants; the exit status."""
    have = read_trials(SUITE) if SUITE.is_file() else {}
    names = [check.id for check in catalogue()]
    if again:
        forgotten = {check.id for check in wanted.checks}
        have = {
            key: one.without(forgotten) if not wanted.mutants or one.mutant in wanted.mutants else one
            for key, one in have.items()
        }
    for done, (_, found) in enumerate(ProcessExecutor(jobs).run(try_suite, suite_jobs(wanted, have)), start=1):
        for one in found:
            key = (one.mutant, one.driver)
            have[key] = have[key].and_also(one) if key in have else one
        order = sorted(
            have.values(), key=lambda one: (["", *MUTANTS, *BROKEN, *OPS_BROKEN].index(one.mutant), one.driver)
        )
        write_trials(order, names, SUITE, command=f"{COMMAND} --suite")
        new, _ = found
        caught = [name for name in catchers(new.mutant, have).get(new.driver, ()) if name in new.failed]
        sys.stdout.write(
            f"{done} {new.mutant} {new.driver}: {len(caught)} of {len(new.failed) + len(new.passed)} checks fail"
            f"{f', {len(new.hung)} without an end' if new.hung else ''}: {', '.join(caught[:3]) or 'none'}; "
            f"{len(quiet(names, have))} have never failed\n"
        )
        sys.stdout.flush()
    return 1 if any(not any(catchers(name, have).values()) for name in (*MUTANTS, *BROKEN, *OPS_BROKEN)) else 0


def main() -> int:
    """Run what is missing; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutant", nargs="+", default=[], metavar="ID", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", action="store_true", help="explore again what the file has")
    parser.add_argument("--suite", action="store_true", help="run the conformance suite with each mutant")
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--all", action="store_true", help="with --suite, every check, and not until one catches it")
    much.add_argument("--quiet", action="store_true", help="with --suite, the checks that nothing has made fail yet")
    parser.add_argument("--check", nargs="+", default=[], metavar="GLOB", help="with --suite, only these checks")
    options = parser.parse_args()
    named = tuple(dict.fromkeys(name if name in {*BROKEN, *OPS_BROKEN} else load(name).id for name in options.mutant))
    chosen = set(named)
    if options.suite:
        checks = tuple(choose(catalogue(), globs=options.check))
        wanted_trials = Wanted(mutants=named, checks=checks, every=options.all, quiet=options.quiet)
        return suite(wanted_trials, options.jobs, again=options.again)
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
