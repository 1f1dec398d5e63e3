"""A fourth driver, out of tree: written by `gpusvm new-driver`, installed beside core alone, found and compared."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from gpusvm.workload import CPU, GPU, WRITE, Allocation, write_trace

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ("UV_", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PIP_FIND_LINKS", "GPUSVM_")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An environment of its own with core and the new driver, and a trace."""
    folder = tmp_path_factory.mktemp("fourth")
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "uv is needed to install distributions: pip install uv"
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    (folder / "constraints.txt").write_text("\n".join(pins) + "\n")
    run(folder, uv, "venv", "--quiet", "--no-project", "--python", sys.executable, "venv")
    install = [uv, "pip", "install", "--quiet", "--python", "venv/bin/python", "--constraint", "constraints.txt"]
    run(folder, *install, str(ROOT / "core"))
    assert json.loads(run(folder, "venv/bin/gpusvm", "drivers", "--json"))["drivers"] == []
    run(folder, "venv/bin/gpusvm", "new-driver", "fourth")
    run(folder, *install, "./gpusvm-fourth")
    turns = np.repeat([CPU, GPU], 64)
    write_trace(
        folder / "tiny.parquet",
        "tiny",
        allocations=[Allocation(name="data", start_page=0, pages=64)],
        time_ns=np.arange(128) * 1000,
        agent=turns,
        page=np.tile(np.arange(64), 2),
        op=np.full(128, WRITE),
    )
    return folder


def run(folder, *command):
    """Run a command as a user would who has none of our settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_it_is_listed(home):
    (driver,) = json.loads(run(home, "venv/bin/gpusvm", "drivers", "--json"))["drivers"]
    assert (driver["name"], driver["distribution"], driver["version"]) == ("fourth", "gpusvm-fourth", "0.1.0")
    assert driver["path"].startswith(str(home / "venv"))


def test_it_is_compared(home):
    document = json.loads(run(home, "venv/bin/gpusvm", "compare", "--workload", "tiny.parquet", "--json"))
    (result,) = document["runs"]
    assert (result["driver"], result["accesses"], document["failures"]) == ("fourth", 128, [])
    assert result["integrity"]["mismatches"] == 0


def test_it_conforms(home):
    checks = ("--check", "access.*", "--check", "capability.*", "--check", "home.*")
    document = json.loads(run(home, "venv/bin/gpusvm", "conform", "--json", *checks))
    assert {each["driver"] for each in document["results"]} == {"fourth"}
    assert {each["status"] for each in document["results"]} <= {"pass", "unsupported"}


BROKEN = """
import attrs
from gpusvm.driver import Errnos, Refusals
from gpusvm.plugins import hookimpl
from gpusvm_fourth.plugin import INFO

@hookimpl
def gpusvm_drivers():
    return attrs.evolve(INFO, name="broken", refusals=Refusals(access=Errnos(unmapped=[7])))
"""


def test_pytest_finds_the_suite_and_its_assertions_tell_their_values(home):
    (home / "broken.py").write_text(BROKEN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith((*FOREIGN, "PYTEST_"))}
    environment["GPUSVM_DRIVERS"] = "none,broken=broken.py"
    command = ["venv/bin/python", "-m", "pytest", "-q", "--pyargs", "gpusvm.conformance.checks", "--driver", "broken"]
    done = subprocess.run(
        [*command, "--gpusvm-check", "access.*.refused"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "assert 2 in frozenset({7})" in done.stdout
    assert "broken: 1 fail" in done.stdout
