"""Write down what scenarios are made of, and those that come with gpusvm."""

import inspect
from itertools import groupby
from pathlib import Path

from gpusvm.driver import Errnos
from gpusvm.errors import errno_name
from gpusvm.explore.operation import OPERATIONS, Kind
from gpusvm.explore.scenario import Scenario, bundled

from generators.markdown import NOTICE, cell, code, table
from generators.shipped import SHIPPED, info_of

__all__ = ["page"]

HEAD = f"""\
# Scenarios

{NOTICE}

A scenario is a small concurrent program, as data: `gpusvm explore NAME` runs it in many orders. Any file of such tables
can be given in place of a name:

```toml
[[scenario]]
name = "fault-munmap"
about = "the GPU writes memory that is being unmapped"
setup = ["map 0 4", "cpu_write 0 4"]
tasks.gpu = ["gpu_write 0 4"]
tasks.cpu = ["munmap 0 4"]
```

`setup` runs first and has to succeed, then the tasks run next to each other, `end` comes last. An operation is a line
`[PROCESS.]NAME[@FILE] ARGUMENT…`: without a process it is about the first one, `p`; without a file it goes through the
first file that the process has of a device. Pages count from 0, at the beginning of a PMD's block. Other keys, with
their defaults: `standard` (false), `needs` (capabilities that a driver must have), `drivers` (all), `thp` ("never"),
`pmd_order` (2), `vram_pages` (16), `ram_pages` (128), `devices` and `files` of each in every process (1),
`iommu` (false: devices reach RAM directly), `settings.NAME` (options for the spec string of a driver), `cpus` (0: each
task has its own) and `preemptive` (true). With settings that serve no faults (`kfd:xnack=off`) a scenario in which the
GPU touches memory is left out, unless it has `settings.kfd`: then its setup registers that memory.

On a small PMD the driver's sizes shrink with it, on a logarithmic scale: with a PMD of four pages, 2 MiB become 16 KiB,
64 KiB become 8 KiB and 4 KiB stay.

## What an operation may answer

An operation ends well, or with an errno or a signal, for which there must have been a reason while it ran; without one
the outcome itself is a finding (kind `errno`), and so is a success that nothing allowed: an access to a page that was
unmapped all the while, say. The reasons:

"""

REASONS = {
    "killed": "the process was killed for want of memory, and its pages taken away",
    "in_use": "a process has the device open",
    "locked_exclusive": "something else was under way, and the quirk `mm_q12` is as written",
    "context_gone": "the GPU's address space was closed: ECANCELED; or never opened: ENXIO",
}

DRIVER = """\

What a driver may answer to its GPU and to its ioctls it states itself, in `DriverInfo.refusals`:
"""


def page(root: Path) -> str:
    """Return docs/reference/scenarios.md."""
    lines = [HEAD.rstrip(), ""]
    reasons = {**_field_docs(), **REASONS}
    lines += table(("reason", "it was so, at some moment, that"), [[code(key), text] for key, text in reasons.items()])
    lines += [DRIVER]
    rows = []
    for name in SHIPPED:
        refusals = info_of(name).refusals
        for what in ("access", "atomic", "populate", "ioctl"):
            stated = getattr(refusals, what)
            if stated != Errnos():
                rows.append([code(name), what, _errnos(dict(stated.items()))])
    lines += table(("driver", "request", "errnos by reason"), rows)
    lines += ["", "## Operations", "", _WHO, ""]
    for module, kinds in groupby(OPERATIONS.values(), lambda kind: inspect.getmodule(kind.run)):
        assert module is not None
        lines += [f"### {_title(module.__doc__)}", ""]
        lines += table(("operation", "by", "what it does", "errnos of its own"), map(_operation, kinds))
        lines.append("")
    lines += ["## Bundled scenarios", "", "**Standard** ones are what rates are measured on.", ""]
    for source, scenarios in groupby(bundled(), lambda scenario: scenario.source):
        name = source.rsplit("/", 1)[-1]
        lines += [f"### [{name}](../../core/src/gpusvm/{source})", "", _comment(root, source), ""]
        lines += table(("scenario", "about", "tasks", "drivers"), map(_scenario, scenarios))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


_WHO = """\
By a **thread** of the process, which does nothing more once the process has ended; by its **gpu**, which goes on until
its address space is closed; or by the **machine**, whoever lives."""


def _field_docs() -> dict[str, str]:
    """Read the sentences behind the fields of `Errnos`."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.getsource(Errnos).splitlines():
        text = line.strip()
        if ": AbstractSet[int]" in text:
            name = text.split(":")[0]
        elif name and text.startswith('"""'):
            sentence = text.strip('"').rstrip(".")
            found[name] = sentence[0].lower() + sentence[1:]
            name = ""
    return found


def _title(doc: str | None) -> str:
    return (doc or "").splitlines()[0].rstrip(".")


def _operation(kind: Kind) -> list[str]:
    about = kind.about.replace("``", "`")
    return [code(kind.usage), kind.by, about, _errnos(kind.errnos)]


def _errnos(reasons: object) -> str:
    assert isinstance(reasons, dict)
    parts = [
        f"{reason}: {' '.join(sorted(map(errno_name, numbers)))}" for reason, numbers in reasons.items() if numbers
    ]
    return "; ".join(parts)


def _scenario(scenario: Scenario) -> list[str]:
    about = f"**standard**: {scenario.about}" if scenario.standard else scenario.about
    tasks = "; ".join(f"{name}: {', '.join(map(str, lines))}" for name, lines in scenario.tasks.items())
    drivers = [name for name in SHIPPED if not scenario.refuses(info_of(name))]
    return [code(scenario.name), about, cell(tasks), ", ".join(drivers)]


def _comment(root: Path, source: str) -> str:
    """Return the comment that a scenario file begins with."""
    lines = []
    for line in (root / "core" / "src" / "gpusvm" / source).read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)
