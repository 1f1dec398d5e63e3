"""The floors of the house: that they hold, and that the contracts which say so would notice if they did not."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = {contract["id"]: contract for contract in SETTINGS["contracts"]}
PLUGINS = ["xe", "nouveau", "dmirror", "svmdev", "kfd"]
SOURCES = ["core/src", *(f"plugins/{name}/src" for name in PLUGINS)]


def lint_imports(*, path=()):
    """Run the contracts of pyproject.toml, with `path` searched for packages before the installed ones."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "VIRTUAL_ENV"))}
    environment["PYTHONPATH"] = os.pathsep.join(str(place) for place in path)
    command = [
        sys.executable,
        "-c",
        "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())",
    ]
    arguments = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def verdicts(output):
    names = {contract["name"]: contract["id"] for contract in SETTINGS["contracts"]}
    lines = re.findall(r"^(.+?) (KEPT|BROKEN)", output, flags=re.MULTILINE)
    return {names[name]: verdict for name, verdict in lines if name in names}


def test_every_contract_is_kept():
    run = lint_imports()
    assert run.returncode == 0, run.stdout + run.stderr
    assert verdicts(run.stdout) == dict.fromkeys(CONTRACTS, "KEPT")


# One forbidden import for each contract. A contract that nothing can break would be worse than none.
VIOLATIONS = {
    "floors": ("gpusvm/kernel", "import gpusvm.mm"),
    "drivers-apart": ("gpusvm_xe", "import gpusvm_nouveau"),
    "core-alone": ("gpusvm/report", "import gpusvm_dmirror"),
    "driver-floor": ("gpusvm_dmirror", "import gpusvm.plugins"),
    "live-mm": ("gpusvm/drm", "import gpusvm.mm.stranger"),
    "pluggy": ("gpusvm/driver", "import pluggy"),
    "greenlet": ("gpusvm/mm", "import greenlet"),
    "pyarrow": ("gpusvm/compare", "import pyarrow.parquet"),
    "pytest": ("gpusvm/explore", "import pytest"),
    "presentation": ("gpusvm/run", "from rich.table import Table"),
}


def test_every_contract_can_be_broken(tmp_path):
    assert set(VIOLATIONS) == set(CONTRACTS)
    for source in SOURCES:
        shutil.copytree(ROOT / source, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "gpusvm" / "mm" / "stranger.py").write_text("")
    for package, statement in VIOLATIONS.values():
        (tmp_path / package / "intruder.py").write_text(statement + "\n")
    run = lint_imports(path=[tmp_path])
    assert run.returncode == 1, run.stdout + run.stderr
    assert verdicts(run.stdout) == dict.fromkeys(CONTRACTS, "BROKEN")


def floors(contract):
    return [layer.replace("gpusvm.", "") for layer in CONTRACTS[contract]["layers"]]


@pytest.mark.parametrize("room", re.findall(r"\w+", " ".join(floors("floors"))))
def test_room_exists(room):
    source = ROOT / "core" / "src" / "gpusvm"
    assert (source / room / "__init__.py").is_file() or (source / f"{room}.py").is_file()


def test_drivers_may_look_no_higher_than_the_driver_contract():
    above = floors("floors")[: floors("floors").index("driver")]
    assert floors("driver-floor") == [*above, " | ".join(f"gpusvm_{name}" for name in PLUGINS)]
