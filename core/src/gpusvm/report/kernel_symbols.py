"""Know which function or type of Linux a definition stands for, from what its docstring cites.

Four ways lead from a symbol to a definition, and none asks an author for more than a citation:

* the docstring of a class or function names it in parentheses: `(drm_pagemap_get)`, `(mm/memory.c:pmd_alloc)`;
* the module's docstring opens with it, `drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram, as of …`, and what it
  names ends like a definition of the module;
* the class stands for a `struct …_ops`: its members are the ops;
* `kernel_symbols.toml` lists it: equal names, names behind a prefix, and the few that were renamed.
"""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["citations", "ends_like", "function_symbol", "listed", "opening_files"]

_FILE = r"[a-z][\w./{},-]*\.[ch]"
_OPENING = re.compile(rf"({_FILE})(?::((?:struct |enum )?\w+))?")
_CITED = re.compile(rf"(?:(?P<file>{_FILE}):\s*)?(?P<symbol>(?:struct |enum )?[A-Za-z_]\w*)\Z")
_PARENTHESES = re.compile(r"\(([^()`]*)\)")


@cache
def listed() -> dict[str, Any]:
    """Return kernel_symbols.toml: what the docstrings cannot say by themselves."""
    return tomllib.loads(Path(__file__).with_name("kernel_symbols.toml").read_text("utf-8"))


def citations(doc: str) -> Iterator[tuple[str, str]]:
    """Yield (file or '', symbol) for everything that stands alone in parentheses and can be a symbol of the kernel."""
    for match in _PARENTHESES.finditer(doc):
        for part in re.split(r"[,;] (?:and )?| and ", " ".join(match[1].split())):
            cited = _CITED.match(part)
            if cited is None:
                continue
            symbol = cited["symbol"]
            if cited["file"] or " " in symbol or ("_" in symbol and symbol != symbol.upper()):
                yield cited["file"] or "", symbol


def opening_files(doc: str) -> list[tuple[str, str]]:
    """Return the kernel files, with a symbol or '', that a module's docstring says it models."""
    head, found_as_of, _ = doc.partition(", as of Linux")
    if not found_as_of:
        return []
    files: list[tuple[str, str]] = []
    for match in _OPENING.finditer(head):
        for file in _expand(match[1]):
            folder = files[0][0].rpartition("/")[0] if files and "/" not in file else ""
            files.append((f"{folder}/{file}" if folder else file, match[2] or ""))
    return files


def ends_like(symbol: str, name: str, *, is_class: bool) -> bool:
    """Tell whether a definition is what a module's opening names: `struct drm_pagemap_zdd` and `Zdd`."""
    if is_class:
        if not symbol.startswith("struct "):
            return False
        return symbol.removeprefix("struct ").replace("_", "").endswith(name.lower())
    bare = symbol.lstrip("_")
    return bare == name or bare.endswith(f"_{name}")


def function_symbol(module: str, name: str, doc: str, module_doc: str) -> str | None:
    """Return the function of Linux that one of ours stands for, the first that it cites; None if there is none.

    `module` is dotted and `name` qualified within it, `doc` and `module_doc` are their docstrings. Works for a driver
    out of this tree as well, as far as its docstrings cite.
    """
    rules = listed()
    cited = [symbol for _, symbol in citations(doc) if " " not in symbol and symbol not in rules["not_symbols"]]
    if cited:
        return cited[0]
    for rule in rules["equal"]:
        if name.rpartition(".")[2] in rule["names"] and _is_within(module, rule["within"]):
            return name.rpartition(".")[2]
    owner, _, method = name.rpartition(".")
    for rule in rules["prefix"]:
        if (rule["module"], rule["class"]) == (module, owner) and method in rule["names"]:
            return f"{rule['prefix']}{method}"
    for entry in rules["renamed"]:
        if entry["ours"] == f"{module}:{name}":
            return str(entry["symbol"])
    if "." not in name:
        for _, symbol in opening_files(module_doc):
            if symbol and ends_like(symbol, name, is_class=False):
                return symbol
    return None


def _is_within(module: str, rooms: list[str]) -> bool:
    return f"{module}.".startswith(tuple(f"{room}." for room in rooms))


def _expand(file: str) -> list[str]:
    """Expand `a/{b,c}.h`."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", file)
    return [f"{match[1]}{part}{match[3]}" for part in match[2].split(",")] if match else [file]
