"""The documentation: generated pages are fresh, links lead somewhere, and the floors are those that are checked."""

import inspect
import pkgutil
import re
import runpy
import tomllib
from pathlib import Path

import generate
import pytest
from generators import console, contract
from gpusvm import driver

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def names(pages):
    return [page.relative_to(DOCS).as_posix() for page in pages]


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_fresh(name):
    expected = generate.PAGES[name](ROOT)
    assert (DOCS / "reference" / name).read_text("utf-8") == expected, "run: uv run python docs/generate.py"


@pytest.mark.parametrize("page", names(PAGES))
def test_every_link_of_a_page_leads_somewhere(page):
    path = DOCS / page
    targets = [target.partition("#")[0] for target in LINK.findall(path.read_text("utf-8"))]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


DOTTED = re.compile(r"`(gpusvm(?:_\w+)?(?:\.\w+)+)(?:\(.*?\))?`")
NOT_OURS = {"gpusvm.drivers"}  # the entry point group


@pytest.mark.parametrize("page", names(page for page in PAGES if page.name not in generate.PAGES))
def test_every_python_name_in_a_page_exists(page):
    for name in set(DOTTED.findall((DOCS / page).read_text("utf-8"))) - NOT_OURS:
        pkgutil.resolve_name(name)


@pytest.mark.slow
@pytest.mark.parametrize("page", generate.WITH_OUTPUTS, ids=lambda page: page.name)
def test_a_page_shows_what_its_commands_print(page):
    text = page.read_text("utf-8")
    assert text == console.refreshed(text), "run: uv run python docs/generate.py --outputs"


TABLES = """\
one
1 GiB VRAM, thp always
                xe
 ─────────────────
 GPU faults     12
 CPU faults      3

two
1 GiB VRAM, thp always
                xe
 ─────────────────
 GPU faults      4
 CPU faults      5
xe, gpu0: D0 100 %
* marks the least of a row.
"""
LONG = """\
<!-- long: --workload two -->
<!-- rows: GPU faults -->
```console
$ uv run gpusvm compare xe
one
1 GiB VRAM, thp always
                xe
 ─────────────────
 GPU faults     12

two
1 GiB VRAM, thp always
                xe
 ─────────────────
 GPU faults      4
```
"""


def test_a_long_command_of_a_page_is_run_in_part(monkeypatch):
    asked = []

    def run(arguments, folder, *, status):
        asked.append(arguments)
        return TABLES if len(arguments) == 2 else TABLES[TABLES.index("two") :]

    monkeypatch.setattr(console, "_run", run)
    assert console.refreshed(LONG) == LONG
    assert console.refreshed(LONG, long=True) == LONG
    assert asked == [["compare", "xe", "--workload", "two"], ["compare", "xe"]]
    stale = LONG.replace("      4", "      6")
    with pytest.raises(RuntimeError, match="what a long command shows is not what it prints with --workload two"):
        console.refreshed(stale)
    assert console.refreshed(stale, long=True) == LONG


def test_the_page_on_chunk_sizes_shows_what_its_benchmark_prints():
    path = ROOT / "benchmarks" / "chunk_sizes.py"
    module = runpy.run_path(str(path))
    text = (DOCS / "explanation" / "chunk-sizes.md").read_text("utf-8")
    shown = re.findall(r"<!-- chunk_sizes -->\n```text\n(.*?)```", text, flags=re.DOTALL)
    assert shown == [module["cost_of_a_fault"](), module["cost_of_a_page"]()], f"run: uv run python {path.name}"


def test_index_links_every_page():
    linked = {(DOCS / target).resolve() for target in LINK.findall((DOCS / "index.md").read_text("utf-8"))}
    assert names(page for page in PAGES if page.name != "index.md" and page.resolve() not in linked) == []


def test_design_page_has_the_floors_that_import_linter_checks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    floors = next(each for each in settings["contracts"] if each["id"] == "floors")["layers"]
    table = (DOCS / "explanation" / "design.md").read_text("utf-8").partition("<!-- floors -->")[2]
    rooms = [re.findall(r"`(\w+)/?`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    assert rooms == [re.findall(r"\w+", layer) for layer in floors]


def public(cls):
    return [name for name in vars(cls) if not name.startswith("_")] + [
        name for name in cls.__annotations__ if name not in vars(cls) and not name.startswith("_")
    ]


@pytest.mark.parametrize("name", [n for n in driver.__all__ if getattr(getattr(driver, n), "_is_protocol", False)])
def test_every_protocol_and_op_of_the_contract_is_documented(name):
    page = (DOCS / "reference" / "driver-contract.md").read_text("utf-8")
    match = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", page, flags=re.DOTALL | re.MULTILINE)
    assert match is not None, f"{name} is in no section of docs/generators/contract.py"
    cls = getattr(driver, name)
    for op in public(cls):
        found = re.search(rf"^- `{op}\((.*?)\)( -> .*?)?`", match[1], flags=re.MULTILINE)
        if not inspect.isfunction(vars(cls).get(op)):
            assert re.search(rf"^- `{op}: ", match[1], flags=re.MULTILINE), op
            continue
        assert found, op
        parameters = [p for p in inspect.signature(vars(cls)[op]).parameters if p != "self"]
        shown = re.findall(r"(?:^|, )(\w+)(?=[:,)=]|$)", found[1])
        assert shown == parameters, op


def test_every_hook_is_documented():
    from gpusvm.plugins import hookspecs

    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")]
    listed = [each for _, _, members in contract.SECTIONS for each in members]
    assert hooks
    assert [name for name in hooks if f"gpusvm.plugins.hookspecs.{name}" not in listed] == []
