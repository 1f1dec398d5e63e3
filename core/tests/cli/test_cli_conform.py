"""gpusvm conform on what `gpusvm new-driver` writes."""

import importlib.resources
import json

import pytest
from jsonschema import Draft202012Validator

SCHEMA = json.loads(importlib.resources.files("gpusvm.report").joinpath("schema", "conform-1.json").read_text())


def without_seconds(text):
    document = json.loads(text)
    Draft202012Validator(SCHEMA).validate(document)
    for each in document["results"]:
        assert each.pop("seconds") >= 0
    return document


def test_the_matrix_is_the_same_in_one_process_and_in_two(gpusvm, start):
    arguments = ("conform", "--json", "--check", "access.*", "--check", "capability.*", "--check", "home.*")
    alone = gpusvm(*arguments, "--jobs", 0)
    assert (alone.code, alone.err) == (0, [])
    process = start(*arguments, "--jobs", 2)
    shared, said = process.communicate()
    assert (process.returncode, said) == (0, "")
    document = without_seconds(alone.out)
    assert without_seconds(shared) == document
    (driver,) = document["drivers"]
    assert (driver["driver"], driver["targets"]) == ("acme", "1.0")
    assert driver["profiles"]["core"] == {"claimed": True, "conforms": None, "expected_failures": 0}
    assert driver["profiles"]["device-memory"] == {"claimed": False, "conforms": None, "expected_failures": 0}
    assert {each["status"] for each in document["results"]} == {"pass", "unsupported"}


def test_what_is_printed(gpusvm):
    done = gpusvm("conform", "--check", "access.read.*", "--check", "home.*", "--jobs", 0)
    assert (done.code, done.err) == (0, [])
    lines = [" ".join(line.split()) for line in done.out.splitlines() if line.strip()]
    assert "access.read.cpu-wrote pass" in lines
    assert "home.cpu-touch.contents unsupported" in lines
    assert lines[-1].startswith("acme: ")


BROKEN = """
import attrs
from gpusvm.driver import Refusals, Errnos
from gpusvm.plugins import hookimpl
from gpusvm_acme.plugin import INFO

@hookimpl
def gpusvm_drivers():
    return attrs.evolve(INFO, name="broken", refusals=Refusals(access=Errnos(unmapped=[7])))
"""


@pytest.fixture
def broken(only_acme, tmp_path, monkeypatch):
    """A driver that is no longer allowed what it answers."""
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    monkeypatch.setenv("GPUSVM_DRIVERS", f"none,broken={path}")
    return path


def test_what_fails_has_its_reason_its_page_and_the_command_that_repeats_it(broken, gpusvm, tmp_path):
    out = tmp_path / "out"
    done = gpusvm("conform", "--check", "access.unmapped.refused", "--jobs", 0, "--out", out)
    assert done.code == 1
    at = done.out.index("fail access.unmapped.refused broken: ")
    lines = done.out[at:].splitlines()[:4]
    assert "assert 2 in frozenset({7})" in lines[0]
    assert lines[0].endswith("(gpusvm/conformance/checks/test_access.py:47)")
    assert lines[1:] == [
        "    rule   An access where nothing is mapped is not mapped.",
        "    from   mm/hmm.c:hmm_vma_walk_hole",
        "    again  gpusvm conform --driver broken --check access.unmapped.refused",
    ]
    page = (out / "conform.html").read_text("utf-8")
    assert "gpusvm conform --driver broken --check access.unmapped.refused" in page
    assert "machine 0: " in page
    assert "fault_ack" in page
    (result,) = json.loads((out / "conform.json").read_text("utf-8"))["results"]
    assert result["status"] == "fail"


def test_a_stated_failure_and_a_baseline(broken, gpusvm, tmp_path):
    before, arguments = tmp_path / "before", ("conform", "--check", "access.unmapped.*", "--jobs", 0)
    assert gpusvm(*arguments, "--out", before).code == 1
    broken.with_name("broken.conformance.toml").write_text(
        '[[expected]]\ncheck = "access.unmapped.refused"\nkind = "bug"\nreason = "it says so"\nref = "here"\n'
    )
    done = gpusvm(*arguments, "--baseline", before / "conform.json", "--out", before)
    assert done.code == 0
    assert "FIX access.unmapped.refused broken: fail -> xfail: bug: it says so" in done.out
    broken.with_name("broken.conformance.toml").unlink()
    done = gpusvm(*arguments, "--baseline", before / "conform.json", "--json")
    assert done.code == 1
    assert done.err[0].startswith("REGRESSION access.unmapped.refused broken: xfail -> fail: ")
    assert done.err[1] == f"against {before / 'conform.json'}: 1 regression, 1 change"


