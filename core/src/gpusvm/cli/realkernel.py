"""gpusvm realkernel: the model beside a real Linux."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from gpusvm.cli.parameters import Flag, Repeatable

if TYPE_CHECKING:
    from gpusvm.realkernel import Diff, Races
    from gpusvm.realkernel.build import Built

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


@realkernel.command
def build(*, kernel: str = "7.3", cache: Path | None = None, jobs: int | None = None, json: Flag = False) -> int:
    """Build a small Linux that can be asked: a kernel, the devices' modules, an agent and an initramfs.

    From Debian packages alone, through this machine's package sources; some minutes, once, and about 2 GB. A build that
    was stopped goes on where it was. Exit codes: 0 built, 2 something is missing, or a step failed.

    Parameters
    ----------
    kernel
        Number in the name of a package linux-source-NUMBER, or the path of such a package, of a tar archive of a
        kernel's source, or of an unpacked source.
    cache
        Folder to build in; $XDG_CACHE_HOME/gpusvm/realkernel, in ~/.cache, if not given.
    jobs
        Compilers that run at once; as many as there are CPUs if not given.
    json
        Print the manifest, and nothing else, on standard output.
    """
    from gpusvm.cli.progress import steps_shown
    from gpusvm.errors import InputError
    from gpusvm.realkernel.build import build as run_build
    from gpusvm.report import print_json

    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, got {jobs}")
    with steps_shown() as listener:
        built = run_build(kernel, shop=cache, jobs=jobs, progress=listener)
    if json:
        print_json(built.manifest)
    else:
        _print_built(built)
    return 0


def _print_built(built: "Built") -> None:
    print(f"Linux {built.manifest['kernel']} in {built.folder}: {', '.join(built.manifest['modules'])}.")


@realkernel.command
def run(
    file: Path,
    /,
    *,
    driver: str = "dmirror",
    profile: str | None = None,
    kernel: str = "7.3",
    cache: Path | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> int:
    """Have a real Linux, in a virtual machine, do the operations of a file, and print its answers.

    Exit codes: 0 it did, 1 the kernel died of a sequence, 2 bad input, or no kernel is built.

    Parameters
    ----------
    file
        Text, an operation a line and an empty line between sequences, or a recording, whose operations are done again.
    driver
        Driver that the operations are for: NAME[:KEY=VALUE[,KEY=VALUE...]].
    profile
        How the devices are set up: a profile of the driver's. Its first if not given.
    kernel
        Kernel that was built.
    cache
        Folder that it was built in, if not the usual one.
    out
        File to write the recording to: FILE.json.gz.
    json
        Print the recording, and nothing else, on standard output.
    """
    from gpusvm.cli.progress import sequences_shown
    from gpusvm.realkernel import run as run_file
    from gpusvm.report import print_json, print_run

    with sequences_shown() as listener:
        found = run_file(file, driver, profile=profile, kernel=kernel, shop=cache, out=out, progress=listener)
    if json:
        print_json({**found.header, "sequences": [[list(pair) for pair in pairs] for pairs in found.sequences]})
    else:
        print_run(found)
        if out is not None:
            print(f"Written to {out}.")
    return 0 if found.ok else 1


@realkernel.command
def diff(
    *,
    driver: str = "dmirror",
    profile: str | None = None,
    seqs: int = 200,
    seed: int = 1,
    level: Annotated[Literal["L0", "L1", "L2", "L3"], Parameter(name_transform=str)] = "L3",
    kernel: str = "7.3",
    cache: Path | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> int:
    """Make random sequences of operations, have a real Linux and the model do them, and print what differs.

    What differs is asked again, and made as short as it can be read. Exit codes: 0 all answers are equal, 1 some
    differ, or the kernel died, 2 bad input, or no kernel is built.

    Parameters
    ----------
    driver
        Driver that the operations are for: NAME[:KEY=VALUE[,KEY=VALUE...]].
    profile
        Kind of sequences: a profile of the driver's. Its first if not given.
    seqs
        Number of sequences.
    seed
        What they are made from: the same seed, the same sequences.
    level
        How closely to compare: L0 return, errno, counts and data; L1 also snapshot bytes and residency; L2 also the
        notifier events of each operation; L3 also their order.
    kernel
        Kernel that was built.
    cache
        Folder that it was built in, if not the usual one.
    out
        New or empty directory for diff.json, the recording of all answers, and one for each finding.
    json
        Print diff.json, and nothing else, on standard output.
    """
    from gpusvm.cli.progress import diff_shown
    from gpusvm.realkernel import diff as run_diff
    from gpusvm.report import print_diff

    with diff_shown() as listener:
        found = run_diff(
            driver,
            profile=profile,
            sequences=seqs,
            seed=seed,
            level=level,
            kernel=kernel,
            shop=cache,
            out=out,
            progress=listener,
        )
    return _told(found, lambda: print_diff(found), json=json, out=out)


@realkernel.command
def race(
    *files: Path,
    driver: str = "dmirror",
    race: Repeatable = (),
    profile: str | None = None,
    tries: int = 200,
    seed: int = 1,
    preemptions: str = "2",
    schedules: int | None = None,
    recorded: Path | None = None,
    kernel: str = "7.3",
    cache: Path | None = None,
    out: Path | None = None,
    json: Flag = False,
) -> int:
    """Have two threads race on two CPUs of a real Linux, and compare what comes of it with all that the model allows.

    Exit codes: 0 the model allows every outcome that the kernel had, 1 it does not, 2 bad input, or no kernel is built.

    Parameters
    ----------
    files
        Texts of races besides the driver's own: operations, one line of which is "race LEFT | RIGHT".
    driver
        Driver that the operations are for: NAME[:KEY=VALUE[,KEY=VALUE...]].
    race
        Race of the driver; may be given several times. All of them if neither this nor a file is given.
    profile
        How the devices are set up for the races of files: a profile of the driver's. Its first if not given.
    tries
        How often the kernel does each race.
    seed
        What the delays are drawn from, which one side of each try begins with.
    preemptions
        The most preemptions in an order that the model runs, or "all".
    schedules
        The most orders that the model runs for each race; if not given, all there are.
    recorded
        A race.json with outcomes of a kernel that ran before: none is booted.
    kernel
        Kernel that was built.
    cache
        Folder that it was built in, if not the usual one.
    out
        New or empty directory for race.json, and a text of each race with an outcome that the model does not allow.
    json
        Print race.json, and nothing else, on standard output.
    """
    from gpusvm.cli.progress import races_shown
    from gpusvm.errors import InputError
    from gpusvm.realkernel import race as run_race
    from gpusvm.report import print_races

    if preemptions != "all" and not (preemptions.isascii() and preemptions.isdigit()):
        raise InputError(f"--preemptions: expected a whole number from 0 on or 'all', got {preemptions!r}")
    with races_shown() as listener:
        found = run_race(
            driver,
            names=race,
            files=files,
            profile=profile,
            tries=tries,
            seed=seed,
            preemptions=None if preemptions == "all" else int(preemptions),
            schedules=schedules,
            recorded=recorded,
            kernel=kernel,
            shop=cache,
            out=out,
            progress=listener,
        )
    return _told(found, lambda: print_races(found), json=json, out=out)


def _told(found: "Diff | Races", show: Callable[[], None], *, json: bool, out: Path | None) -> int:
    """Say what was found, in one of two ways; the exit code."""
    if json:
        print(found.to_json(), end="")
    else:
        show()
        if out is not None:
            print(f"Written to {out}.")
    return 0 if found.ok else 1
