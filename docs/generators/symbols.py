"""Map every modelled kernel symbol to ours, from what the docstrings cite (`gpusvm.report.kernel_symbols`)."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from attrs import frozen
from gpusvm.report.kernel_symbols import citations, ends_like, listed, opening_files

from generators.markdown import NOTICE, code, table
from generators.sources import Definition, Module, modules

__all__ = ["Row", "page", "rows"]

# Where kernel code is modelled; the rooms above cite the kernel only in passing.
ROOMS = ("gpusvm.kernel", "gpusvm.mm", "gpusvm.drm", "gpusvm.gpu", "gpusvm.driver")
PLUGINS = ("gpusvm_xe", "gpusvm_nouveau", "gpusvm_dmirror", "gpusvm_kfd")  # svmdev is no code of the kernel's


@frozen(order=True)
class Row:
    """Say that `symbol` of the kernel's `kernel_file` is our `name`; `file` is where that is defined."""

    symbol: str
    name: str
    kernel_file: str
    file: str
    note: str = ""


def page(root: Path) -> str:
    """Return docs/reference/kernel-symbols.md."""
    found = rows(root)
    lines = [
        "# Kernel symbols",
        "",
        NOTICE,
        "",
        f"{len({row.symbol for row in found})} symbols of Linux 7.3.4, and what stands for them. Names come from the",
        "kernel where the thing does; a method drops the prefix that its class already says",
        "(`drm_pagemap_populate_mm` is `DrmPagemap.populate_mm`). The table is read from the docstrings: a citation in",
        "parentheses, a module that opens with the file it models, the members of an ops structure. A protocol and the",
        "class that implements it both appear. A name that begins with an underscore is private to its module.",
        "",
        "## Files",
        "",
        *table(("kernel file", "modelled in"), _files(root)),
    ]
    for title, prefixes in (
        ("The kernel's core", ("gpusvm.kernel",)),
        ("mm", ("gpusvm.mm",)),
        ("drm", ("gpusvm.drm", "gpusvm.driver", "gpusvm.gpu")),
        ("xe", ("gpusvm_xe",)),
        ("nouveau", ("gpusvm_nouveau",)),
        ("dmirror", ("gpusvm_dmirror",)),
        ("kfd", ("gpusvm_kfd",)),
    ):
        part = [row for row in found if row.name.startswith(tuple(f"{prefix}." for prefix in prefixes))]
        if part:
            lines += ["", f"## {title}", ""]
            head = ("kernel symbol", "ours", "kernel file", "source", "notes")
            lines += table(
                head,
                [
                    (
                        code(row.symbol),
                        code(row.name),
                        row.kernel_file,
                        f"[{Path(row.file).name}](../../{row.file})",
                        row.note,
                    )
                    for row in part
                ],
            )
    return "\n".join(lines) + "\n"


@cache
def rows(root: Path) -> tuple[Row, ...]:
    """Return the whole table, sorted by symbol."""
    extra = listed()
    public = _public_names(modules(root))
    not_symbols = set(extra["not_symbols"])
    where = {symbol: file for file, symbols in extra["where"].items() for symbol in symbols}
    found: dict[tuple[str, str], Row] = {}
    for module in modules(root):
        if not module.name.startswith((*ROOMS, *PLUGINS)):
            continue
        for row in _of_module(module, extra):
            if row.symbol.removeprefix("struct ") in not_symbols:
                continue
            name = _shortest(row.name, public)
            kernel_file = where.get(row.symbol.removeprefix("struct "), row.kernel_file)
            found.setdefault((row.symbol, name), Row(row.symbol, name, kernel_file, row.file, row.note))
    return tuple(sorted(found.values(), key=lambda row: (row.symbol.removeprefix("struct ").lstrip("_"), row.name)))


def _files(root: Path) -> Iterator[tuple[str, str]]:
    by_file: dict[str, list[str]] = {}
    for module in modules(root):
        for file, _ in opening_files(module.doc):
            ours = by_file.setdefault(file, [])
            if module.name not in ours:
                ours.append(module.name)
    for file, names in sorted(by_file.items()):
        yield file, ", ".join(code(name) for name in names)


def _of_module(module: Module, extra: dict[str, Any]) -> Iterator[Row]:
    opening = opening_files(module.doc)
    here = opening[0][0] if opening else ""
    names = {definition.name for definition in module.definitions}
    for file, symbol in opening:
        for definition in module.definitions:
            if (
                symbol
                and "." not in definition.name
                and ends_like(symbol, definition.name, is_class=isinstance(definition.node, ast.ClassDef))
            ):
                yield Row(symbol, f"{module.name}.{definition.name}", file, module.file)
    for definition in module.definitions:
        ops = ""
        for file, symbol in citations(definition.doc):
            yield Row(symbol, f"{module.name}.{definition.name}", _full(file, module) or here, module.file)
            if symbol.startswith("struct ") and symbol.endswith("_ops"):
                ops = symbol
        if ops and isinstance(definition.node, ast.ClassDef) and _is_protocol(definition.node):
            yield from _members(module, definition, ops, here, set(extra["ours"]))
    for rule in extra["equal"]:
        if not f"{module.name}.".startswith(tuple(f"{within}." for within in rule["within"])):
            continue
        for definition in module.definitions:
            name = definition.name.rpartition(".")[2]
            if name in rule["names"] and not isinstance(definition.node, ast.AnnAssign):
                yield Row(name, f"{module.name}.{definition.name}", rule["file"], module.file)
    for rule in extra["prefix"]:
        for name in rule["names"]:
            if module.name == rule["module"] and f"{rule['class']}.{name}" in names:
                yield Row(rule["prefix"] + name, f"{module.name}.{rule['class']}.{name}", rule["file"], module.file)
    for entry in extra["renamed"]:
        if entry["ours"].rpartition(":")[0] == module.name and entry["ours"].rpartition(":")[2] in names:
            ours = entry["ours"].replace(":", ".")
            yield Row(entry["symbol"], ours, entry["file"], module.file, entry.get("note", ""))


def _full(file: str, module: Module) -> str:
    """Give a file that is cited without its folder the one in which the module's opening has it."""
    if "/" in file or not file:
        return file
    openings = [name for name, _ in opening_files(module.doc)]
    same = [name for name in openings if name.endswith(f"/{file}")]
    return same[0] if same else file


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


def _members(module: Module, cls: Definition, ops: str, here: str, ours: set[str]) -> Iterator[Row]:
    for member in module.definitions:
        owner, _, name = member.name.rpartition(".")
        if owner == cls.name and name not in ours and not name.startswith("_"):
            yield Row(
                f"{ops.removeprefix('struct ')}.{name}", f"{module.name}.{member.name}", here, module.file, "an op"
            )


def _public_names(every: tuple[Module, ...]) -> dict[str, str]:
    """Map a definition to the shorter name by which a package offers it: gpusvm.drm.pagemap.Zdd to gpusvm.drm.Zdd."""
    packages = [module for module in every if module.file.endswith("__init__.py")]
    return {f"{source}.{name}": f"{module.name}.{name}" for module in packages for source, name in module.exports}


def _shortest(name: str, public: dict[str, str]) -> str:
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        shorter = public.get(".".join(parts[:end]))
        if shorter:
            return ".".join([shorter, *parts[end:]])
    return name
