"""Read the packages as syntax trees: docstrings, signatures and citations, without importing anything."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from attrs import frozen

__all__ = ["Definition", "Module", "modules", "summary"]

PACKAGES = {
    "gpusvm": "core/src/gpusvm",
    "gpusvm_xe": "plugins/xe/src/gpusvm_xe",
    "gpusvm_nouveau": "plugins/nouveau/src/gpusvm_nouveau",
    "gpusvm_dmirror": "plugins/dmirror/src/gpusvm_dmirror",
    "gpusvm_svmdev": "plugins/svmdev/src/gpusvm_svmdev",
    "gpusvm_kfd": "plugins/kfd/src/gpusvm_kfd",
}


@frozen
class Definition:
    """A class, function or method, or an annotated field of a class; `name` is qualified within its module."""

    name: str
    node: ast.ClassDef | ast.FunctionDef | ast.AnnAssign
    doc: str


@frozen
class Module:
    """One module: its dotted name, its file in the repository, its docstring and what it defines."""

    name: str
    file: str
    doc: str
    definitions: tuple[Definition, ...]
    exports: tuple[tuple[str, str], ...]
    """What `from X import name` brings in: (module, name); the way to a shorter public name."""


def modules(root: Path) -> tuple[Module, ...]:
    """Return every module of core and the plugins, by name."""
    return _modules(root)


@cache
def _modules(root: Path) -> tuple[Module, ...]:
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if "templates" in parts:  # what a driver author starts with, not a module of ours
                continue
            name = ".".join([package, *parts]).removesuffix(".__init__")
            tree = ast.parse(path.read_text("utf-8"))
            exports = [
                (node.module or "", alias.name)
                for node in tree.body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
                if alias.asname is None
            ]
            found.append(
                Module(
                    name,
                    path.relative_to(root).as_posix(),
                    ast.get_docstring(tree) or "",
                    tuple(_definitions(tree, "")),
                    tuple(exports),
                )
            )
    return tuple(sorted(found, key=lambda module: module.name))


def _definitions(scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Definition]:
    for at, node in enumerate(scope.body):
        if isinstance(node, ast.FunctionDef):
            yield Definition(prefix + node.name, node, ast.get_docstring(node) or "")
        elif isinstance(node, ast.ClassDef):
            yield Definition(prefix + node.name, node, ast.get_docstring(node) or "")
            yield from _definitions(node, f"{prefix}{node.name}.")
        elif prefix and isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield Definition(prefix + node.target.id, node, _text(scope.body[at + 1 : at + 2]))


def _text(after: list[ast.stmt]) -> str:
    """Return the string that stands behind a field and documents it."""
    if after and isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant):
        value = after[0].value.value
        return value if isinstance(value, str) else ""
    return ""


def summary(doc: str) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join(re.split(r"\n\s*\n", doc.strip(), maxsplit=1)[0].split())
