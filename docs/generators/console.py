"""Run the commands that a page shows, and put their output behind them.

A block of language `console` begins with `$ uv run gpusvm …`; what follows is its output. A comment before the block,
`<!-- rows: simulated time; GPU faults -->`, keeps of a table its head and the named rows. `<!-- findings -->` says that
the command ends with exit status 1, and keeps of `gpusvm explore` the findings without the table, which has a rate.
`<!-- long: --workload bfs -->`, before all that, says that the command takes minutes: as a rule it is only run with
these arguments added, and what that prints must be among what is shown.

Commands of one page run in one empty directory, in order, so that a later one can use what an earlier one wrote.
"""

import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["refreshed"]

_BLOCK = re.compile(
    r"(?:<!-- long: (?P<shorter>.*?) -->\n)?"
    r"(?:<!-- rows: (?P<rows>.*?) -->\n|(?P<findings><!-- findings -->\n))?"
    r"```console\n\$ uv run gpusvm (?P<arguments>.*)\n(?P<output>(?:.*\n)*?)```\n"
)


def refreshed(text: str, *, long: bool = False) -> str:
    """Return a page with the output of its commands as it is now. A command that fails raises, and so does, unless
    `long` ones are run too, one of which the page shows something else than its shorter form prints.
    """
    with TemporaryDirectory() as folder:

        def replace(match: re.Match[str]) -> str:
            arguments = shlex.split(match["arguments"])
            shorter = None if long else match["shorter"]
            if shorter is not None:
                arguments += shlex.split(shorter)
            output = _run(arguments, Path(folder), status=1 if match["findings"] else 0)
            if match["findings"] and arguments[0] == "explore":
                # Nothing found is an exit status of 0, which was refused.
                output = re.split(r"^(?=\S+ on \S+: )", output, maxsplit=1, flags=re.MULTILINE)[1]
            if match["rows"]:
                output = _selected(output, [row.strip() for row in match["rows"].split(";")])
            if shorter is not None:
                if output not in match["output"]:
                    raise RuntimeError(f"what a long command shows is not what it prints with {shorter}:\n{output}")
                return match[0]
            return match[0][: match.start("output") - match.start()] + output + "```\n"

        return _BLOCK.sub(replace, text)


def _run(arguments: list[str], folder: Path, *, status: int) -> str:
    command = [str(Path(sys.executable).with_name("gpusvm")), *arguments]
    # The pages call it by `uv run`, and what it says of itself goes by how it was called.
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "UV_RUN_RECURSION_DEPTH": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - the page's own commands
    if done.returncode != status:
        raise RuntimeError(f"gpusvm {shlex.join(arguments)}: exit status {done.returncode}: {done.stderr.strip()}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.strip("\n").splitlines())


def _selected(output: str, rows: list[str]) -> str:
    """Keep of every table its title, its head and the rows asked for, in the table's order."""
    tables: list[list[str]] = []
    head = False
    lines = [line for line in output.splitlines() if line.strip()]
    for line, following in pairwise([*lines, ""]):
        if " VRAM, thp " in following:
            tables.append([])
            head = True
        label = re.split(r"\s{2,}", line.strip(), maxsplit=1)[0]
        if head or label in rows:
            tables[-1].append(line)
        if line.strip().startswith("─"):
            head = False
    for kept in tables:
        missing = [row for row in rows if not any(line.strip().startswith(row) for line in kept)]
        if missing:
            raise RuntimeError(f"the table has no row {missing[0]!r}")
    return "\n".join("".join(f"{line}\n" for line in kept) for kept in tables)
