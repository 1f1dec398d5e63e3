"""What a user gets who installs wheels: the only place where a forgotten data file or entry point shows."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRACES = ["bfs", "gemm", "gups", "hashjoin", "jacobi", "llm-decode", "pingpong", "scan", "spmv", "triad"]
DISTRIBUTIONS = {
    "core": "gpusvm_core",
    "plugins/xe": "gpusvm_xe",
    "plugins/nouveau": "gpusvm_nouveau",
    "plugins/dmirror": "gpusvm_dmirror",
    "plugins/svmdev": "gpusvm_svmdev",
    "plugins/kfd": "gpusvm_kfd",
}
VERSION = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]["version"]


def run(*command, cwd):
    """Run a command as a user would who has none of our settings."""
    foreign = ("UV_", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PIP_FIND_LINKS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def uv():
    # `uv run` names itself in UV, which is on no list above because it is no setting.
    found = os.environ.get("UV") or shutil.which("uv")
    assert found, "uv is needed to build wheels: pip install uv"
    return found


@pytest.fixture(scope="module")
def wheels(uv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    run(uv, "build", "--quiet", "--all-packages", "--wheel", "--out-dir", str(folder), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def scripts(uv, wheels, tmp_path_factory):
    """Install core and xe alone, with the pinned versions of everything else; return where the commands are."""
    folder = tmp_path_factory.mktemp("install")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    (folder / "constraints.txt").write_text("\n".join(settings["constraint-dependencies"]) + "\n")
    run(uv, "venv", "--quiet", "--no-project", "--python", sys.executable, "venv", cwd=folder)
    target = folder / "venv" / "bin"
    install = [uv, "pip", "install", "--quiet", "--python", str(target / "python"), "--constraint", "constraints.txt"]
    run(*install, *(str(wheel(wheels, name)) for name in ("gpusvm_core", "gpusvm_xe")), cwd=folder)
    return target


def wheel(folder, name):
    return folder / f"{name}-{VERSION}-py3-none-any.whl"


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_there_is_one_wheel_for_each_distribution(wheels):
    assert sorted(wheels.glob("*.whl")) == sorted(wheel(wheels, name) for name in DISTRIBUTIONS.values())


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_wheel_carries_every_file_of_the_package(wheels, folder):
    source = ROOT / folder / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - contents(wheel(wheels, DISTRIBUTIONS[folder])) == set()


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_wheel_carries_its_license(wheels, folder):
    name = DISTRIBUTIONS[folder]
    assert f"{name}-{VERSION}.dist-info/licenses/LICENSE" in contents(wheel(wheels, name))


def test_core_wheel_carries_the_traces(wheels):
    found = sorted(Path(name).stem for name in contents(wheel(wheels, "gpusvm_core")) if name.endswith(".parquet"))
    assert found == TRACES


def test_core_and_one_driver_are_enough(scripts):
    output = run(str(scripts / "gpusvm"), "drivers", cwd=scripts.parent)
    assert "xe" in output
    assert "nouveau" not in output
    assert "dmirror" not in output
    assert "svmdev" not in output
    assert "kfd" not in output


def test_the_suite_comes_with_the_wheel(scripts):
    command = [str(scripts / "gpusvm"), "conform", "--profile", "core", "--json"]
    results = json.loads(run(*command, cwd=scripts.parent))["results"]
    assert {each["driver"] for each in results} == {"xe"}
    assert {each["status"] for each in results} <= {"pass", "xfail", "unsupported"}
    checks = ["--pyargs", "gpusvm.conformance.checks", "--driver", "xe", "--gpusvm-check", "access.read.*"]
    output = run(str(scripts / "python"), "-m", "pytest", "-q", *checks, cwd=scripts.parent)
    assert "xe: 1 pass" in output
