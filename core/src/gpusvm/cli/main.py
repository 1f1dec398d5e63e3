"""Parse the command line, run the command, and turn what it raises into one line and an exit code."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from gpusvm.cli.characterize import characterize
from gpusvm.cli.compare import compare
from gpusvm.cli.conform import conform
from gpusvm.cli.drivers import drivers
from gpusvm.cli.explain import explain
from gpusvm.cli.explore import explore
from gpusvm.cli.inject import inject
from gpusvm.cli.new_driver import new_driver
from gpusvm.cli.realkernel import realkernel
from gpusvm.cli.replay import replay
from gpusvm.cli.trace import trace
from gpusvm.errors import InputError, ModelError, PluginError

__all__ = ["FINDINGS", "GOOD", "INTERRUPTED", "USAGE", "app", "main", "run"]

GOOD, FINDINGS, USAGE, INTERRUPTED, CLOSED = 0, 1, 2, 130, 141


def _version() -> str:
    from importlib import metadata  # takes 20 ms, and --help has 300

    return f"gpusvm {metadata.version('gpusvm-core')}"


app = App(
    name="gpusvm",
    help="An executable laboratory for GPU shared virtual memory as Linux does it.",
    help_format="plaintext",
    version=_version,
    version_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(compare)
app.command(characterize)
app.command(conform)
app.command(drivers)
app.command(explain)
app.command(explore)
app.command(inject)
app.command(replay)
app.command(trace)
app.command(realkernel)
app.command(new_driver)


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code that docs/reference/command-line.md gives."""
    try:
        code = app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as exc:
        return _say(str(exc), USAGE)
    except (InputError, PluginError) as exc:
        return _say(str(exc), USAGE)
    except ModelError as exc:
        return _say(str(exc), FINDINGS)
    except TypeError as exc:
        from gpusvm.kernel.authors import blames_call

        blamed = blames_call(exc)
        if not blamed:
            raise
        return _say(f"{exc}{blamed}", FINDINGS)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read standard output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    return code if isinstance(code, int) else GOOD


def _say(message: str, code: int) -> int:
    for line in message.splitlines():
        if line.strip():
            print(f"gpusvm: {line.strip()}", file=sys.stderr)
    return code
