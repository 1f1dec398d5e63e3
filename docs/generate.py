"""Write the pages of the reference that are generated from code and data: `python docs/generate.py`.

With `--check` nothing is written; the pages that are stale are named, and the exit status is 1. With `--outputs` the
commands that the README, the tutorial and some other pages show are run, which takes a minute, and their output is put
behind them; with `--long-outputs` also those that take minutes.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from generators import (
    campaigns,
    characteristics,
    conformance,
    console,
    contract,
    costs,
    drivers,
    facts,
    invariants,
    knobs,
    locks,
    mm_quirks,
    mutants,
    rules,
    scenarios,
    symbols,
)

ROOT: Final = Path(__file__).resolve().parent.parent
REFERENCE: Final = ROOT / "docs" / "reference"
WITH_OUTPUTS: Final = (
    ROOT / "README.md",
    ROOT / "docs" / "tutorial" / "first-ten-minutes.md",
    ROOT / "docs" / "how-to" / "explore.md",
    ROOT / "docs" / "how-to" / "explain.md",
    ROOT / "docs" / "explanation" / "chunk-sizes.md",
    ROOT / "docs" / "explanation" / "pagemap-embedding.md",
)

PAGES: Final[dict[str, Callable[[Path], str]]] = {
    "kernel-symbols.md": symbols.page,
    "driver-contract.md": contract.page,
    "drivers.md": drivers.page,
    "knobs.md": knobs.page,
    "characteristics.md": characteristics.page,
    "mm-quirks.md": mm_quirks.page,
    **{name: partial(facts.page, name) for name in facts.PAGES},
    "costs.md": costs.page,
    "lock-order.md": locks.page,
    "invariants.md": invariants.page,
    "mutants.md": mutants.page,
    "scenarios.md": scenarios.page,
    "campaigns.md": campaigns.page,
    "conformance.md": conformance.page,
    "driver-rules.md": rules.page,
}


def stale() -> list[str]:
    """Name the pages that are not what the generators would write now."""
    found = []
    for name, page in PAGES.items():
        path = REFERENCE / name
        if not path.is_file() or path.read_text("utf-8") != page(ROOT):
            found.append(name)
    return found


def main(arguments: Sequence[str]) -> int:
    """Write all pages, or do what the module's docstring says of its options; the exit status."""
    if list(arguments) == ["--check"]:
        names = stale()
        for name in names:
            sys.stdout.write(f"docs/reference/{name} is stale; run: uv run python docs/generate.py\n")
        return 1 if names else 0
    if list(arguments) in (["--outputs"], ["--long-outputs"]):
        for path in WITH_OUTPUTS:
            text = console.refreshed(path.read_text("utf-8"), long=list(arguments) == ["--long-outputs"])
            path.write_text(text, "utf-8")
        return 0
    if arguments:
        sys.stderr.write("usage: python docs/generate.py [--check | --outputs | --long-outputs]\n")
        return 2
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(ROOT), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
