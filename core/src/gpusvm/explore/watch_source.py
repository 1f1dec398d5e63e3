"""Read from the source which fields of a model's objects change after they were made."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Assigned", "assigned"]

_MAKERS = frozenset({"__init__", "__new__", "__attrs_post_init__", "__attrs_pre_init__"})


class Assigned(ast.NodeVisitor):
    """Collect the names of attributes that are assigned: `own` by class, through self and not where the object is made;
    `any` through anything else.
    """

    def __init__(self) -> None:
        self.own: dict[str, set[str]] = {}
        self.any: set[str] = set()
        self._class = ""
        self._function = ""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        self.generic_visit(node)
        self._class = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        # What a function within __init__ does, it does later.
        outer, self._function = self._function, f"{self._function}.{node.name}" if self._function else node.name
        self.generic_visit(node)
        self._function = outer

    def visit_Lambda(self, node: ast.Lambda) -> None:
        outer, self._function = self._function, f"{self._function}.lambda"
        self.generic_visit(node)
        self._function = outer

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Store | ast.Del):
            if not isinstance(node.value, ast.Name) or node.value.id != "self" or not self._class:
                self.any.add(node.attr)
            elif self._function not in _MAKERS:
                self.own.setdefault(self._class, set()).add(node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        # setattr(object, "name", value) and kernel.write_once(object, "name", value)
        function = node.func
        name = (
            function.id
            if isinstance(function, ast.Name)
            else function.attr
            if isinstance(function, ast.Attribute)
            else ""
        )
        if name in {"setattr", "write_once", "delattr"} and len(node.args) > 1:
            field = node.args[1]
            if isinstance(field, ast.Constant) and isinstance(field.value, str):
                self.any.add(field.value)
        self.generic_visit(node)


@cache
def _read(path: str) -> Assigned:
    found = Assigned()
    found.visit(ast.parse(Path(path).read_text("utf-8")))
    return found


def assigned(module: ModuleType) -> Assigned:
    """Return what the source of a module assigns; nothing for a module without source."""
    path = module.__file__
    return _read(path) if path is not None and path.endswith(".py") else Assigned()
