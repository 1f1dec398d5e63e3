"""Write the table of the mm's quirks from the switches themselves."""

from pathlib import Path

import attrs
from gpusvm.mm.quirks import MmQuirks

from generators.markdown import NOTICE, code, table

__all__ = ["page"]

HEAD = f"""\
# Quirks of the mm

{NOTICE}

Places where the mm of Linux 7.3.4, as written, surprises or is suspected to be wrong. Each is a switch with two
variants, `as_written`, the default, and `fixed`, what a reviewer would want. A spec string sets one
(`xe:quirk.mm_s1=fixed`), `--quirks fixed|as_written` sets them all, together with those of the driver, and
[`MmQuirks`](../../core/src/gpusvm/mm/quirks.py) is the same from Python. S names a suspected defect, Q a quirk. Both
variants of each are in [test_mm_quirks.py](../../core/tests/mm/test_mm_quirks.py). Found by reading the source, where
it does not say that 7.3.4 was seen to do it.
"""

# Numbers without a switch in the mm.
ELSEWHERE = (
    ("Q1", "There is none."),
    ("Q4", "It is MM-S4, seen from the outside: `mm_s4`."),
    ("Q14", "It is a driver's: [dmirror](drivers.md#dmirror), an invalidation clears one page too many."),
    ("Q15", "It is a driver's: [dmirror](drivers.md#dmirror), counts of a migration home."),
)


def page(root: Path) -> str:
    """Return docs/reference/mm-quirks.md."""
    rows = [
        (
            each.name.removeprefix("mm_").upper(),
            each.metadata["doc"],
            each.metadata["cite"],
            *_rest(each.metadata, each.name),
        )
        for each in attrs.fields(MmQuirks)
    ]
    lines = [HEAD, *table(("id", "what", "where", "consequence as written", "switch"), rows)]
    lines += ["", "Numbers without a switch here:", "", *table(("id", "why"), ELSEWHERE)]
    return "\n".join(lines) + "\n"


def _rest(metadata: "dict[str, str]", name: str) -> tuple[str, str]:
    return metadata["consequence"], code(f"quirk.{name}")
