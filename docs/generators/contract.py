"""Write down the driver contract: every hook, class and op with its exact signature and what its docstring says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from generators.markdown import NOTICE
from generators.sources import Definition, Module, modules
from generators.symbols import PLUGINS, rows

__all__ = ["SECTIONS", "page", "signature"]

Node: TypeAlias = ast.ClassDef | ast.FunctionDef | ast.AnnAssign

# (heading, what it is about, the classes and functions in the order of reading)
SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Hooks",
        """\
The entry point group is `gpusvm.drivers`. A module that one names marks its functions with
`gpusvm.plugins.hookimpl`; they are called once, when drivers are loaded.""",
        ("gpusvm.plugins.hookspecs.gpusvm_drivers", "gpusvm.plugins.hookspecs.gpusvm_operations"),
    ),
    (
        "What a driver declares",
        "Data only: importing a plugin builds nothing.",
        (
            "gpusvm.driver.contract.DriverInfo",
            "gpusvm.driver.capabilities.Capabilities",
            "gpusvm.driver.capabilities.yes",
            "gpusvm.driver.capabilities.no",
            "gpusvm.driver.tunables.tunable",
            "gpusvm.driver.tunables.quirk",
            "gpusvm.driver.contract.Host",
            "gpusvm.driver.contract.DeviceSpec",
        ),
    ),
    (
        "The driver and its address spaces",
        """\
`DriverInfo.make(host)` returns a `Driver`. What the driver's source asserts (`WARN_ON`, `lockdep_assert_held` and the
like), its model states where the source does: `if not range_.migrate_devmem: kernel.warn("xe_svm_alloc_vram", "…")`.
`Kernel.warn(assertion, detail)` takes the kernel function that the assertion stands in and, in words, what does not
hold; it returns, as `WARN_ON` does, and a model that cannot go on has to return itself. Exploring ends there with a
finding of kind "driver" under that name; a trace shows it in either mode. On a path that is hot in timed mode put it
behind `if kernel.explored:`, and so whatever asks who holds a lock (`RwSemaphore.is_mine_to_write`, `Mutex.owner`).""",
        (
            "gpusvm.driver.protocols.Driver",
            "gpusvm.driver.protocols.Vm",
            "gpusvm.driver.protocols.TiledVm",
            "gpusvm.driver.protocols.FaultSource",
            "gpusvm.driver.fault.GpuFault",
        ),
    ),
    (
        "Strategies",
        """\
In what one driver differs from another. For the keys of `DriverInfo.strategies` a user may give a class of his own
([how to](../how-to/your-own-policy.md)); it is built with: `pm`, the driver's own policy; `place`, the driver;
`embedding`, nothing; `page_to_bo`, the kernel and the span of pages.""",
        (
            "gpusvm.driver.protocols.PagemapEmbedding",
            "gpusvm.driver.protocols.BoMapping",
            "gpusvm.driver.protocols.RuntimePmPolicy",
            "gpusvm.driver.protocols.FaultPolicy",
            "gpusvm.driver.embedding.DrmEmbedding",
            "gpusvm.drm.page_index.PageIndex",
        ),
    ),
    (
        "Ops",
        "What core calls per fault, migration or invalidation. An op that may be None is one that a driver may lack.",
        (
            "gpusvm.drm.gpusvm.GpuSvmOps",
            "gpusvm.drm.pagemap.PagemapOps",
            "gpusvm.drm.devmem.DevmemOps",
            "gpusvm.drm.runtime_pm.PmCallbacks",
            "gpusvm.mm.api.DevPagemapOps",
            "gpusvm.mm.api.IntervalNotifierOps",
            "gpusvm.mm.api.MmuNotifier",
        ),
    ),
    (
        "Fault units and the pipeline",
        """\
A driver subclasses `FaultPipeline` and overrides stages;
[the path of a fault](../explanation/path-of-a-fault.md) walks through them.""",
        ("gpusvm.driver.unit.FaultUnit", "gpusvm.driver.pipeline.FaultPipeline"),
    ),
    (
        "For drivers that mirror range by range",
        "What such drivers would copy from each other.",
        ("gpusvm.driver.mirror.RangeVm", "gpusvm.driver.mirror.RangeFaults", "gpusvm.driver.mirror.NoDeviceMemory"),
    ),
    (
        "Recorded operations",
        """\
What `gpusvm_operations` returns: how a driver does the operations that
[a real kernel's answers](../how-to/check-recordings.md) were recorded for.""",
        (
            "gpusvm.driver.operations.OperationTarget",
            "gpusvm.driver.operations.OperationHost",
            "gpusvm.driver.operations.OperationExecutor",
            "gpusvm.driver.operations.Answer",
            "gpusvm.driver.operations.PageWords",
            "gpusvm.driver.operations.Deviation",
            "gpusvm.driver.operations.OperationRace",
        ),
    ),
)


def page(root: Path) -> str:
    """Return docs/reference/driver-contract.md."""
    every = {module.name: module for module in modules(root)}
    cited = _Citations(root)
    lines = [
        "# The driver contract",
        "",
        NOTICE,
        "",
        f"Version {_abi(root / every['gpusvm.driver.contract'].file)}. Everything is a `Protocol` or a frozen attrs",
        "class: a plugin inherits from nothing but, if it likes, `FaultPipeline`, `RangeVm`, `RangeFaults`. Errors are",
        "`gpusvm.errors.KernelError(errno)`; an errno that a docstring names is part of the contract. Behind *Linux*",
        "stands what an op follows in 7.3.4, behind a driver's name what its implementation cites.",
        "The rules that errors about a driver's code end with are on [a page of their own](driver-rules.md).",
    ]
    for heading, about, names in SECTIONS:
        lines += ["", f"## {heading}", "", about]
        for name in names:
            module_name, _, member = name.rpartition(".")
            lines += ["", *_entry(every[module_name], member, cited)]
    return "\n".join(lines) + "\n"


