"""gpusvm characterize: how drivers behave where Linux's drivers differ."""

from typing import Annotated, Literal

from cyclopts import Parameter

from gpusvm.cli.parameters import Flag, Repeatable

__all__ = ["characterize"]


def characterize(
    *drivers: str,
    probe: Repeatable = (),
    quirks: Annotated[Literal["as_written", "fixed"], Parameter(name_transform=str)] = "as_written",
    json: Flag = False,
    without: Repeatable = (),
) -> int:
    """Ask drivers the questions that Linux's drivers answer differently, by doing it, and print what each does.

    Exit codes: 0 good, 1 findings (a driver as it ships does not do what it declares, or what Linux does and no reason
    is known, or it breaks), 2 bad input.

    Parameters
    ----------
    drivers
        Drivers: NAME[:KEY=VALUE[,KEY=VALUE...]]. All installed ones if none is named.
    probe
        Ask this question only, by its id, S1 to S45; may be given several times.
    quirks
        What every quirk is set to that a driver's spec does not name.
    json
        Print JSON, and nothing else, on standard output; findings are said on standard error.
    without
        Leave a driver plugin out, broken or not; may be given several times.
    """
    import sys

    from gpusvm.cli.progress import characterization_shown
    from gpusvm.conformance.characterizing import characterize as ask
    from gpusvm.report import print_characterization

    with characterization_shown() as listener:
        found = ask(drivers, probes=probe, quirks=quirks, without=without, progress=listener)
    if json:
        print(found.to_json(), end="")
        sys.stdout.flush()
        for each in found.findings:
            print(f"gpusvm: {each.driver}: {each.id}: {each.finding}", file=sys.stderr)
    else:
        print_characterization(found)
    return 1 if found.findings else 0
