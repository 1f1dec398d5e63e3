import importlib.util
import sys
import textwrap
from types import SimpleNamespace

import attrs
import pytest
from gpusvm.cli.new_driver import write_driver
from gpusvm.conformance.pytest_checks import REGISTRY
from gpusvm.conformance.pytest_plugin import CELLS
from gpusvm.plugins import Installed, LoadedDriver, Registry


@pytest.fixture(scope="session")
def acme_source(tmp_path_factory):
    """The folder of the package that `gpusvm new-driver acme` writes."""
    folder = tmp_path_factory.mktemp("acme") / "gpusvm-acme"
    write_driver("acme", folder)
    return folder / "src"


@pytest.fixture(scope="session")
def acme(acme_source):
    """The driver that `gpusvm new-driver acme` writes: what a plugin hands over."""
    path = list(sys.path)
    sys.path.insert(0, str(acme_source))
    spec = importlib.util.find_spec("gpusvm_acme.plugin")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpusvm_acme.plugin"] = module
    spec.loader.exec_module(module)
    import gpusvm_acme.driver  # noqa: F401  # while it can be found

    yield module.INFO
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpusvm_acme"]:
        del sys.modules[name]


@pytest.fixture
def with_capabilities(acme):
    """Return acme as one that declares something else."""

    def with_capabilities(**declared):
        return attrs.evolve(acme, capabilities=attrs.evolve(acme.capabilities, **declared))

    return with_capabilities


@pytest.fixture
def registry(acme, tmp_path):
    """Make a registry of acme, which states in its conformance.toml what it is given."""

    def registry(statement="", *, info=acme):
        folder = tmp_path / "plugin"
        folder.mkdir(exist_ok=True)
        (folder / "acme.conformance.toml").write_text(textwrap.dedent(statement), "utf-8")
        loaded = LoadedDriver(info=info, plugin="acme", path=str(folder / "acme.py"))
        return Registry.of_loaded([loaded])

    return registry


HEAD = """
from gpusvm.conformance.scene import written
from gpusvm.conformance.suite import Lab, check

"""


@pytest.fixture
def run(tmp_path, registry, capfd, monkeypatch):
    """Run checks of one's own on acme, through pytest; returns its exit code, the cells by check, and what it said."""
    number = 0

    def run(source, *arguments, drivers=None):
        nonlocal number
        number += 1
        folder = tmp_path / f"checks{number}"
        folder.mkdir()
        (folder / f"test_own_{number}.py").write_text(HEAD + textwrap.dedent(source), "utf-8")
        monkeypatch.chdir(folder)
        listener = _Listener(Installed((), drivers if drivers is not None else registry()))
        options = [
            "-c",
            str(folder / "pytest.ini"),
            "-p",
            "no:cacheprovider",
            "-p",
            "no:faulthandler",
            "-q",
        ]
        (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")
        code = pytest.main([*options, *arguments, str(folder)], plugins=[listener])
        sys.modules.pop(f"test_own_{number}", None)  # the next test has one of this name as well
        out, err = capfd.readouterr()
        cells = {cell["check"]: cell for cell in listener.cells.values()}
        return SimpleNamespace(code=int(code), cells=cells, out=out, err=err)

    return run


class _Listener:
    def __init__(self, installed):
        self._installed = installed
        self.cells = {}

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config):
        config.stash[REGISTRY] = self._installed
        self.cells = config.stash[CELLS]
