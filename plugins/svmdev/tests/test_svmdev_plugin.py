"""What svmdev declares: it is inert, complete, and nothing of it is decoration."""

import ast
import subprocess
import sys
from pathlib import Path

import attrs
import gpusvm_svmdev
import pytest
from gpusvm.driver import read_spec
from gpusvm.errors import InputError
from gpusvm.plugins import load_drivers
from gpusvm_svmdev.plugin import INFO
from gpusvm_svmdev.tunables import SvmdevQuirks, SvmdevTunables

SOURCES = [path for path in Path(gpusvm_svmdev.__file__).parent.glob("*.py") if path.name != "tunables.py"]


def test_it_is_found_by_its_name_and_executes_operations():
    drivers = load_drivers()
    assert drivers["svmdev"] is INFO
    assert drivers.find("svmdev").operations is not None


def test_importing_the_plugin_builds_nothing():
    program = "import sys, gpusvm_svmdev.plugin; print([name for name in sys.modules if name.startswith('gpusvm_')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    parts = ["gpusvm_svmdev.plugin", "gpusvm_svmdev.info", "gpusvm_svmdev.tunables"]
    assert sorted(ast.literal_eval(done.stdout)) == sorted(["gpusvm_svmdev", *parts])


@pytest.mark.parametrize("name", [each.name for each in attrs.fields(SvmdevTunables)])
def test_every_tunable_is_read_somewhere(name):
    assert any(f"tunables.{name}" in path.read_text("utf-8") for path in SOURCES)


@pytest.mark.parametrize("name", [each.name for each in attrs.fields(SvmdevQuirks)])
def test_every_quirk_is_read_somewhere(name):
    assert any(f"quirks.{name}" in path.read_text("utf-8") for path in SOURCES)


def test_the_defaults_are_the_modules():
    assert attrs.asdict(SvmdevTunables()) == {
        "same_owner": 1,
        "notifier_size": 512 << 20,
        "device_pages": 0,  # as the machine has it; 4096 in the module
        "can_migrate_same_pagemap": 0,
        "make_room": 0,
        "cached": 0,
        "coherent": 0,
        "one_log": 0,
        "chunk_sizes": (2 << 20, 64 << 10, 4 << 10),
        "fault_rounds": 3,
    }


def test_a_spec_string_says_how_the_module_is_loaded():
    text = "svmdev:same_owner=0,notifier_size=65536,device_pages=48,can_migrate_same_pagemap=1"
    spec = read_spec(text, {"svmdev": INFO})
    assert spec.text == "svmdev:can_migrate_same_pagemap=1,device_pages=48,notifier_size=64K,same_owner=0"
    assert (spec.tunables.same_owner, spec.tunables.notifier_size) == (0, 65536)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("same_owner=2", "same_owner: expected at most 1, got '2'"),
        ("notifier_size=48K", "notifier_size: expected a power of two, got '48K'"),
        ("device_pages=-1", "device_pages: expected at least 0, got '-1'"),
        ("quirk.holecount=fixed", "unknown key 'quirk.holecount' of driver svmdev; did you mean 'quirk.hole_count'?"),
    ],
)
def test_what_cannot_be_set_is_refused(option, message):
    with pytest.raises(InputError) as error:
        read_spec(f"svmdev:{option}", {"svmdev": INFO})
    assert str(error.value) == f"driver spec 'svmdev:{option}': {message}"
