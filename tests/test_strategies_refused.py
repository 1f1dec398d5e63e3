"""A class of the user's own that is wrong: refused before anything runs, with file and line, as a plugin is."""

import sys

import pytest
from gpusvm.driver import read_spec
from gpusvm.errors import InputError
from gpusvm.plugins import load_drivers

DRIVERS = load_drivers()
STRATEGIES = [(name, key) for name, info in DRIVERS.items() for key in info.strategies]

EMPTY = "class Empty:\n    pass\n"
SHORT = "\n\nclass Short:\n    def new_state(self, unit): ...\n    def place(self, fault): ...\n"


@pytest.fixture
def refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "somebodys.py"

    def make(text, spec):
        module.write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, "somebodys", raising=False)
        with pytest.raises(InputError) as caught:
            read_spec(spec, DRIVERS)
        return str(caught.value).replace(str(module), "FILE")

    return make


@pytest.mark.parametrize(("driver", "key"), STRATEGIES)
def test_every_place_for_a_class_says_where_the_class_is(refused, driver, key):
    spec = f"{driver}:{key}=somebodys:Empty"
    message = refused(EMPTY, spec)
    assert message.startswith(f"driver spec {spec!r}: {key}: FILE:1: Empty has no ")


def test_a_method_that_takes_too_little(refused):
    spec = "xe:place=somebodys:Short"
    assert refused(SHORT, spec) == (
        f"driver spec {spec!r}: place: FILE:5: Short.place: expected place(fault, unit, state), got place(fault): too "
        "many positional arguments (FaultPolicy of the contract)"
    )


def test_a_module_that_cannot_be_imported(refused):
    spec = "xe:place=somebodys:Short"
    assert refused("import re\nimport nowhere_there\n", spec) == (
        f"driver spec {spec!r}: place: cannot import 'somebodys': FILE:2: ModuleNotFoundError: No module named "
        "'nowhere_there'"
    )


def test_the_distribution_is_named_where_there_is_one(refused):
    spec = "xe:pm=attrs:Factory"
    message = refused("", spec)
    assert message.startswith(f"driver spec {spec!r}: pm: attrs ")
    assert "Factory has no populate() (RuntimePmPolicy of the contract)" in message
