"""Examine a driver's code without running it: the classes that implement ops, and what C's habits leave in Python.

`load_drivers` imports a plugin's own module and no more, so that listing drivers is quick. Here every module of its
package is imported, and each class that implements a part of the contract is held against it.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from gpusvm.plugins.problems import BrokenPluginError, Place
from gpusvm.plugins.validation import Finding, raised
from gpusvm.signatures import call_problem, protocol_methods, protocol_problems

if TYPE_CHECKING:
    from gpusvm.driver import DriverInfo
    from gpusvm.plugins.registry import LoadedDriver

__all__ = ["declaration", "examine", "implemented"]

_MARKS: Final[dict[str, tuple[str, ...]]] = {
    "PagemapOps": ("device_map",),
    "DevmemOps": ("copy_to_devmem", "populate_devmem_pfn"),
    "GpuSvmOps": ("range_alloc", "range_free"),
    "DevPagemapOps": ("migrate_to_ram", "folio_free"),
    "PagemapEmbedding": ("pagemap_of",),
    "BoMapping": ("bo_of",),
    "RuntimePmPolicy": ("pages_present", "pages_gone"),
    "FaultPolicy": ("new_state",),
    "PmCallbacks": ("runtime_suspend", "runtime_resume"),
    "Driver": ("vm_create",),
}
"""By what a class that implements a protocol is known: it has one of these methods."""

_RETURN_ERRNOS: Final = frozenset({"invalidate_range_start"})
"""The ops of the contract that do answer with -errno (`MmuNotifier`)."""


def implemented(cls: type) -> list[type]:
    """Return the protocols of the contract that a class implements, as its methods show."""
    return [
        protocol
        for name, protocol in _protocols().items()
        if any(callable(getattr(cls, m, None)) for m in _MARKS[name])
    ]


def examine(driver: "LoadedDriver") -> tuple[list[BrokenPluginError], int]:
    """Return what is wrong with the code of a driver, sorted by place, and how many ops of it were looked at."""
    findings: list[Finding] = []
    modules = list(_modules(driver, findings))
    classes = [each for module in modules for each in _own_classes(module)]
    ops = 0
    for cls in classes:
        for protocol in implemented(cls):
            ops += sum(1 for name, _ in protocol_methods(protocol) if hasattr(cls, name))
            for found, problem in protocol_problems(cls, protocol):
                if _is_own(found, modules):
                    findings.append(Finding(problem, Place.of(found), "signature"))
        for found, expected, base in _overridden(cls):
            ops += 1
            said = call_problem(found, expected, name=found.__name__)
            if said is not None:
                findings.append(Finding(f"{cls.__name__}.{said} ({base} of core)", Place.of(found), "signature"))
    findings += _capability_findings(driver.info, classes)
    for module in modules:
        findings += _habits(module)
    unique = {(finding.problem, str(finding.place)): finding for finding in findings}
    errors = [
        BrokenPluginError(
            driver.plugin or driver.info.name,
            finding.problem,
            distribution=driver.distribution,
            version=driver.version,
            place=finding.place,
            duty=finding.duty,
        )
        for finding in unique.values()
    ]
    return sorted(errors, key=_by_place), ops


def _by_place(error: BrokenPluginError) -> tuple[str, int]:
    return ("", 0) if error.place is None else (str(error.place.file), error.place.line or 0)


def _protocols() -> dict[str, type]:
    from gpusvm import driver
    from gpusvm.drm import DevmemOps, PagemapOps, PmCallbacks
    from gpusvm.drm.gpusvm import GpuSvmOps
    from gpusvm.mm.api import DevPagemapOps

    found: dict[str, type] = {
        each.__name__: each for each in (DevmemOps, PagemapOps, PmCallbacks, GpuSvmOps, DevPagemapOps)
    }
    return {name: found[name] if name in found else getattr(driver, name) for name in _MARKS}


def _modules(driver: "LoadedDriver", findings: list[Finding]) -> Iterator[ModuleType]:
    """Import the module of a plugin and the others of its package; one that cannot be is a finding."""
    if driver.path is None:
        return
    plugin = next((m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == driver.path), None)
    if plugin is None:
        return
    package = sys.modules.get(plugin.__name__.partition(".")[0])
    if (Path(driver.path).parent / "__init__.py").is_file():  # the file of a package, loaded by itself
        with suppress(ImportError):
            found = importlib.import_module(Path(driver.path).parent.name)
            package = found if str(Path(driver.path).parent) in found.__path__ else package
    names = [plugin.__name__]
    if package is not None and hasattr(package, "__path__"):
        names = [package.__name__]
        names += [each.name for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in names:
        try:
            yield importlib.import_module(name)
        except Exception as exc:  # noqa: BLE001  # whatever an import raises is that module's problem alone
            findings.append(raised(exc, f"importing {name}", default=None))


def _own_classes(module: ModuleType) -> list[type]:
    return [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]


def _overridden(cls: type) -> Iterator[tuple[Callable[..., Any], Callable[..., Any], str]]:
    """Yield what a class has in place of a method of core's, that method, and the name of the class that has it."""
    for name, found in vars(cls).items():
        if name.startswith("_") or not inspect.isfunction(found):
            continue
        base = next((each for each in cls.__mro__[1:] if name in vars(each)), None)
        if base is None or base.__module__.partition(".")[0] != "gpusvm" or getattr(base, "_is_protocol", False):
            continue
        expected = vars(base)[name]
        if inspect.isfunction(expected):
            yield found, expected, base.__name__


