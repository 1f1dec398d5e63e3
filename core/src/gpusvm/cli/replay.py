"""gpusvm replay: see a finding again, step by step."""

from pathlib import Path

from gpusvm.cli.parameters import Flag, Repeatable

__all__ = ["replay"]


def replay(
    file: Path,
    /,
    *,
    explain: Flag = False,
    full: Flag = False,
    diagram: Flag = False,
    json: Flag = False,
    without: Repeatable = (),
) -> int:
    """Repeat a finding exactly.

    Exit codes: 0 it does not show, 1 it shows again, 2 bad input.

    Parameters
    ----------
    file
        What gpusvm explore has written.
    explain
        Print the execution in a column for each task, with the places in the code, and mark where it broke.
    full
        With --explain or --diagram: leave no step out.
    diagram
        Draw the execution, too, into a picture beside FILE that a browser shows: finding.txt is drawn as finding.svg.
    json
        Print JSON, and nothing else, on standard output.
    without
        Leave a driver plugin out, broken or not; may be given several times.
    """
    from gpusvm.conformance.mutants import load
    from gpusvm.explore.finding import read_finding
    from gpusvm.explore.repeat import repeat_finding
    from gpusvm.plugins import Installed
    from gpusvm.report import draw_explanation, print_explanation, print_json, print_repeated, repeated_document

    finding = read_finding(file)
    mutant = None if finding.mutant is None else load(finding.mutant)
    repeated = repeat_finding(finding, drivers=Installed(tuple(without)), mutant=mutant)
    picture = file.with_suffix(".svg") if diagram else None
    if picture is not None:
        draw_explanation(repeated, finding, picture, full=full)
    if json:
        print_json(repeated_document(repeated, finding, explain=explain))
    else:
        if explain:
            print_explanation(repeated, full=full)
        print_repeated(repeated, finding)
        if picture is not None:
            print(f"Drawn: {picture}")
    return 1 if repeated.shows(finding) else 0
