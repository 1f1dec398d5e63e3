"""gpusvm realkernel: the model beside a real Linux."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from gpusvm.cli.parameters import Flag, Repeatable

__all__ = ["realkernel"]

realkernel = App(name="realkernel", help="Compare the model with a real Linux.", help_format="plaintext")


@realkernel.command
def check(
    *files: Path,
    target: str | None = None,
    level: Annotated[Literal["L0", "L1", "L2", "L3"], Parameter(name_transform=str)] = "L3",
    out: Path | None = None,
    jobs: int | None = None,
    json: Flag = False,
    without: Repeatable = (),
) -> int:
    """Do recorded operations in the model, and compare its answers with those of a real kernel.

    Exit codes: 0 all answers are equal, 1 some differ, 2 bad input.

    Parameters
    ----------
    files
        Recordings: FILE.json.gz, each a list of sequences of [operation, answer] pairs.
    target
        Driver that does the operations: NAME[:KEY=VALUE[,KEY=VALUE...]]. The one that a file's name begins with, as in
        dmirror-base.json.gz, if not given.
    level
        How closely to compare: L0 return, errno, counts and data; L1 also snapshot bytes and residency; L2 also the
        notifier events of each operation; L3 also their order.
    out
        New or empty directory for check.json and run.json.
    jobs
        Processes to check on; as many as there are CPUs if not given.
    json
        Print check.json, and nothing else, on standard output.
    without
        Leave a driver plugin out, broken or not; may be given several times.
    """
    from gpusvm.cli.progress import check_progress_shown
    from gpusvm.errors import InputError
    from gpusvm.realkernel import check as run_check
    from gpusvm.report import print_check
    from gpusvm.run.executor import ProcessExecutor, available_cpus

    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, got {jobs}")
    with check_progress_shown() as listener:
        found = run_check(
            files,
            target=target,
            level=level,
            out=out,
            executor=ProcessExecutor(jobs or available_cpus()),
            without=without,
            progress=listener,
        )
    if json:
        print(found.to_json(), end="")
    else:
        print_check(found)
        if out is not None:
            print(f"Written to {out}: check.json and run.json.")
    sys.stdout.flush()
    return 0 if found.ok else 1