class _Citations:
    """Find what the kernel calls an op, and what the drivers' implementations of it cite."""

    def __init__(self, root: Path) -> None:
        self._own: dict[str, set[str]] = {}
        self._drivers: dict[str, list[tuple[str, str, ast.FunctionDef]]] = {}
        nodes = {f"{module.name}.{each.name}": each.node for module in modules(root) for each in module.definitions}
        for row in rows(root):
            package = row.name.partition(".")[0]
            if package in PLUGINS:
                node = nodes.get(row.name)
                if isinstance(node, ast.FunctionDef):
                    implementations = self._drivers.setdefault(node.name, [])
                    implementations.append((package.removeprefix("gpusvm_"), row.symbol, node))
            else:
                self._own.setdefault(".".join(row.name.split(".")[-2:]), set()).add(row.symbol)

    def of(self, cls: str, member: Definition) -> str:
        """Return ` Linux: …; xe: ….` for one op, '' if nothing is cited."""
        name = member.name.rpartition(".")[2]
        parts = []
        own = sorted(self._own.get(f"{cls}.{name}", ()))
        if own:
            parts.append("Linux: " + ", ".join(f"`{symbol}`" for symbol in own))
        by_driver: dict[str, list[str]] = {}
        for driver, symbol, node in self._drivers.get(name, ()):
            symbols = by_driver.setdefault(driver, [])
            if symbol not in symbols and _implements(node, member.node):
                symbols.append(symbol)
        parts += [f"{d}: {', '.join(f'`{s}`' for s in found)}" for d, found in sorted(by_driver.items()) if found]
        return f" *{'; '.join(parts)}.*" if parts else ""

    def of_class(self, cls: str) -> str:
        """Return the structure of the kernel that a class stands for."""
        found = sorted(s for name, symbols in self._own.items() if name.endswith(f".{cls}") for s in symbols)
        return f" *Linux: {', '.join(f'`{symbol}`' for symbol in found)}.*" if found else ""


def _implements(found: ast.FunctionDef, op: Node) -> bool:
    """Tell by its parameters whether a driver's method of the same name is this op."""
    names = [each.arg for each in [*found.args.args, *found.args.kwonlyargs] if each.arg != "self"]
    if isinstance(op, ast.FunctionDef):
        wanted = [each.arg for each in [*op.args.args, *op.args.kwonlyargs] if each.arg != "self"]
        return names == wanted
    match = re.search(r"Callable\[\[(.*?)\], ", _plain(op.annotation)) if isinstance(op, ast.AnnAssign) else None
    return match is not None and len(names) == len([part for part in match[1].split(", ") if part])


def _entry(module: Module, name: str, cited: _Citations) -> Iterator[str]:
    definition = next(each for each in module.definitions if each.name == name)
    yield f"### {name}"
    yield ""
    if isinstance(definition.node, ast.FunctionDef):
        yield f"`{signature(definition.node)}`"
        yield ""
        yield f"{_whole(definition.doc)} (`{module.name}`)"
        return
    yield f"{_whole(definition.doc)} (`{module.name}`){cited.of_class(name)}"
    members = list(_members(module, definition))
    if members:
        yield ""
    for member in members:
        tail = f"{_whole(member.doc)}{cited.of(name, member)}".strip()
        yield f"- `{signature(member.node)}`" + (f"<br>{tail}" if tail else "")


def _whole(doc: str) -> str:
    """Write a docstring on one line, in Markdown's code quotes."""
    text = " ".join(doc.split()).replace("``", "`")
    return f"{text}." if text and text[-1] not in ".!?" else text


def _members(module: Module, cls: Definition) -> Iterator[Definition]:
    for each in module.definitions:
        owner, _, name = each.name.rpartition(".")
        if owner == cls.name and not name.startswith("_") and name != "items":
            yield each


def signature(node: Node) -> str:
    """Write a declaration as it is called: without `self`, and without the quotes of forward references."""
    if isinstance(node, ast.ClassDef):
        return node.name
    if isinstance(node, ast.AnnAssign):
        shown = "" if node.value is None else _plain(node.value)
        default = "" if shown in {"", "field()"} else f" = {'...' if shown.startswith('_') else shown}"
        return f"{ast.unparse(node.target)}: {_plain(node.annotation)}{default}"
    returns = "" if node.returns is None else f" -> {_plain(node.returns)}"
    if any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list):
        return f"{node.name}: {returns.removeprefix(' -> ')}"
    arguments = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(arguments, ast.FunctionDef)
    for argument in [*arguments.args.posonlyargs, *arguments.args.args, *arguments.args.kwonlyargs]:
        if argument.annotation is not None:
            argument.annotation = ast.parse(_plain(argument.annotation), mode="eval").body
    if arguments.args.args and arguments.args.args[0].arg in {"self", "cls"}:
        del arguments.args.args[0]
    shown = re.sub(r"(?<! )=(?! )", " = ", ast.unparse(arguments.args))
    return f"{node.name}({shown}){returns}"


def _plain(node: ast.expr) -> str:
    """Write an annotation, taking forward references out of their quotes."""

    class Unquote(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.expr:
            return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node

        def visit_Call(self, node: ast.Call) -> ast.expr:
            return node

    return ast.unparse(Unquote().visit(ast.parse(ast.unparse(node), mode="eval").body))


def _abi(source: Path) -> str:
    """Read the version out of the module that states it."""
    for node in ast.parse(source.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ABI" and node.value is not None:
            return ".".join(map(str, ast.literal_eval(node.value)))
    raise LookupError(f"{source} does not state the ABI")
