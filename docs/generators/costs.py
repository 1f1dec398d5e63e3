"""List every number of the bundled cost profiles with its source."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
from gpusvm.kernel import Costs
from gpusvm.run.costs import CostProfile, bundled_profiles, load_profile

from generators.markdown import NOTICE, cell, code, table
from generators.sources import modules

__all__ = ["page"]

KINDS = ("measured", "fitted", "published", "assumed")

HEAD = f"""\
# Costs

{NOTICE}

What each charged event of the bundled profiles costs, and where the number comes from.
[Cost profiles](cost-profiles.md) describes the file format and how the profiles came about;
[time and costs](../explanation/time-and-costs.md) says how a run uses them.

**Calibrated** is what is *fitted*: the constants were chosen so that the model agrees with the data they came from, and
that agreement shows nothing. **Predicted** is everything else that a run reports. `measured` and `published` numbers go
in as they are. What rests on `assumed` numbers is reported by every run as `assumed_ns`.

This fits the constants of `h100-pcie5` again, and prints them with their residuals:

```sh
uv run python benchmarks/fit_costs.py core/src/gpusvm/run/profiles/h100-costs.csv
```

The sums that `xe-bmg` was solved from are at the head of `core/src/gpusvm/run/profiles/xe-bmg.toml`;
`uv run pytest core/tests/run/test_costs.py` checks both."""


CALIBRATION = """\
What one fault on xe costs with `xe-bmg`, as this prints it:

```sh
uv run python benchmarks/calibration.py
```"""


def page(root: Path) -> str:
    """Return docs/reference/costs.md."""
    profiles = [load_profile(name) for name in bundled_profiles()]
    rows = [(code(p.name), *(str(_count(p, kind)) for kind in KINDS), cell(p.summary)) for p in profiles]
    lines = [HEAD, "", *table(("profile", *(f"{kind}:" for kind in KINDS), "what it is"), rows)]
    lines += ["", "## Calibrated and predicted", "", CALIBRATION, "", "```text", *_calibration(root), "```"]
    idle = _charged_nowhere(root)
    if idle:
        lines += ["", f"In every profile, and charged nowhere yet: {', '.join(map(code, idle))}."]
    for profile in profiles:
        lines += ["", f"## {profile.name}", ""]
        lines += table(("event", "ns:", "kind", "source"), _events(profile))
        lines += ["", "Copies: `base + per piece * pieces + per byte * bytes`.", ""]
        lines += table(("copy", "base ns:", "per piece ns:", "ns per byte:", "kind", "source"), _copies(profile))
    return "\n".join(lines) + "\n"


def _calibration(root: Path) -> list[str]:
    """Run the command and return the lines that it prints."""
    command = [sys.executable, str(root / "benchmarks" / "calibration.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - a script of this repository
    return [line.rstrip() for line in done.stdout.strip().splitlines()]


def _charged_nowhere(root: Path) -> list[str]:
    """Name the events that no code outside the profiles and their reader mentions."""
    text = "".join(
        (root / module.file).read_text("utf-8")
        for module in modules(root)
        if module.name not in {Costs.__module__, CostProfile.__module__}
    )
    names = [field.name for field in attrs.fields(Costs) if field.name not in {"copies", "assumed"}]
    # Costs itself puts these together: bo_clear_ns and remote_ns.
    return [
        name
        for name in names
        if not name.startswith(("bo_clear_", "remote_ns_")) and not re.search(rf"\b{name}\b", text)
    ]


def _count(profile: CostProfile, kind: str) -> int:
    return sum(source.kind == kind for source in profile.sources.values())


def _events(profile: CostProfile) -> Iterator[tuple[str, str, str, str]]:
    for field in attrs.fields(Costs):
        source = profile.sources.get(field.name)
        if source is None:
            continue
        value = getattr(profile.costs, field.name)
        shown = f"{value:,}" if isinstance(value, int) else f"{value:g}"
        if field.name == "remote_bytes_per_row":
            shown += " bytes"
        yield code(field.name), shown, source.kind, source.source


def _copies(profile: CostProfile) -> Iterator[tuple[str, str, str, str, str, str]]:
    for (shape, direction), cost in profile.costs.copies.items():
        source = profile.sources[f"copy_{shape}_{direction}"]
        yield (
            code(f"{shape}.{direction}"),
            f"{cost.base_ns:,}",
            f"{cost.per_piece_ns:,}",
            f"{cost.ns_per_byte:g}",
            source.kind,
            source.source,
        )
