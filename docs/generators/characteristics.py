"""Write how the drivers that ship behave, question by question, from the probes and what is expected of each driver.

What is written is what expected.toml says is seen; tests/test_probes.py asks every driver every question and compares.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gpusvm.conformance.probes import PROBES, expectations

from generators.markdown import NOTICE, code, table
from generators.shipped import SHIPPED

__all__ = ["page"]

_DEVIATES: Final = "*"
_MODEL: Final = "°"

_BELOW: Final = "#where-a-driver-does-other-than-its-code-says"

HEAD = f"""\
# How the drivers behave

{NOTICE}

45 questions, each answered by doing it on a machine of its own: `gpusvm characterize` asks them of any driver, yours
too, and prints the answers side by side. Here are those of the drivers that ship, with every quirk as written; a test
asks them all.

`{_DEVIATES}`: the driver's own code of Linux 7.3.4, read alone, says something else; what is seen comes of the
functions that it calls, named [below]({_BELOW}). `{_MODEL}`: neither what was read nor a recording says what
Linux does here; the model's answer is kept, so that it cannot change unnoticed.
"""


def page(root: Path) -> str:
    """Return docs/reference/characteristics.md."""
    lines = [
        HEAD,
        *table(("", "question", *SHIPPED), _matrix()),
        "",
        "## Where a driver does other than its code says",
        "",
    ]
    lines += table(("", "driver", "its code alone reads as", "seen", "why"), _deviations())
    lines += ["", "## Notes", "", *table(("", "driver", "note"), _notes()), "", "## Where Linux says so", ""]
    lines += table(("", "kernel"), ((id_, code(probe.reference)) for id_, probe in PROBES.items()))
    return "\n".join(lines) + "\n"


def _matrix() -> Iterator[tuple[str, ...]]:
    for id_, row in expectations().items():
        answers = []
        for name in SHIPPED:
            mark = _DEVIATES if name in row.seen else _MODEL if name in row.model else ""
            answer = row.seen.get(name, row.of(name))
            if answer is None:
                raise ValueError(f"expected.toml: {id_}: nothing of {name}")
            reason = answer.removeprefix("n/a: ")
            answers.append(f"{answer} {mark}".rstrip() if reason == answer else f"– ({reason})")
        yield id_, PROBES[id_].title, *answers


def _deviations() -> Iterator[tuple[str, ...]]:
    for id_, row in expectations().items():
        for name in SHIPPED:
            if name in row.seen:
                yield id_, name, row.of(name) or "", row.seen[name], row.deviation[name]


def _notes() -> Iterator[tuple[str, ...]]:
    for id_, row in expectations().items():
        yield from ((id_, name, row.note[name]) for name in SHIPPED if name in row.note)
