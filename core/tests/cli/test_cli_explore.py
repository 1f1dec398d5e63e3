"""Explore, replay: a race planted in a driver is found, shrunk, written, repeated and explained."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from gpusvm.cli import progress
from gpusvm.cli.new_driver import write_driver
from gpusvm.explore.exploring import ExplorationProgress
from gpusvm.explore.result import Exploration
from gpusvm.explore.shrink import Shrinking, Size
from gpusvm.plugins import installed
from gpusvm.report.console import invoked
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

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
            "        self.driver = driver\n\n    # TODO device memory: preferred",
            (
                "        self.driver = driver\n"
                "        self.invalidations = 0\n\n"
                "    def invalidate(self, gpusvm, notifier, mmu_range):\n"
                '        self.kernel.write_once(self, "invalidations", self.invalidations + 1)\n'
                "        super().invalidate(gpusvm, notifier, mmu_range)\n\n"
                "    def collect_garbage(self):\n"
                "        before = self.invalidations\n"
                '        if self.kernel.read_once(self, "invalidations") != before:\n'
                f'            raise ModelError("{MESSAGE}")\n'
                "        super().collect_garbage()\n\n"
                "    # TODO device memory: preferred"
            ),
        ),
        (
            "from gpusvm.gpu import ATOMIC",
            "from gpusvm.errors import ModelError\nfrom gpusvm.gpu import ATOMIC",
        ),
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


FOUND = {}  # what is found is the same every time, so it is looked for once


@pytest.fixture
def found(gpusvm, race, tmp_path):
    file = tmp_path / "out" / "race-acme-error-ModelError.txt"
    if not FOUND:
        done = gpusvm("explore", race, "--schedules", 200, "--out", tmp_path / "out", "--json")
        assert (done.code, done.err) == (1, [])
        FOUND.update(document=done.out.replace(str(file), "FILE"), text=file.read_text("utf-8"))
    file.parent.mkdir(exist_ok=True)
    file.write_text(FOUND["text"], "utf-8")
    return json.loads(FOUND["document"].replace("FILE", str(file)))


def valid(document, name):
    folder = resources.files("gpusvm.explore").joinpath("schema")
    schemas = [json.loads(file.read_text("utf-8")) for file in folder.iterdir()]
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
    registry = Registry().with_resources((schema["$id"], Resource.from_contents(schema)) for schema in schemas)
    (schema,) = [schema for schema in schemas if schema["$id"] == f"urn:gpusvm:{name}"]
    Draft202012Validator(schema, registry=registry).validate(document)


def test_the_document(found, tmp_path):
    valid(found, "exploration-1")
    assert found.pop("seconds") > 0
    assert found.pop("schedules_per_s") > 0
    schedules = found.pop("schedules")
    assert schedules <= 200
    coverage = found.pop("coverage")
    assert coverage["yield_points"].keys() == {"reached", "never", "executions"}
    assert coverage["yield_points"]["executions"] == -(-schedules // 16)
    assert coverage["yield_points"]["reached"] > 10
    assert "alloc.folio" in coverage["injection_sites"]["never"] + [*coverage["injection_sites"]["reached"]]
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


def test_several_are_in_one_document(gpusvm, race, tmp_path):
    other = RACE.replace('"race"', '"quiet"').replace('tasks.cpu = ["munmap 0 4"]\n', "")
    for_others = RACE.replace('"race"', '"elsewhere"') + 'drivers = ["xe"]\n'
    race.write_text(RACE + other + for_others)
    done = gpusvm("explore", race, "--schedules", 200, "--out", tmp_path / "out", "--json", "--coverage", "--no-shrink")
    assert (done.code, done.err) == (1, [])
    document = json.loads(done.out)
    valid(document, "explorations-1")
    assert [(each["scenario"], len(each["findings"])) for each in document["results"]] == [("race", 1), ("quiet", 0)]
    assert document["left_out"] == [{"scenario": "elsewhere", "driver": "acme", "reason": "it is for xe"}]
    points = document["results"][1]["coverage"]["yield_points"]
    assert len(points["reached_places"]) == points["reached"]
    assert len(points["never_places"]) == points["never"]
    assert "found with" not in done.out


def test_the_table(gpusvm, race, tmp_path):
    race.write_text(RACE + RACE.replace('"race"', '"elsewhere"') + 'drivers = ["xe"]\n')
    done = gpusvm("explore", race, "--schedules", 20, "--first", 1000, "--out", tmp_path / "out", "--coverage")
    lines = [line.strip() for line in done.out.splitlines()]
    assert lines[1].split("  ")[0] == "scenario"
    assert lines[3].startswith("race")
    assert "left out on acme: elsewhere: it is for xe" in lines
    assert any(line.startswith("injection sites of acme: ") for line in lines)
    assert any(line.startswith("never  mm/userfaultfd.py:") for line in lines)


def test_it_goes_on_where_it_has_ended(found, gpusvm, race, tmp_path):
    last = found["schedules"] - 1  # the one that broke
    done = gpusvm("explore", race, "--schedules", 5, "--first", last, "--out", tmp_path / "on", "--json")
    document = json.loads(done.out)
    assert document["schedules"] == 1
    one, other = (Path(each["findings"][0]["file"]).read_text("utf-8") for each in (found, document))
    assert f"found-by   random, seed 0, schedule {last}\n" in one
    assert other == one


def test_it_goes_on_after_a_finding(found, gpusvm, race, tmp_path):
    done = gpusvm("explore", race, "--schedules", 200, "--keep-going", "--no-shrink", "--out", tmp_path / "on")
    assert done.code == 1
    (said,) = [line for line in done.out.splitlines() if line.startswith("  first in schedule ")]
    first = found["schedules"] - 1
    assert said.startswith(f"  first in schedule {first}, and in ")
    assert said.endswith(" more of 200")
    assert [each.name for each in (tmp_path / "on").iterdir()] == ["race-acme-error-ModelError.txt"]


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


@pytest.mark.parametrize(
    ("called", "uv", "found", "expected"),
    [
        ("/venv/bin/gpusvm", False, "/venv/bin/gpusvm", "gpusvm"),
        (".venv/bin/gpusvm", False, None, ".venv/bin/gpusvm"),
        (".venv/bin/gpusvm", False, "/usr/bin/gpusvm", ".venv/bin/gpusvm"),
        ("/venv/bin/gpusvm", True, "/venv/bin/gpusvm", "uv run gpusvm"),
        ("pytest", True, None, "gpusvm"),
    ],
)
def test_what_is_to_be_typed_next_is_written_as_the_user_has_called_it(called, uv, found, expected, monkeypatch):
    monkeypatch.setattr("sys.argv", [called])
    monkeypatch.setattr("shutil.which", lambda _: found)
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    if uv:
        monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert invoked() == expected


def test_a_replay_as_a_document(found, gpusvm):
    (finding,) = found["findings"]
    done = gpusvm("replay", finding["file"], "--json")
    assert done.code == 1
    short = json.loads(done.out)
    valid(short, "replay-1")
    document = json.loads(gpusvm("replay", finding["file"], "--json", "--explain").out)
    valid(document, "replay-1")
    broken = document["entries"][document["broken_at"]]
    assert (broken["task"], broken["what"], broken["on"]) == (
        "kworker/acme_faults:0",
        "read_once",
        "AcmeVm.invalidations",
    )
    assert broken["code"] == 'if self.kernel.read_once(self, "invalidations") != before:'
    assert {key: document[key] for key in short} == short
    assert (short["file"], short["shows"], short["preemptions"]) == (finding["file"], True, 1)


def test_a_mended_defect_does_not_show(found, gpusvm, acme, tmp_path, monkeypatch):
    (finding,) = found["findings"]
    mended = tmp_path / "mended"
    shutil.copytree(acme, mended)
    file = mended / "gpusvm_acme" / "driver.py"
    text = file.read_text()
    assert text.count('"invalidations") != before:') == 1
    file.write_text(text.replace('"invalidations") != before:', '"invalidations") < before:'))
    monkeypatch.syspath_prepend(mended)
    monkeypatch.setenv("GPUSVM_DRIVERS", f"none,acme={mended / 'gpusvm_acme' / 'plugin.py'}")
    installed._load.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpusvm_acme"]:
        del sys.modules[name]
    done = gpusvm("replay", finding["file"], "--explain")
    assert done.code == 0
    last = done.out.splitlines()[-1]
    assert last.startswith("race on acme: error ModelError does not show: nothing broke in ")
    assert "=>" not in done.out


def test_a_narrow_terminal_gets_lanes(found, only_acme):
    (finding,) = found["findings"]
    drawn, code = on_a_terminal("replay", finding["file"], "--explain", columns=60)
    assert code == 1
    lines = drawn.splitlines()
    assert max(map(len, lines)) == 60
    at = next(at for at, line in enumerate(lines) if line.startswith("=>"))
    assert lines[at].split()[2:5] == ["|o|", "kworker/acme_faults:0", "read_once"]
    assert "AcmeVm.invalidations" in lines[at + 1]
    assert "collect_garbage" in "".join(line.strip() for line in lines[at : at + 5])


def on_a_terminal(*arguments, columns, until=None):
    """Run a command line on a terminal of its own; press Ctrl-C when it shows `until`."""
    terminal, end = os.openpty()
    command = [sys.executable, "-c", "from gpusvm.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1"}
    process = subprocess.Popen(command, env=environment, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    drawn = b""
    while True:
        try:
            drawn += os.read(terminal, 4096)
        except OSError:  # the last process that had the terminal open has ended
            break
        if until is not None and until in drawn:
            os.killpg(process.pid, signal.SIGINT)
            until = None
    os.close(terminal)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode()).replace("\r\n", "\n"), process.wait()


def test_control_c_on_a_terminal(race, only_acme, tmp_path):
    out = tmp_path / "out"
    drawn, code = on_a_terminal(
        "explore", race, "--seconds", 600, "--keep-going", "--out", out, columns=160, until=b"  1 findings  "
    )
    assert code == 130
    assert "1/1 race on acme  " in drawn
    assert f"gpusvm replay {out / 'race-acme-error-ModelError.txt'} --explain" in drawn
    assert drawn.splitlines()[-1] == (
        f"gpusvm: interrupted: 0 of 1 explorations had ended, and what was found is in {out}"
    )
    assert (out / "race-acme-error-ModelError.txt").exists()


@pytest.mark.parametrize("shrinking", [False, True])
def test_control_c_keeps_what_was_found(gpusvm, race, tmp_path, monkeypatch, shrinking):
    @contextmanager
    def shown():
        def listen(told):
            if told.failed and (told.shrinking is not None) == shrinking:
                signal.raise_signal(signal.SIGINT)

        yield listen

    monkeypatch.setattr(progress, "exploration_shown", shown)
    race.write_text(RACE + RACE.replace('"race"', '"another"'))
    done = gpusvm("explore", race, "--schedules", 200, "--out", tmp_path / "out", "--json")
    assert (done.code, done.err) == (
        130,
        [
            (
                f"gpusvm: interrupted: {int(shrinking)} of 2 explorations had ended, "
                f"and what was found is in {tmp_path / 'out'}"
            )
        ],
    )
    document = json.loads(done.out)
    valid(document, "exploration-1")
    text = Path(document["findings"][0]["file"]).read_text("utf-8")
    assert "shrunk" not in text


def test_how_far_it_is():
    exploration = Exploration(scenario="race", driver="acme", scheduler="random", schedules=512, seconds=2.0)
    told = ExplorationProgress(number=2, total=3, exploration=exploration, schedules=1000, failed=1)
    assert progress.exploration_text(told) == (
        "2/3 race on acme  256/s  1 findings  0 outcomes  0 states  0 yield points  0 sites"
    )
    size = Size(preemptions=1, failures=0, operations=2, tasks=2, other=0, steps=31)
    shrinking = Shrinking(executions=40, executions_max=2000, size=size)
    told = ExplorationProgress(
        number=2, total=3, exploration=exploration, schedules=1000, failed=1, shrinking=shrinking
    )
    assert progress.exploration_text(told) == (
        "2/3 race on acme  shrinking, 40/2000: 1 preemption, 0 failures, 2 operations in 2 tasks, 31 steps"
    )


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
    assert two["coverage"] == found["coverage"]
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
        (["--mutant", "GS-1"], "unknown mutant 'GS-1', did you mean 'GS-16'?"),
        (["--driver", "acne"], "driver spec 'acne': unknown driver 'acne'; did you mean 'acme'?"),
    ],
)
def test_bad_input(refused, race, arguments, line):
    assert refused("explore", race, *arguments) == f"gpusvm: {line}"


def test_no_such_file(refused, tmp_path):
    missing = tmp_path / "none.toml"
    assert refused("explore", missing) == (
        f"gpusvm: {missing}: expected scenarios in TOML, cannot be read: No such file or directory"
    )


def test_no_such_scenario(refused):
    assert refused("explore", "zzz") == (
        "gpusvm: unknown scenario 'zzz', `gpusvm explore --list` shows all (or the path of a .toml file)"
    )


def test_nothing_can_be_written(refused, race, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert refused("explore", race, "--out", file / "out") == (
        f"gpusvm: --out {file / 'out'}: nothing can be written there: Not a directory"
    )


def test_no_scenario_is_for_the_driver(refused, race):
    race.write_text(RACE + 'drivers = ["xe"]\n')
    assert refused("explore", race) == (
        "gpusvm: none of the scenarios is for these drivers: race on acme: it is for xe"
    )


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("driver     acme", "driver     acne", "driver spec 'acne': unknown driver 'acne'; did you mean 'acme'?"),
        ("quirks     fixed", "quirks     broken", "{file}:4: quirks: unknown value 'broken', valid: as_written, fixed"),
        ("\nend\n", "\n", "{file}:{lines}: the file is cut short: expected 'end' as its last line"),
        (
            "failures   0",
            "mutant     GS-1",
            "unknown mutant 'GS-1', did you mean 'GS-16'?",
        ),
        ("gpusvm finding 1", "gpusvm finding 2", "{file}:1: expected format 1, got '2'"),
    ],
)
def test_a_finding_that_cannot_be_repeated(found, refused, old, new, line):
    path = Path(found["findings"][0]["file"])
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    text = text.replace(old, new if "mutant" not in new else f"{old}\n{new}")
    path.write_text(text, "utf-8")
    assert refused("replay", path) == f"gpusvm: {line.format(file=path, lines=len(text.splitlines()))}"


def test_no_scenario(refused):
    assert refused("explore") == (
        "gpusvm: expected a scenario: a name that `gpusvm explore --list` shows, a .toml file, standard or all"
    )
