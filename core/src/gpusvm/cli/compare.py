"""gpusvm compare: drivers side by side on the same workloads."""

import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from gpusvm.cli.parameters import Flag, Repeatable

if TYPE_CHECKING:
    from gpusvm.compare import Comparison, InterruptedComparison

__all__ = ["compare"]


def compare(
    *specs: str,
    workload: Repeatable = (),
    vram: str = "1GiB",
    thp: Literal["always", "madvise", "never"] = "always",
    seed: int = 0,
    costs: str = "h100-pcie5",
    quirks: Annotated[Literal["as_written", "fixed"], Parameter(name_transform=str)] = "as_written",
    topology: str = "single",
    out: Path | None = None,
    resume: Flag = False,
    jobs: int | None = None,
    json: Flag = False,
    events: Flag = False,
    log_level: Literal["debug", "info", "warning", "error"] = "warning",
    log_json: Flag = False,
    without: Repeatable = (),
) -> int:
    """Run drivers on workloads and show the results side by side.

    Exit codes: 0 good, 1 a run failed or read wrong data, 2 bad input, 130 interrupted.

    Parameters
    ----------
    specs
        Drivers: NAME[:KEY=VALUE[,KEY=VALUE...]], for example xe:chunk_sizes=64K+4K. All installed ones if none is
        named.
    workload
        Name of a bundled trace, path of a trace file, or "all"; may be given several times. Four traces of different
        character if none is named.
    vram
        Memory of each GPU, for example 256MiB.
    thp
        Transparent huge pages of the system.
    seed
        Recorded with each run. Decides what is left to chance, which in a timed run is nothing so far.
    costs
        Cost profile: a name, or the path of a TOML file.
    quirks
        What every quirk is set to that a spec does not name: as Linux is written, or as a reviewer would want it.
    topology
        Machine: single, dual, dual-p2p, triple-p2p, two-tiles, discrete-integrated, or the path of a TOML file.
        Launches are dealt to its devices and tiles in turn, and each device has the same driver.
    out
        New or empty directory for compare.json, compare.html, run.json and the single runs.
    resume
        Complete the set in the directory of --out.
    jobs
        Processes to run on; as many as there are CPUs if not given.
    json
        Print compare.json, and nothing else, on standard output.
    events
        Write the events of each run into the directory of --out.
    log_level
        Least level of what is logged to standard error.
    log_json
        Log as JSON, one object a line.
    without
        Leave a driver plugin out, broken or not; may be given several times.
    """
    from gpusvm.cli.logging import configure_logging
    from gpusvm.cli.progress import progress_shown
    from gpusvm.compare import InterruptedComparison, ProcessExecutor, available_cpus
    from gpusvm.compare import compare as run_comparison
    from gpusvm.errors import InputError

    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, got {jobs}")
    configure_logging(log_level, as_json=log_json)
    try:
        with progress_shown(quiet=log_level in ("debug", "info")) as listener:
            comparison = run_comparison(
                specs or None,
                workload or None,
                vram=vram,
                thp=thp,
                seed=seed,
                costs=costs,
                quirks=quirks,
                topology=topology,
                out=out,
                resume=resume,
                events=events,
                executor=ProcessExecutor(
                    jobs or available_cpus(), prepare=functools.partial(configure_logging, log_level, as_json=log_json)
                ),
                without=without,
                progress=listener,
            )
    except InterruptedComparison as interrupt:
        _show(interrupt.comparison, as_json=json)
        print(f"gpusvm: {_interrupted(interrupt, out)}", file=sys.stderr)
        return 130
    _show(comparison, as_json=json)
    if out is not None and not json:
        print(f"Written to {out}: compare.html, compare.json, run.json and runs/.")
    for finding in comparison.findings():
        print(f"gpusvm: {finding}", file=sys.stderr)
    for trace in dict.fromkeys(failure.trace for failure in comparison.failures):  # each once
        print(trace or "", file=sys.stderr, end="")
    return 0 if comparison.ok else 1


def _show(comparison: "Comparison", *, as_json: bool) -> None:
    from gpusvm.report import print_comparison

    if as_json:
        print(comparison.to_json(), end="")
    elif comparison.runs:
        print_comparison(comparison)
    sys.stdout.flush()


def _interrupted(interrupt: "InterruptedComparison", out: Path | None) -> str:
    """Say what is there and how to go on."""
    finished = f"interrupted: {len(interrupt.comparison.runs)} of {interrupt.total} runs finished"
    if out is None:
        return f"{finished}; with --out DIR they are kept, and --resume completes them"
    command = shlex.join(["gpusvm", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
    return f"{finished} and are in {out / 'runs'}; to complete them: {command}"
