"""The command gpusvm realkernel check: what it prints, writes and exits with."""

import json

import pytest
from gpusvm.realkernel import write_recording

PLUGIN = """
from gpusvm.driver.operations import Answer, OperationTarget
from gpusvm.plugins import hookimpl
from gpusvm_acme.plugin import gpusvm_drivers  # noqa: F401

class Executor:
    def __init__(self, host):
        self.events = ()

    def execute(self, name, numbers):
        self.events = tuple(f"ev({i})" for i in range(numbers[1]))
        return Answer(payload=f"{sum(numbers):x}")

    def take_events(self):
        events, self.events = self.events, ()
        return events

@hookimpl
def gpusvm_operations():
    return OperationTarget(
        driver="acme", devices=1, operations={"add": ("dev", "events", "n")}, start=Executor, events=("ev",)
    )
"""

GOOD = [("mmap 0 0 16 3 0", "0 0 0 0"), ("w 0 0 1 255", "0 0 1 0"), ("add 0 1 4", "0 0 0 0 5 ev(0)")]
WRONG = [("add 0 1 1", "0 0 0 0 2 ev(0)"), ("add 0 2 2", "0 0 0 0 4 ev(1) ev(0)"), ("add 0 1 1", "0 0 0 0 2 ev(0)")]


@pytest.fixture
def check(gpusvm, acme, tmp_path, monkeypatch):
    """Run `gpusvm realkernel check` where the driver acme executes the operation `add`."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setenv("GPUSVM_DRIVERS", f"none,acme={plugin}")

    def check(*arguments):
        return gpusvm("realkernel", "check", *arguments)

    return check


@pytest.fixture
def recording(tmp_path):
    def recording(*sequences, name="acme-test.json.gz"):
        return write_recording(tmp_path / name, sequences)

    return recording


def test_good_answers(check, recording):
    done = check(recording(GOOD, GOOD), "--jobs", "1")
    assert (done.code, done.err) == (0, [])
    assert [line.rstrip() for line in done.out.splitlines()] == [
        "",
        " operation   compared   differing   explained",
        " ────────────────────────────────────────────",
        " add                2           0           0",
        " mmap               2           0           0",
        " w                  2           0           0",
        "",
        " all                6           0           0",
        "",
        "2 sequences at L3, none of them differs",
    ]


def test_a_difference_is_shown_with_what_led_to_it(check, recording):
    path = recording(GOOD, WRONG)
    done = check(path, "--jobs", "1")
    assert (done.code, done.err) == (1, [])
    assert [line.rstrip() for line in done.out.splitlines()][-7:] == [
        f"{path}: sequence 1, operation 1 differs at L3",
        "    0  add 0 1 1 => 0 0 0 0 2 ev(0)",
        "    1  add 0 2 2",
        "       expected  0 0 0 0 4 ev(1) ev(0)",
        "       got       0 0 0 0 4 ev(0) ev(1)",
        "",
        "2 sequences at L3, 1 of them differ",
    ]


def test_a_level_below_does_not_see_it(check, recording):
    done = check(recording(GOOD, WRONG), "--level", "L2", "--jobs", "1")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "2 sequences at L2, none of them differs"


def test_json_alone(check, recording):
    done = check(recording(GOOD, WRONG), "--json", "--jobs", "2")
    assert done.code == 1
    document = json.loads(done.out)
    assert (document["schema"], document["level"], document["sequences"], document["operations"]) == (1, "L3", 2, 5)
    assert (document["differing_sequences"], document["explained"]) == (1, 0)
    assert document["differences"][0]["sequence"] == 1


def test_files_go_to_the_directory(check, recording, tmp_path):
    out = tmp_path / "out"
    done = check(recording(GOOD), "--out", out, "--jobs", "1")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"Written to {out}: check.json and run.json."
    assert json.loads((out / "check.json").read_text())["differing_sequences"] == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no recording is named; name a file such as dmirror-base.json.gz"),
        (["none.json.gz", "--target", "acme"], "none.json.gz: expected a recording: No such file or directory"),
        (["--jobs", "0", "none.json.gz"], "--jobs: expected 1 or more, got 0"),
        (["--level", "L4", "none.json.gz"], 'Invalid value "L4" for --level. Choose from: "L0", "L1", "L2", "L3".'),
        (["none.json.gz"], "none.json.gz: expected a recording: No such file or directory"),
    ],
)
def test_bad_input_gets_one_line(check, arguments, line):
    done = check(*arguments)
    assert (done.code, done.out, done.err) == (2, "", [f"gpusvm: {line}"])


def test_a_bad_operation_is_named_with_its_place(check, recording):
    path = recording(GOOD, [("mmap 0 0 16 3 0", "0 0 0 0"), ("mmap 0 0", "0 0 0 0")])
    done = check(path)
    assert (done.code, done.out) == (2, "")
    assert done.err == [
        (
            f"gpusvm: {path}: sequence 1, operation 1: expected 'mmap' with 5 whole numbers (slot page n prot shared), "
            "got 'mmap 0 0'"
        )
    ]


def test_a_driver_without_operations(gpusvm, recording):
    done = gpusvm("realkernel", "check", recording(GOOD), "--target", "acme")
    assert (done.code, done.err) == (
        2,
        ["gpusvm: driver acme cannot execute recorded operations: its plugin has no hook gpusvm_operations"],
    )
