"""gpusvm inject: everything that may fail fails once."""

from typing import Annotated, Literal

from cyclopts import Parameter

from gpusvm.cli.parameters import Flag, Repeatable

__all__ = ["inject"]


def inject(
    *drivers: str,
    program: Repeatable = (),
    quirks: Annotated[Literal["as_written", "fixed"], Parameter(name_transform=str)] = "fixed",
    list_: Annotated[Flag, Parameter(name="--list")] = False,
    json: Flag = False,
    without: Repeatable = (),
) -> int:
    """Let every allocation, mapping and copy of bundled programs fail once, and check what is left each time.

    Exit codes: 0 nothing broke, 1 findings, 2 bad input.

    Parameters
    ----------
    drivers
        Drivers: NAME[:KEY=VALUE[,KEY=VALUE...]]. All installed ones if none is named.
    program
        Run this program only, by its name; may be given several times.
    quirks
        What every quirk is set to that a driver's spec does not name.
    list_
        List the programs.
    json
        Print JSON, and nothing else, on standard output.
    without
        Leave a driver plugin out, broken or not; may be given several times.
    """
    import sys

    from gpusvm.cli.progress import injection_shown
    from gpusvm.conformance.injection import inject as run_sweeps
    from gpusvm.conformance.injection import programs, to_json
    from gpusvm.plugins import Installed
    from gpusvm.report import print_json, print_scenarios, print_sweeps, scenarios_document

    if list_:
        if json:
            print_json(scenarios_document(programs()))
        else:
            print_scenarios(programs(), Installed(tuple(without)).registry())
        return 0
    with injection_shown() as listener:
        sweeps = run_sweeps(drivers, only=program, quirks=quirks, without=without, progress=listener)
    if json:
        print(to_json(sweeps), end="")
    else:
        print_sweeps(sweeps)
    sys.stdout.flush()
    return 1 if any(each.findings for each in sweeps) else 0
