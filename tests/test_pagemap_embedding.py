"""The page on embeddings shows what its programs print, and the charged load is the one that was measured."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gpusvm.run.costs import load_profile

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
MEASURED = BENCHMARKS / "page_lookup_h100.csv"
PAGE = (ROOT / "docs" / "explanation" / "pagemap-embedding.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    """Make the programs importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def shown(program):
    return re.findall(rf"<!-- {program} -->\n```text\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("program", ["embedding", "page_to_bo"])
def test_the_page_shows_what_its_programs_print(program):
    module = importlib.import_module(program)
    assert shown(program) == module.page(), f"run: uv run python benchmarks/{program}.py"


def test_the_page_shows_what_was_measured():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "page_lookup.py", "--from", MEASURED], capture_output=True, text=True, check=True
    )
    assert shown("page_lookup") == [done.stdout]


def test_the_charged_load_is_the_measured_one():
    import page_lookup

    _, texts = page_lookup.read(MEASURED)
    assert len(texts) == 8
    profile = load_profile("h100-pcie5")
    assert profile.costs.page_index_load == page_lookup.constant(page_lookup.results(texts)) == 106
    assert profile.sources["page_index_load"].kind == "measured"
    assert str(MEASURED.relative_to(ROOT)) in profile.sources["page_index_load"].source


def test_the_measurement_finds_the_right_allocations_and_loads_what_it_says(tmp_path):
    import page_lookup

    program = page_lookup.compiled(tmp_path)
    # Few lookups in a device of 1 GiB; it ends with 2 if one of them finds another allocation.
    done = subprocess.run([program, "200", "18"], capture_output=True, text=True, check=True)
    rows = page_lookup.results([done.stdout])
    loads = {(row["way"], row["allocations"], row["walk_mib"]): row["loads"] for row in rows}
    assert len(rows) == 4 * 4 * 3
    assert {loads["pointer", n, 0] for n in (64, 1024, 16384)} == {0}
    assert [round(loads["tree", n, 0]) for n in (64, 1024, 16384)] == [5, 9, 13]
    assert loads["radix", 64, 0] == 3  # a block of 2 MiB fills eight slots of the last level but one
    assert subprocess.run([program, "0"], check=False).returncode == 4
