"""Run the commands that a page shows, and put their output behind them.

A block of language `console` begins with `$ uv run gpusvm …`; what follows is its output. A comment before the block,
`<!-- rows: simulated time; GPU faults -->`, keeps of a table its head and the named rows. `<!-- findings -->` says that
the command ends with exit status 1, and keeps of `gpusvm explore` the findings without the table, which has a rate.
Commands of one page run in one empty directory, in order, so that a later one can use what an earlier one wrote.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["refreshed"]

_BLOCK = re.compile(
    r"(?:<!-- rows: (?P<rows>.*?) -->\n|(?P<findings><!-- findings -->\n))?"
    r"```console\n\$ uv run gpusvm (?P<arguments>.*)\n(?P<output>(?:.*\n)*?)```\n"
)


def refreshed(text: str) -> str:
    """Return a page with the output of its commands as it is now. A command that fails raises."""
    with TemporaryDirectory() as folder:

        def replace(match: re.Match[str]) -> str:
            arguments = shlex.split(match["arguments"])
            output = _run(arguments, Path(folder), status=1 if match["findings"] else 0)
            if match["findings"] and arguments[0] == "explore":
                # Nothing found is an exit status of 0, which was refused.
                output = re.split(r"^(?=\S+ on \S+: )", output, maxsplit=1, flags=re.MULTILINE)[1]
            if match["rows"]:
                output = _selected(output, [row.strip() for row in match["rows"].split(";")])
            return match[0][: match.start("output") - match.start()] + output + "```\n"

        return _BLOCK.sub(replace, text)


def _run(arguments: list[str], folder: Path, *, status: int) -> str:
    command = [str(Path(sys.executable).with_name("gpusvm")), *arguments]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - the page's own commands
    if done.returncode != status:
        raise RuntimeError(f"gpusvm {shlex.join(arguments)}: exit status {done.returncode}: {done.stderr.strip()}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").splitlines())


def _selected(output: str, rows: list[str]) -> str:
    """Keep of every table its title, its head and the rows asked for, in the table's order."""
    kept, head = [], True
    for line in output.splitlines():
        label = re.split(r"\s{2,}", line.strip(), maxsplit=1)[0]
        if head or label in rows:
            kept.append(line)
        if line.strip().startswith("─"):
            head = False
    missing = [row for row in rows if not any(line.strip().startswith(row) for line in kept)]
    if missing:
        raise RuntimeError(f"the table has no row {missing[0]!r}")
    return "".join(f"{line}\n" for line in kept if line.strip())
