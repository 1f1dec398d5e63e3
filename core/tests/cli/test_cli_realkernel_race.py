"""The command gpusvm realkernel race, with what a kernel did before: what it prints, writes and exits with."""

import json
import re

import pytest

PLUGIN = """
from gpusvm.driver.operations import Answer, OperationProfile, OperationTarget
from gpusvm.plugins import hookimpl
from gpusvm_acme.plugin import gpusvm_drivers  # noqa: F401

class Executor:
    def __init__(self, host):
        pass

    def execute(self, name, numbers):
        return Answer(payload=f"{numbers[0]:x}")

    def take_events(self):
        return ()

@hookimpl
def gpusvm_operations():
    profile = OperationProfile(name="plain", about="", sequence=lambda chance: [], module="acme")
    return OperationTarget(
        driver="acme", devices=1, operations={"say": ("word",)}, start=Executor, profiles=[profile]
    )
"""

BOTH, NONE, ONE, OTHER = "0 0 2 0 5,6", "-2 11 0 0 ", "-2 11 1 0 5", "0 0 2 0 5,9"


@pytest.fixture
def recorded(tmp_path):
    """Write what a kernel did: how often it had each outcome of a read beside munmap."""

    def recorded(outcomes):
        listed = [{"answers": ["0 0 0 0", read], "kernel": n, "delay": 3} for read, n in outcomes.items()]
        race = {
            "name": "unmapped",
            "about": "pages go",
            "profile": "plain",
            "before": ["mmap 0 0 2 3 0", "w 0 0 2 5"],
            "left": "munmap 0 0 2",
            "right": "r 0 0 2",
            "after": ["say 10"],
            "outcomes": [{**each, "answers": [*each["answers"], "0 0 0 0 a"]} for each in listed],
        }
        header = {"schema": 1, "target": "acme", "spec": "acme", "release": "7.3.4", "tries": sum(outcomes.values())}
        path = tmp_path / "race.json"
        path.write_text(json.dumps({**header, "seed": 1, "cpus": 2, "built": {}, "races": [race]}))
        return path

    return recorded


@pytest.fixture
def race(gpusvm, acme, tmp_path, monkeypatch):
    """Run `gpusvm realkernel race` where the driver acme executes the operation `say`."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setenv("GPUSVM_DRIVERS", f"none,acme={plugin}")

    def race(*arguments):
        return gpusvm("realkernel", "race", *arguments)

    return race


def lines(done):
    return [re.sub(r"\d+ s\)", "N s)", line.rstrip()) for line in done.out.splitlines()]


def test_each_outcome_is_shown_with_who_had_it(race, recorded):
    done = race("--recorded", recorded({BOTH: 1234, NONE: 1}))
    assert (done.code, done.err) == (0, [])
    shown = lines(done)
    assert shown[:7] == [
        "unmapped: munmap 0 0 2 | r 0 0 2",
        "  after mmap 0 0 2 3 0; w 0 0 2 5; then say 10",
        f" 1,234  both         0 0 0 0 | {BOTH}; 0 0 0 0 a",
        f"     1  both         0 0 0 0 | {NONE}; 0 0 0 0 a",
        f"     0  never seen   0 0 0 0 | {ONE}; 0 0 0 0 a",
        "",
        "",
    ]
    assert re.fullmatch(r" unmapped   1,235 +2 +3 +\d+   allowed", shown[9])
    assert shown[-1] == "1 races of acme on Linux 7.3.4, the model in all orders with at most 2 preemptions (N s)"


def test_what_the_model_does_not_allow_is_a_finding(race, recorded, tmp_path):
    out = tmp_path / "out"
    done = race("--recorded", recorded({BOTH: 3, OTHER: 1}), "--preemptions", "0", "--out", out)
    assert (done.code, done.err) == (1, [])
    shown = lines(done)
    assert f"     1  NOT ALLOWED  0 0 0 0 | {OTHER}; 0 0 0 0 a" in shown
    assert shown[-2:] == [
        "1 races of acme on Linux 7.3.4, the model in all orders with at most 0 preemptions (N s)",
        f"Written to {out}.",
    ]
    assert sorted(each.name for each in out.iterdir()) == ["race.json", "unmapped.txt"]


def test_a_search_that_was_cut_is_said_to_be_one(race, recorded):
    done = race("--recorded", recorded({BOTH: 3}), "--schedules", "1", "--preemptions", "all")
    assert done.code == 1
    shown = lines(done)
    assert shown[-3].endswith("1   open: not all orders were run")
    assert shown[-1] == (
        "1 races of acme on Linux 7.3.4, the model in all orders, but for 1 races that have more than were to be run "
        "(N s)"
    )


def test_json_alone(race, recorded):
    done = race("--recorded", recorded({NONE: 2}), "--json")
    assert done.code == 0
    document = json.loads(done.out)
    assert (document["schema"], document["target"], document["preemptions"]) == (1, "acme", 2)
    assert [each["kernel"] for each in document["races"][0]["outcomes"]] == [2, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preemptions", "few"], "--preemptions: expected a whole number from 0 on or 'all', got 'few'"),
        (["--recorded", "none.json"], "none.json: expected a race.json: No such file or directory"),
        (["--driver", "acme"], "acme has no races"),
    ],
)
def test_bad_input_gets_one_line(race, arguments, line):
    done = race(*arguments)
    assert (done.code, done.out, done.err) == (2, "", [f"gpusvm: {line}"])
