"""Write down, fact by fact, what Linux does, where the model does it, and who would notice if it did no longer."""

import ast
import pkgutil
import tomllib
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from generators.markdown import NOTICE, code, table

__all__ = ["PAGES", "Fact", "Page", "Section", "page", "problems", "read_facts"]

HERE: Final = Path(__file__).parent
FIDELITY: Final = "docs/explanation/fidelity.md"
_COLUMNS: Final = ("fact", "in the model", "a test that fails without it")

INTRO: Final = """\
where the model has each, or that it has not, and then the words of
[fidelity](../explanation/fidelity.md) that say why. A test of the repository checks that what stands here is there, and
compares the values. [Kernel symbols](kernel-symbols.md) lists the functions."""


@frozen(kw_only=True)
class Page:
    """Be one page of facts: the file that they are in, a heading, and what they are about."""

    source: str
    title: str
    about: str


PAGES: Final = {
    "drm-and-xe-facts.md": Page(
        source="facts.toml",
        title="Facts about drm_gpusvm, drm_pagemap and xe",
        about="The numbers, limits, retries, errnos, orders and locks of Linux 7.3.4's `drm_gpusvm`, `drm_pagemap` and "
        "xe's SVM, in the\nwords of this project:",
    ),
    "nouveau-and-dmirror-facts.md": Page(
        source="facts_nouveau_dmirror.toml",
        title="Facts about nouveau and dmirror",
        about="The same of nouveau's SVM and of the kernel's own test device, `lib/test_hmm.c`, of Linux 7.3.4:",
    ),
    "kfd-facts.md": Page(
        source="facts_kfd.toml",
        title="Facts about kfd",
        about="The same of amdkfd's SVM of Linux 7.3.4, `kfd_svm.c` and `kfd_migrate.c`:",
    ),
}


@frozen(kw_only=True)
class Fact:
    """Be one of them: places in the model with a value of the last, and tests; or the words that leave it out."""

    says: str
    places: tuple[str, ...] = ()
    value: Any = None
    tests: tuple[str, ...] = ()
    left_out: str = ""


@frozen(kw_only=True)
class Section:
    """Hold the facts about one thing, which is in these files of the kernel."""

    title: str
    kernel: str
    facts: tuple[Fact, ...]


def read_facts(*names: str) -> list[Section]:
    """Return what the named pages, or all, have; KeyError or TypeError for what their files should not have."""
    return [
        Section(
            title=section["title"],
            kernel=section["kernel"],
            facts=tuple(_fact(each) for each in section["fact"]),
        )
        for name in names or PAGES
        for section in tomllib.loads((HERE / PAGES[name].source).read_text("utf-8"))["section"]
    ]


def problems(root: Path) -> list[str]:
    """Name what is not as the facts say: a place that is gone, another value, a test or a reason that there is not."""
    tests = _tests(root)
    reasons = " ".join((root / FIDELITY).read_text("utf-8").split())
    found = []
    for section in read_facts():
        for fact in section.facts:
            if bool(fact.left_out) == bool(fact.places and fact.tests):
                found.append(f"{fact.says}: in the model and tested, or left out, one of the two")
            if fact.left_out and fact.left_out not in reasons:
                found.append(f"{fact.says}: {FIDELITY} does not say {fact.left_out!r}")
            found += [f"{fact.says}: there is no test {name}" for name in fact.tests if name not in tests]
            last = None
            for place in fact.places:
                try:
                    last = resolve(place)
                except (AttributeError, ImportError) as error:
                    found.append(f"{fact.says}: {place}: {error}")
            if fact.value is not None and last != fact.value:
                found.append(f"{fact.says}: {fact.places[-1]} is {last!r}, not {fact.value!r}")
    return found


def resolve(place: str) -> Any:
    """Return the object at ``module:name.name``; ``Name()`` stands for one that was built with its defaults."""
    module, _, path = place.partition(":")
    found: Any = pkgutil.resolve_name(module)
    for name in path.split("."):
        found = getattr(found, name.removesuffix("()"))
        if name.endswith("()"):
            found = found()
    return found


def page(name: str, _root: Path) -> str:
    """Return one page of docs/reference."""
    sections = read_facts(name)
    facts = [fact for section in sections for fact in section.facts]
    out = sum(bool(fact.left_out) for fact in facts)
    head = f"# {PAGES[name].title}\n\n{NOTICE}\n\n{PAGES[name].about}\n{INTRO}"
    lines = [head, "", f"{len(facts)} facts, {len(facts) - out} in the model, {out} left out."]
    for section in sections:
        rows = [
            [fact.says, f"left out: *{fact.left_out}*", ""]
            if fact.left_out
            else [fact.says, _listed(place.replace(":", ".") for place in fact.places), _listed(fact.tests)]
            for fact in section.facts
        ]
        lines += ["", f"## {section.title}", "", f"In the kernel: {section.kernel}.", "", *table(_COLUMNS, rows)]
    return "\n".join(lines) + "\n"


def _fact(data: dict[str, Any]) -> Fact:
    value = data.pop("is", None)
    return Fact(
        says=data.pop("says"),
        places=tuple(data.pop("in", ())),
        value=tuple(value) if isinstance(value, list) else value,
        tests=tuple(data.pop("tests", ())),
        **data,
    )


def _listed(names: Any) -> str:
    return "<br>".join(code(name) for name in names)


def _tests(root: Path) -> set[str]:
    """Return ``file::test`` of every test of the repository; files have names of their own."""
    found = set()
    for path in [
        *root.glob("tests/**/test_*.py"),
        *root.glob("*/tests/**/test_*.py"),
        *root.glob("plugins/*/tests/**/test_*.py"),
    ]:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(f"{path.stem}::{node.name}")
    return found
