"""Write down the invariants: what each says, when it is checked, where it comes from, and how a test breaks it."""

from pathlib import Path

from gpusvm.check import INVARIANTS, RULES
from gpusvm.check.invariants import GROUPS

from generators.markdown import NOTICE, table

__all__ = ["page"]

_TESTS = "../../core/tests/mm/test_mm_invariants.py"
_COLUMNS = ("number:", "name", "rule", "checked", "from", "how a test breaks it")

HEAD = f"""\
# Invariants

{NOTICE}

What must hold of the mm, as numbered in messages and in `gpusvm.check`. Most are assertions of Linux 7.3.4 itself, the
others follow from what its functions do together.

- **always**: whenever no page-table-lock section is open. In explored runs a `Checker` looks after every section, at
  what the section touched; what changes without a word to anybody it finds at the latest eight steps later.
- **event**: about behaviour. A `Checker` looks where it happens, in every run.
- **quiescent**: for the whole machine, when no task is inside a migrate, split, zap, fault or fork.
  `check_quiescent(memory)` does that at any such moment, with a `Checker` or without; a run with checks does so when
  its program has ended.

[Fidelity](../explanation/fidelity.md#what-always-means) says more about when a state is whole. Each rule is
[proven able to fail]({_TESTS}): `test_invariant[NN-name]` does what the last column says, and exactly that rule is
reported, with addresses, pfns and tasks. A rule that a quirk of Linux breaks by design, as written, is reported as
`known`, under the quirk's name."""


def page(root: Path) -> str:
    """Return docs/reference/invariants.md."""
    lines = [HEAD]
    for module, title in GROUPS.items():
        rows = []
        for one in INVARIANTS.values():
            if one.module == module:
                assert RULES[one.number], one
                checked = ", ".join(one.strengths)
                rows.append([str(one.number), one.name, one.statement, checked, one.source, one.broken_by])
        lines += ["", f"## {title}", "", f"In `gpusvm.check.{module}`.", "", *table(_COLUMNS, rows)]
    return "\n".join(lines) + "\n"
