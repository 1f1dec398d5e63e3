"""gpusvm explain: what happens in one real run of an operation."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gpusvm.cli.parameters import Flag, Repeatable

__all__ = ["explain"]


def explain(
    operation: Literal["fault", "cpu-fault", "populate", "evict", "munmap", "unplug"],
    /,
    *,
    driver: Repeatable = (),
    thp: Literal["always", "madvise", "never"] = "always",
    quirks: Annotated[Literal["as_written", "fixed"], Parameter(name_transform=str)] = "as_written",
    costs: str = "h100-pcie5",
    full: Flag = False,
    diagram: Flag = False,
    out: Path | None = None,
    json: Flag = False,
    without: Repeatable = (),
) -> int:
    """Print what one real run of an operation goes through: calls, locks, references, invalidations, times.

    Exit codes: 0 good, 2 bad input.

    Parameters
    ----------
    operation
        What is done, to 2 MiB of memory: fault (the GPU writes memory that the CPU has written), cpu-fault (a CPU reads
        memory that is on the device), populate (the program has it brought there), evict (it is brought home), munmap,
        unplug (the device goes away meanwhile).
    driver
        Driver: NAME[:KEY=VALUE[,KEY=VALUE...]]; xe if none is named. With several, they are printed side by side.
    thp
        Transparent huge pages of the system: "never" has 512 pages where else there is a huge one.
    quirks
        What every quirk is set to that a driver's spec does not name.
    costs
        Cost profile: a name, or the path of a TOML file.
    full
        Show the model's own functions as well, and not only those that follow one of Linux.
    diagram
        Print a Mermaid sequence diagram of each driver instead.
    out
        New file for what would be printed.
    json
        Print JSON, and nothing else, on standard output.
    without
        Leave a driver plugin out, broken or not; may be given several times.
    """
    import io
    import sys

    from gpusvm.errors import InputError
    from gpusvm.plugins import Installed
    from gpusvm.report import explained_document, print_explained, print_json, sequence_diagram
    from gpusvm.report.explained import explain as run_explanation

    if json and diagram:
        raise InputError("--json and --diagram: one of them")
    if out is not None and out.exists():
        raise InputError(f"--out: {out} exists; name a new file")
    explained = run_explanation(
        operation,
        driver or ("xe",),
        thp=thp,
        quirks=quirks,
        costs=costs,
        full=full,
        registry=Installed(tuple(without)).registry(),
    )
    text = io.StringIO() if out is not None else None
    if json:
        print_json(explained_document(explained), file=text)
    elif diagram:
        print("\n".join(map(sequence_diagram, explained)), end="", file=text or sys.stdout)
    else:
        print_explained(explained, file=text)
    if out is not None and text is not None:
        try:
            out.write_text(text.getvalue(), "utf-8")
        except OSError as error:
            raise InputError(f"--out: {out} cannot be written: {error.strerror}") from None
    return 0
