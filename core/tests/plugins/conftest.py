import itertools
import sys
import textwrap

import pytest
from gpusvm.plugins.loading import survey_sources
from gpusvm.plugins.sources import find_sources

PRELUDE = """\
import attrs
from gpusvm.driver import Capabilities, DriverInfo, no, quirk, tunable, yes
from gpusvm.plugins import hookimpl

CAPABILITIES = {each.name: no("nothing is built here") for each in attrs.fields(Capabilities)}

@attrs.frozen(kw_only=True)
class Tunables:
    batch: int = tunable(32, "Faults in one batch.", unit="count", minimum=1)

@attrs.frozen(kw_only=True)
class Quirks:
    stale: str = quirk("Leaves an entry behind.", cite="nowhere")

def make(host):
    raise AssertionError("nothing is built by looking at a driver")

def info(name, **changes):
    fields = dict(
        name=name, summary="A driver of a test", abi=(1, 0), kernel="7.3.4",
        capabilities=Capabilities(**CAPABILITIES), tunables=Tunables, quirks=Quirks,
        embedding="none", bo_mapping="none", pm="none", make=make,
    )
    return DriverInfo(**{**fields, **changes})

"""
LINE = PRELUDE.count("\n") + 1  # of the first line after it

_numbers = itertools.count()


@pytest.fixture
def prelude():
    """What a plugin of a test begins with; its own first line is `first_line`."""
    return PRELUDE


@pytest.fixture
def first_line():
    return LINE


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with one plugin into a directory of its own; returns the plugin's file."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)

    def install(name, source, *, distribution=None, version="1.2", prelude=PRELUDE):
        module = f"{name}_plugin_{next(_numbers)}"
        file = tmp_path / f"{module}.py"
        file.write_text(prelude + textwrap.dedent(source))
        distribution = distribution or f"gpusvm-{name}"
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(f"[gpusvm.drivers]\n{name} = {module}\n")
        return file

    yield install
    for module in set(sys.modules) - modules:
        if "_plugin_" in module:
            del sys.modules[module]


@pytest.fixture
def survey(tmp_path, monkeypatch):
    """Look at what `install` put there, and at nothing else."""
    monkeypatch.delenv("GPUSVM_DRIVERS", raising=False)

    def survey(*, without=()):
        return survey_sources(find_sources([str(tmp_path)]), without=without)

    return survey


@pytest.fixture
def problems(survey):
    return lambda: [str(problem) for problem in survey().problems]
