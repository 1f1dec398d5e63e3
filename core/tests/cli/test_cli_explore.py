"""Explore, replay: a race planted in a driver is found, shrunk, written, repeated and explained."""

import json
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from gpusvm.cli.new_driver import write_driver

RACE = """\
[[scenario]]
name = "race"
about = "a fault while other memory is unmapped"
setup = ["map 0 4", "map 8 4", "gpu_write 0 4"]
tasks.gpu = ["gpu_write 8 2"]
tasks.cpu = ["munmap 0 4"]
tasks.idle = ["cpu_read 8 1"]
"""
MESSAGE = "acme: an invalidation came while garbage was collected"


@pytest.fixture(scope="session")
def acme(tmp_path_factory):
    """A driver that looks twice at a counter, with nothing to keep a notifier from moving it in between."""
    folder = tmp_path_factory.mktemp("racy") / "gpusvm-acme"
    write_driver("acme", folder)
    file = folder / "src" / "gpusvm_acme" / "driver.py"
    text = file.read_text()
    for old, new in (
        (
            "        start, end = max(mmu_range.start",
            (
                '        self.driver.kernel.write_once(self, "invalidations", self.invalidations + 1)\n'
                "        start, end = max(mmu_range.start"
            ),
        ),
        (
            '        self.lock = kernel.mutex("acme_vm_lock")\n',
            '        self.lock = kernel.mutex("acme_vm_lock")\n        self.invalidations = 0\n',
        ),
        (
            "        while self.garbage:\n",
            (
                "        before = self.invalidations\n"
                '        if self.driver.kernel.read_once(self, "invalidations") != before:\n'
                f'            raise ModelError("{MESSAGE}")\n'
                "        while self.garbage:\n"
            ),
        ),
        ("from gpusvm.errors import KernelError\n", "from gpusvm.errors import KernelError, ModelError\n"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text)
    return folder / "src"


@pytest.fixture
def race(tmp_path):
    path = tmp_path / "race.toml"
    path.write_text(RACE)
    return path


@pytest.fixture
def found(gpusvm, race, tmp_path):
    done = gpusvm("explore", race, "--schedules", 200, "--out", tmp_path / "out", "--json")
    assert (done.code, done.err) == (1, [])
    return json.loads(done.out)


def test_the_document(found, tmp_path):
    schema = json.loads(resources.files("gpusvm.explore").joinpath("schema", "exploration-1.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(found)
    assert found.pop("seconds") > 0
    assert found.pop("schedules_per_s") > 0
    assert found.pop("schedules") <= 200
    assert found == {
        "schema": 1,
        "scenario": "race",
        "driver": "acme",
        "scheduler": "random",
        "exhausted": False,
        "skipped": None,
        "findings": [
            {
                "kind": "error",
                "invariant": "ModelError",
                "file": str(tmp_path / "out" / "race-acme-error-ModelError.txt"),
            }
        ],
    }


def test_it_is_shrunk(found):
    text = Path(found["findings"][0]["file"]).read_text("utf-8")
    assert "to 1 preemption, 0 failures, 2 operations in 2 tasks, " in text
    assert "tasks.idle" not in text
    assert "    switch to 1 cpu\n" in text


def test_it_is_repeated_and_explained(found, gpusvm):
    (finding,) = found["findings"]
    done = gpusvm("replay", finding["file"])
    assert (done.code, done.out) == (1, f"race on acme: error ModelError shows again\n  {MESSAGE}\n")
    done = gpusvm("replay", finding["file"], "--explain", "--diagram")
    assert done.code == 1
    (broken,) = [line for line in done.out.splitlines() if line.startswith("=>")]
    assert "read_once AcmeVm.invalidations" in broken
    assert "gpusvm_acme/driver.py:" in broken
    assert "in collect_garbage" in broken
    assert ET.parse(finding["file"].replace(".txt", ".svg")).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_another_model_is_said(found, gpusvm):
    path = Path(found["findings"][0]["file"])
    path.write_text(path.read_text("utf-8").replace("switch to 1 cpu", "switch to 1 cqu"), "utf-8")
    document = json.loads(gpusvm("replay", path, "--json").out)
    assert document["stray"]["recorded"] == "a switch to cqu (1)"
    assert document["stray"]["found"] == "a switch to cpu (1)"


def test_processes_find_the_same(found, gpusvm, race, tmp_path):
    done = gpusvm("explore", race, "--schedules", 200, "--out", tmp_path / "two", "--json", "--jobs", 2)
    two = json.loads(done.out)
    assert two["schedules"] == found["schedules"]
    one, other = (Path(each["findings"][0]["file"]) for each in (found, two))
    assert one.read_text("utf-8") == other.read_text("utf-8")


def test_nothing_breaks(gpusvm, race, tmp_path):
    race.write_text(RACE.replace('tasks.cpu = ["munmap 0 4"]\n', ""))
    done = gpusvm("explore", race, "--schedules", 20, "--out", tmp_path / "out", "--json")
    assert (done.code, json.loads(done.out)["findings"]) == (0, [])
    assert not (tmp_path / "out").exists()


def test_the_list(gpusvm):
    document = json.loads(gpusvm("explore", "--list", "--json").out)
    assert document["schema"] == 1
    assert {"name": "fault-munmap", "tasks": 2, "standard": True} in document["scenarios"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--schedules", "0"], "--schedules: expected 1 or more, got 0"),
        (["--jobs", "0"], "--jobs: expected 1 or more, got 0"),
        (["--seconds", "0"], "--seconds: expected more than 0, got 0"),
        (["--scheduler", "randon"], "scheduler 'randon': unknown scheduler 'randon'; did you mean 'random'?"),
        (["--mutant", "GS-1"], "unknown mutant 'GS-1', did you mean 'GS-12'?"),
        (["--driver", "acne"], "driver spec 'acne': unknown driver 'acne'; did you mean 'acme'?"),
    ],
)
def test_bad_input(refused, race, arguments, line):
    assert refused("explore", race, *arguments) == f"gpusvm: {line}"


def test_no_scenario(refused):
    assert refused("explore") == (
        "gpusvm: expected a scenario: a name that `gpusvm explore --list` shows, a .toml file, standard or all"
    )
