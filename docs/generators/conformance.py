"""Write down what the conformance suite consists of."""

import inspect
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from attrs import evolve
from gpusvm.conformance.caught import read_trials
from gpusvm.conformance.shown import Showing, quiet, shown
from gpusvm.conformance.suite import PROFILES, SPEC_VERSION, Check, Expected, Status
from gpusvm.conformance.suite.catalogue import catalogue
from gpusvm.conformance.suite.column import read_columns
from gpusvm.conformance.suite.defects import DEFECTS
from gpusvm.plugins import Installed

from generators.markdown import NOTICE, cell, code, table

__all__ = ["page"]

_FEW: Final = 3

HEAD = f"""\
# The conformance suite

{NOTICE}

Version {SPEC_VERSION}. The minor number grows with each check that is added, the major one when a check comes to
mean something else. An id stays what it is. [How to run the suite](../how-to/conform.md); `gpusvm conform --list`
prints this list.

## What it measures

A check boots machines of the model with the driver on their devices, touches memory from the CPUs and the GPU, and
looks at what both see: the contents of memory, which are compared with what was written last at each read, where
pages are, what the GPU has mapped and with which permissions, which errnos come back, and what the device's power
is. While it runs every invariant of the model is checked ([which](invariants.md)), locks are watched by lockdep,
and at its end every machine is torn down: a reference, a mapping, a page or a work that is left is a failure of the
check. It never asks for the driver's name, and reads of a driver only what the [contract](driver-contract.md) has it
offer, its pagemaps and page tables, say; what is kept in fields of its own it may keep as it likes. The checks `ops.*`
stand between core and the driver, whoever wrote either: they see each call of an op of drm_gpusvm and drm_pagemap with
what was passed, which locks were held and what came of it, may have it answer with an errno in the driver's place, and
read what core keeps of the objects that the driver hands it. The checks `orders.*` run small programs in a few tens of
orders of their tasks; [exploration](../how-to/explore.md) runs them in many more.

## Profiles

A driver claims a profile by a capability that it declares; `core` is every driver's. It conforms to a profile if
each of its checks ran and came to `pass`, to a failure that the driver states, or to a capability that it declares
to lack.

"""


COST = """\
## What it costs

Seconds of `gpusvm conform --driver NAME [--profile NAME] --jobs {jobs}`, imports and processes included, as `{command}`
measures them: of CPU time, in all its processes, and on the clock. The machine had two CPUs, for which so many
processes were waiting when a run began; on an idle one the clock takes little more than half of the CPU time.
"""

SEEN = """\
What each check has been seen to fail with is in the column `fails with`: a [bug that Linux had](mutants.md), brought
back, or a [driver that breaks a rule](mutants.md#broken-drivers), of those that fail it the one that fails least else,
and how many more there are. `python benchmarks/mutants.py --suite` found that out ([outcomes](mutants-suite.json)),
and [a test](../../tests/test_checks_shown.py) repeats it. {summary}
"""

STATED = """\
## What the drivers that ship state

A driver states the checks that it fails in its own `conformance.toml`
([how](../how-to/conform.md#state-what-it-fails)), each with the kind, the reason, the reference, and the quirks by
which it fails. Of several quirks each alone makes the checks fail, but those joined by `+`, which do so only together:
the entry ends when none of them is left. [A test](../../tests/test_conformance_statements.py) tries each. What the mm
as written does wrong by itself, and no driver can help, fails nothing; a driver that makes something worse of it states
that.
"""


def page(root: Path) -> str:
    """Return docs/reference/conformance.md."""
    checks = catalogue()
    trials = read_trials(root / "docs" / "reference" / "mutants-suite.json")
    seen = shown(trials)
    rows = []
    for profile, capability in PROFILES.items():
        number = sum(check.profile == profile for check in checks)
        rows.append([code(profile), "" if capability is None else code(capability), str(number)])
    lines = [HEAD.rstrip(), "", *table(("profile", "claimed by", "checks"), rows), ""]
    lines += ["## Statuses", "", f"{' '.join(inspect.getdoc(Status).split())}", ""]  # type: ignore[union-attr]  # it has one
    failing = ", ".join(code(each.value) for each in Status if each.is_failure)
    lines += [f"With {failing} the exit code is 1.", ""]
    never = quiet([check.id for check in checks], trials)
    summary = f"Nothing has failed {', '.join(map(code, never))} yet." if never else f"All {len(checks)} have failed."
    lines += [*_stated(), *_cost(root), "## Checks", "", SEEN.format(summary=summary)]
    for area, found in groupby(sorted(checks, key=_area), _area):
        lines += [f"### {area}", ""]
        lines += table(
            ("check", "rule", "since", "profile", "requires", "from", "fails with"),
            [_row(check, seen.get(check.id, ())) for check in found],
        )
        lines.append("")
    lines += ["## Known to judge wrongly", ""]
    if DEFECTS:
        lines += table(("check", "why no driver is held to it"), [[code(id_), why] for id_, why in DEFECTS.items()])
    else:
        lines.append("No check is.")
    return "\n".join(lines).rstrip() + "\n"


def _stated() -> list[str]:
    found: dict[tuple[str, Expected], list[str]] = {}
    for column in read_columns((), Installed(()).registry()):
        for name, each in column.statement.expected.items():
            found.setdefault((column.driver, evolve(each, check="", place="")), []).append(name)
    rows = [
        [
            code(driver),
            "<br>".join(map(code, names)) if len(names) <= _FEW else f"{code(names[0])} and {len(names) - 1} more",
            each.kind,
            ", ".join(code(" + ".join(group)) for group in each.quirks),
            cell(each.reason),
            cell(each.ref),
        ]
        for (driver, each), names in found.items()
    ]
    return [STATED, *table(("driver", "checks", "kind", "quirks", "reason", "from"), rows), ""]


def _cost(root: Path) -> list[str]:
    found = json.loads((root / "docs" / "reference" / "conformance-cost.json").read_text("utf-8"))
    rows = [
        [
            code(each["driver"]),
            "all" if each["profile"] == "all" else code(each["profile"]),
            *(f"{each[name]:g}" for name in ("checks", "cpu_s", "wall_s", "load")),
        ]
        for each in found["rows"]
    ]
    names = ("driver", "profile", "checks that ran", "CPU time, s", "clock, s", "waiting processes")
    return [COST.format(jobs=found["jobs"], command=found["command"]), *table(names, rows), ""]


def _area(check: Check) -> str:
    return check.id.partition(".")[0]


def _row(check: Check, seen: Sequence[Showing]) -> list[str]:
    more = f" and {len(seen) - 1} more" if len(seen) > 1 else ""
    return [
        code(check.id),
        cell(check.rule),
        check.since,
        check.profile,
        ", ".join(map(code, check.requires)),
        cell(check.ref),
        f"{code(seen[0].by)} on {seen[0].driver}{more}" if seen else "",
    ]