def test_an_entry_that_no_check_meets_is_said_when_all_are_run(broken, gpusvm, refused):
    broken.with_name("broken.conformance.toml").write_text(
        '[[expected]]\ncheck = "access.mapped.refused"\nkind = "bug"\nreason = "it says so"\nref = "here"\n'
    )
    assert refused("conform") == (
        "gpusvm: broken.conformance.toml:2: no check is called 'access.mapped.refused'; "
        "did you mean 'access.unmapped.refused'?"
    )
    assert gpusvm("conform", "--check", "access.read.*", "--jobs", 0).code == 0


def test_a_plugin_that_cannot_be_loaded_is_one_line(broken, refused):
    broken.write_text("import nothing_of_this_name\n")
    assert refused("conform") == (
        f"gpusvm: driver plugin 'broken': {broken}:1: importing {broken}: ModuleNotFoundError: No module named "
        "'nothing_of_this_name'"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--driver", "acm"], "driver spec 'acm': unknown driver 'acm'; did you mean 'acme'?"),
        (["--driver", "acme", "--driver", "acme"], "driver spec 'acme' is given twice"),
        (["--profile", "cores"], "unknown profile 'cores'; did you mean 'core'?"),
        (["--check", "acces.*", "--profile", "core"], "no check is called 'acces.*'; did you mean 'access.*'?"),
        (["--check", "home.*", "--profile", "core"], "no check is of these profiles and has such an id"),
        (["--jobs", "-1"], "expected 0 or more jobs, got -1"),
        (["--limit", "0"], "expected a limit of more than 0 s, got 0"),
        (["--baseline", "none.json"], "none.json: cannot be read: No such file or directory"),
    ],
)
def test_bad_input(refused, arguments, said):
    assert refused("conform", *arguments) == f"gpusvm: {said}"


def test_the_list(gpusvm):
    document = json.loads(gpusvm("conform", "--list", "--json", "--profile", "atomics").out)
    assert (document["schema"], document["spec"]) == (1, "1.0")
    assert {each["profile"] for each in document["checks"]} == {"atomics"}
    served = next(each for each in document["checks"] if each["check"] == "atomic.served")
    assert served["requires"] == ["atomics"]
    assert served["place"].startswith("gpusvm/conformance/checks/test_access.py:")
    assert "atomic.served" in gpusvm("conform", "--list").out


UNBUILT = """
import attrs
from gpusvm.plugins import hookimpl
from gpusvm_acme.plugin import INFO

def make(host):
    raise ValueError("no such board")

@hookimpl
def gpusvm_drivers():
    return attrs.evolve(INFO, name="unbuilt", make=make)
"""


def test_a_reason_is_told_once(only_acme, gpusvm, tmp_path, monkeypatch):
    path = tmp_path / "unbuilt.py"
    path.write_text(UNBUILT)
    monkeypatch.setenv("GPUSVM_DRIVERS", f"none,unbuilt={path}")
    done = gpusvm("conform", "--check", "access.read.cpu-wrote", "--check", "access.unmapped.refused", "--jobs", 0)
    assert done.code == 1
    assert done.out.count("no such board") == 1
    at = done.out.index("error access.read.cpu-wrote unbuilt: ")
    assert done.out[at:].splitlines()[1:] == [
        "    rule   What a CPU wrote before is what the GPU reads.",
        "    from   mm/hmm.c:hmm_range_fault",
        "    again  gpusvm conform --driver unbuilt --check access.read.cpu-wrote",
        "    first  gpusvm drivers --check unbuilt",
        (
            "    also   access.unmapped.refused (mm/hmm.c:hmm_vma_walk_hole): "
            "gpusvm conform --driver unbuilt --check access.unmapped.refused"
        ),
        "",
        "unbuilt: 2 error",
    ]