def declaration(info: "DriverInfo", capability: str) -> Place | None:
    """Find the line that declares a capability: near the function that makes the driver, in its file or beside it."""
    made = Place.of(info.make)
    if made is None:
        return None
    said = re.compile(rf"\s*{capability}\s*=\s*(yes|no)\b")
    for file in (made.file, *sorted(made.file.parent.glob("*.py"))):
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if said.match(line):
                return Place(file, number)
    return made


def _is_own(found: Callable[..., Any] | type, modules: list[ModuleType]) -> bool:
    return found.__module__ in {module.__name__ for module in modules}


def _capability_findings(info: "DriverInfo", classes: list[type]) -> Iterator[Finding]:
    """Hold what is declared against what is there, as far as that shows without a run."""
    from gpusvm.drm import PagemapOps

    drivers = [cls for cls in classes if callable(getattr(cls, "vm_create", None))]
    for cls in drivers:
        place = Place.of(cls)
        if info.capabilities.unplug and not callable(getattr(cls, "unplug", None)):
            yield Finding(f"capability 'unplug' is declared, and {cls.__name__} has no unplug()", place, "capability")
        if not info.capabilities.unplug and callable(getattr(cls, "unplug", None)):
            yield Finding(f"{cls.__name__} has unplug(), and capability 'unplug' is declared no", place, "capability")
    pagemaps = [cls for cls in classes if PagemapOps in implemented(cls)]
    if pagemaps and not info.capabilities.device_memory:
        problem = f"{pagemaps[0].__name__} implements PagemapOps, and capability 'device_memory' is declared no"
        yield Finding(problem, Place.of(pagemaps[0]), "capability")
    for name in ("migrate_on_fault", "explicit_populate", "eviction"):
        if getattr(info.capabilities, name) and not info.capabilities.device_memory:
            problem = f"capability {name!r} is declared without 'device_memory': there is nothing to migrate to"
            yield Finding(problem, declaration(info, name), "capability")


def _habits(module: ModuleType) -> Iterator[Finding]:
    """Find errnos that are returned or negative, as in C."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return
    file = Path(module.__file__ or "?")
    spared = {
        id(node)
        for op in ast.walk(tree)
        if isinstance(op, ast.FunctionDef) and op.name in _RETURN_ERRNOS
        for node in ast.walk(op)
    }
    for node in ast.walk(tree):
        if id(node) in spared:
            continue
        if isinstance(node, ast.Return) and _negative_errno(node.value):
            problem = f"`{ast.unparse(node)}`: raise KernelError({_bare(node.value)}, 'why') instead"
            yield Finding(problem, Place(file, node.lineno), "returned-value")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("KernelError"):
            if node.args and (_negative_errno(node.args[0]) or _negative_number(node.args[0])):
                problem = f"`{ast.unparse(node)}`: an errno is positive here: {_bare(node.args[0])}"
                yield Finding(problem, Place(file, node.lineno), "returned-value")


def _negative_errno(node: ast.expr | None) -> bool:
    if not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)):
        return False
    import errno

    return ast.unparse(node.operand).rpartition(".")[2] in dir(errno)


def _negative_number(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)


def _bare(node: ast.expr | None) -> str:
    assert isinstance(node, ast.UnaryOp)
    return ast.unparse(node.operand)
