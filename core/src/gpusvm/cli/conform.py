"""gpusvm conform: whether drivers follow the rules."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from gpusvm.cli.parameters import Flag, Repeatable

__all__ = ["conform"]


def conform(
    *,
    driver: Repeatable = (),
    profile: Repeatable = (),
    check: Repeatable = (),
    quirks: Annotated[Literal["as_written", "fixed"], Parameter(name_transform=str)] = "as_written",
    beside: str = "",
    mutant: str | None = None,
    baseline: Path | None = None,
    jobs: int | None = None,
    limit: float = 60.0,
    out: Path | None = None,
    resume: Flag = False,
    list_: Annotated[Flag, Parameter(name="--list")] = False,
    json: Flag = False,
    without: Repeatable = (),
) -> int:
    """Run the conformance suite on drivers, and print what every check of each came to.

    Exit codes: 0 nothing is otherwise than the drivers state, 1 a fail, an error or an unexpected pass, or a regression
    against the baseline, 2 bad input, 130 interrupted.

    Parameters
    ----------
    driver
        Driver: NAME[:KEY=VALUE[,KEY=VALUE...]]; may be given several times. All installed ones if none is named.
    profile
        Run the checks of this profile only: core, device-memory, atomics or multi-device; may be given several times.
    check
        Run this check only, by its id, or those that a glob such as "fault.*" fits; may be given several times.
    quirks
        What every quirk is set to that a driver's spec does not name.
    beside
        Driver of the second device in machines with two drivers; one of the suite's own, if none is named.
    mutant
        Switch a historical bug on, or break a rule, by its id: which checks notice?
    baseline
        File conform.json of an earlier run: say what is otherwise now.
    jobs
        Processes to run on: as many as there are CPUs, if not given. 0 is this one, where a debugger can be used.
    limit
        Seconds that one check may take.
    out
        Directory for conform.json and conform.html.
    resume
        Run what the run in that directory did not come to.
    list_
        List the checks.
    json
        Print JSON, and nothing else, on standard output.
    without
        Leave a driver plugin out, broken or not; may be given several times.
    """
    from gpusvm.conformance.suite.catalogue import catalogue, choose
    from gpusvm.report import checks_document, print_checks, print_json

    if list_:
        chosen = choose(catalogue(), globs=check, profiles=profile)
        if json:
            print_json(checks_document(chosen))
        else:
            print_checks(chosen)
        return 0
    options = {
        "profiles": profile,
        "checks": check,
        "quirks": quirks,
        "beside": beside,
        "mutant": mutant,
        "limit_s": limit,
        "without": without,
    }
    return _run(driver, options, baseline=baseline, jobs=jobs, out=out, resume=resume, json=json)


def _run(
    driver: tuple[str, ...],
    options: dict[str, Any],
    *,
    baseline: Path | None,
    jobs: int | None,
    out: Path | None,
    resume: bool,
    json: bool,
) -> int:
    import os
    import sys

    from gpusvm.cli.progress import conformance_shown
    from gpusvm.conformance.conforming import conform as run_suite
    from gpusvm.conformance.suite.baseline import read_baseline
    from gpusvm.conformance.suite.conformance import InterruptedConformance, check_directory
    from gpusvm.errors import InputError
    from gpusvm.report import print_changes, print_conformance

    before = None if baseline is None else read_baseline(baseline)
    if before is not None and before.quirks != options["quirks"]:
        raise before.other_quirks(options["quirks"])
    if out is not None:
        check_directory(out)
    if resume:
        if out is None:
            raise InputError("--resume: say which directory to complete with --out DIR")
        options["resumed"] = read_baseline(out / "conform.json")
    interrupted: InterruptedConformance | None = None
    with conformance_shown() as listener:
        try:
            cpus = len(os.sched_getaffinity(0))
            found = run_suite(driver, jobs=cpus if jobs is None else jobs, progress=listener, **options)
        except InterruptedConformance as error:
            found, interrupted = error.conformance, error
    if out is not None:
        found.save(out)
    if json:
        print(found.to_json(), end="")
    else:
        print_conformance(found)
    changes = () if before is None else before.changes(found)
    if before is not None:
        sys.stdout.flush()
        print_changes(changes, before.source, file=sys.stderr if json else None)
    sys.stdout.flush()
    if interrupted is not None:
        print(f"gpusvm: {interrupted}{_go_on(out)}", file=sys.stderr)
        return 130
    return 1 if found.failures or any(change.kind == "REGRESSION" for change in changes) else 0


def _go_on(out: Path | None) -> str:
    """Say what is there after an interrupt, and how to go on."""
    import shlex
    import sys

    if out is None:
        return "; with --out DIR they are kept, and --resume runs the rest"
    command = shlex.join(["gpusvm", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
    return f", which {out} holds; to run the rest: {command}"
