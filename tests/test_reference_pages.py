"""The pages of the reference that are written by hand name everything that there is to name."""

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
COMMANDS = ["characterize", "compare", "drivers", "inject", "trace info", "new-driver"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_on_its_page(command):
    page = (REFERENCE / "command-line.md").read_text("utf-8")
    section = page.partition(f"\n## gpusvm {command}\n")[2].partition("\n## ")[0]
    program = f"from gpusvm.cli import run; run({[*command.split(), '--help']})"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"(--[a-z-]+)", shown)) - {"--help", "--version"}
    assert options
    assert {option for option in options if f"`{option}" not in section} == set()


def keys(schema):
    for name, each in schema.get("properties", {}).items():
        yield name
        yield from keys(each)
        yield from keys(each.get("items", {}))
        for other in each.get("anyOf", []):
            yield from keys(other)
    for each in schema.get("$defs", {}).values():
        yield from keys(each)


@pytest.mark.parametrize("name", ["compare-1", "run-1", "result-1"])
def test_every_key_of_a_schema_is_on_its_page(name):
    page = (REFERENCE / "compare-json.md").read_text("utf-8")
    schema = json.loads(resources.files("gpusvm.compare").joinpath("schema", f"{name}.json").read_text())
    found = set(keys(schema))
    assert found
    assert {key for key in found if f"`{key}`" not in page and f"`{key}[]`" not in page} == set()
