"""docs/reference/kernel-symbols.md: what it names is there on our side, and could be on the kernel's."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
from generators import symbols
from generators.sources import modules
from gpusvm.report.kernel_symbols import listed, opening_files

ROOT = Path(__file__).resolve().parent.parent
ROWS = symbols.rows(ROOT)
LISTED = listed()

SYMBOL = re.compile(
    r"(?:(?:struct|enum) )?_{0,2}[a-z][a-z0-9]*(?:_[a-z0-9]+)*(?:\.[a-z][a-z0-9_]*)?|READ_ONCE|WRITE_ONCE"
)
KERNEL_FILE = re.compile(r"(?:[a-z0-9_-]+/)+[a-z0-9_-]+\.[ch]")


def resolve(name):
    """Return the object of a dotted name; a field that only its annotation declares is None."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute) and attribute in getattr(found, "__annotations__", {}):
                return None
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)


def test_there_are_symbols_of_every_room_and_driver():
    packages = Counter(".".join(row.name.split(".")[: 2 if row.name.startswith("gpusvm.") else 1]) for row in ROWS)
    expected = [
        "gpusvm.kernel",
        "gpusvm.mm",
        "gpusvm.drm",
        "gpusvm_xe",
        "gpusvm_nouveau",
        "gpusvm_dmirror",
        "gpusvm_kfd",
    ]
    assert {package: packages[package] >= 10 for package in expected} == dict.fromkeys(expected, True)


@pytest.mark.parametrize("file", sorted({row.file for row in ROWS}))
def test_every_object_exists(file):
    for row in ROWS:
        if row.file == file:
            resolve(row.name)


def test_every_symbol_can_be_one_of_the_kernels():
    """What stands in parentheses and is none belongs into `not_symbols` of kernel_symbols.toml."""
    assert [row.symbol for row in ROWS if not SYMBOL.fullmatch(row.symbol)] == []


def test_every_symbol_has_its_file():
    """A citation without a file, in a module that follows none, belongs into `where` of kernel_symbols.toml."""
    assert [(row.symbol, row.kernel_file) for row in ROWS if not KERNEL_FILE.fullmatch(row.kernel_file)] == []


def test_a_symbol_has_one_file():
    files = {}
    for row in ROWS:
        files.setdefault(row.symbol, set()).add(row.kernel_file)
    assert {symbol: sorted(found) for symbol, found in files.items() if len(found) > 1} == {}


def test_a_module_that_follows_a_kernel_file_names_it_with_its_folder():
    wrong = [
        (module.name, file)
        for module in modules(ROOT)
        for file, _ in opening_files(module.doc)
        if not KERNEL_FILE.fullmatch(file)
    ]
    assert wrong == []


def test_what_the_table_lists_is_used():
    """An entry of kernel_symbols.toml that matches nothing is a name that was changed."""
    found = {row.symbol for row in ROWS}
    unused = [name for rule in LISTED["equal"] for name in rule["names"] if name not in found]
    unused += [name for rule in LISTED["prefix"] for name in rule["names"] if rule["prefix"] + name not in found]
    unused += [entry["symbol"] for entry in LISTED["renamed"] if entry["symbol"] not in found]
    assert unused == []
