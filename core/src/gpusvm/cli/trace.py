"""gpusvm trace: look at page-touch traces."""

from cyclopts import App

from gpusvm.cli.parameters import Flag

__all__ = ["trace"]

trace = App(name="trace", help="Look at page-touch traces.", help_format="plaintext")


@trace.command
def info(file: str, /, *, json: Flag = False) -> int:
    """Describe a trace in numbers.

    Parameters
    ----------
    file
        Path of a trace file, or name of a bundled trace.
    json
        Print JSON, and nothing else, on standard output.
    """
    from gpusvm.report import print_json, print_trace_info
    from gpusvm.workload import load, trace_info

    found = trace_info(load(file))
    if json:
        print_json(found)
    else:
        print_trace_info(found)
    return 0
