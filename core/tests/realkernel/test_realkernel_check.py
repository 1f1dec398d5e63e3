"""What a check finds: levels, totals, deviations on purpose, a model that fails, and the files it leaves."""

import copy
import json
from importlib import resources

import jsonschema
import pytest
from gpusvm.driver.operations import Deviation
from gpusvm.realkernel import CheckProgress, KindCount, check
from gpusvm.realkernel.sequence import END
from gpusvm.run.executor import ProcessExecutor

SCHEMA = json.loads(resources.files("gpusvm.realkernel").joinpath("schema", "check-1.json").read_text())

GOOD = [("mmap 0 0 16 3 0", "0 0 0 0"), ("w 0 3 2 100", "0 0 2 0"), ("r 0 2 4", "0 0 4 0 0,64,65,0")]


def places(found):
    return [(each.sequence, each.index, each.operation, each.got, each.level) for each in found.differences]


def test_good_answers(write, echo):
    found = check(write(GOOD, [("say 7", "0 0 0 0 7"), ("where 1", "0 0 0 0 gpu1")]), registry=echo())
    assert found.ok
    assert (found.sequences, found.operations, found.explained) == (2, 5, 0)
    assert found.kinds == {name: KindCount(operations=1) for name in ("mmap", "r", "say", "w", "where")}


def test_every_sequence_begins_in_a_fresh_process(write, echo):
    again = [("r 0 2 1", "-2 11 0 0 "), *GOOD]
    assert check(write(GOOD, again, again), registry=echo()).ok


@pytest.mark.parametrize(
    ("operation", "answer", "level"),
    [
        ("say 7", "0 0 0 0 8", "L0"),
        ("say 7", "0 0 1 0 7", "L0"),
        ("fail 5", "0 0 0 0", "L0"),
        ("fail 5", "-1 12 0 0", "L0"),
        ("where 1", "0 0 0 0 gpu0", "L1"),
        ("pm 0 0 2", "0 0 2 0 nP", "L1"),
        ("tell 2", "0 0 0 0 ev(0)", "L2"),
        ("say 7", "0 0 0 0 7 other(1)", "L2"),
        ("tell 2", "0 0 0 0 ev(1) ev(0)", "L3"),
    ],
)
def test_a_difference_counts_from_its_level_on(write, echo, operation, answer, level):
    path = write([("say 1", "0 0 0 0 1"), (operation, answer), ("say 2", "0 0 0 0 0")])
    for asked in ("L0", "L1", "L2", "L3"):
        found = check(path, registry=echo(), level=asked)
        (difference,) = found.differences
        if asked < level:
            assert (difference.index, difference.level) == (2, "L0")
        else:
            assert (difference.index, difference.operation, difference.level) == (1, operation, level)
            assert (difference.expected, difference.before) == (answer, (("say 1", "0 0 0 0 1"),))


def test_a_sequence_ends_at_its_first_difference(write, echo):
    wrong = [("say 1", "0 0 0 0 2"), ("say 3", "0 0 0 0 3")]
    found = check(write(wrong, GOOD, wrong), registry=echo())
    assert places(found) == [(0, 0, "say 1", "0 0 0 0 1", "L0"), (2, 0, "say 1", "0 0 0 0 1", "L0")]
    assert found.kinds["say"] == KindCount(operations=2, differing=2)
    assert (found.sequences, found.operations) == (3, 5)


def test_at_most_five_operations_lead_to_a_difference(write, echo):
    pairs = [(f"say {i}", f"0 0 0 0 {i}") for i in range(8)]
    (difference,) = check(write([*pairs, ("say 8", "0 0 0 0 0")]), registry=echo()).differences
    assert difference.before == tuple(pairs[-5:])


def test_a_deviation_on_purpose_is_explained(write, echo):
    explained = [Deviation(operation=r"say \d", expected=r".* 8", got=r".* 7", reason="seven is enough")]
    path = write([("say 7", "0 0 0 0 8"), ("say 7", "0 0 0 0 8")], [("say 6", "0 0 0 0 8")])
    found = check(path, registry=echo(explained=explained))
    assert (found.explained, found.reasons) == (2, {"seven is enough": 2})
    assert places(found) == [(1, 0, "say 6", "0 0 0 0 6", "L0")]
    assert found.kinds["say"] == KindCount(operations=3, differing=1, explained=2)


def test_a_model_that_fails_is_a_difference(write, echo):
    found = check(write([("break", "0 0 0 0")], GOOD), registry=echo(), level="L0")
    assert places(found) == [(0, 0, "break", "RuntimeError: broken", None)]


def test_an_operation_that_never_returns_is_one_that_waits_for_ever(write, echo):
    hang = [("say 1", "0 0 0 0 1"), ("hang", "HANG")]
    assert check(write(hang, hang), registry=echo(), target="echo:quirk.leak=as_written").ok  # nobody can tear it down
    found = check(write([("say 1", "HANG")], [("hang", "0 0 0 0")], [("fail 5", "HANG")]), registry=echo(), level="L0")
    assert places(found) == [
        (0, 0, "say 1", "0 0 0 0 1", "L0"),
        (1, 0, "hang", "HANG: deadlock: nothing can run", "L0"),
        (2, 0, "fail 5", "-1 5 0 0", "L0"),
    ]


def test_the_name_of_a_recording_says_what_it_needs(write, echo):
    registry = echo(
        settings={}, settings_by_name=[("echo-*", {"quirk.leak": "as_written"}), ("*-tidy.*", {"quirk.leak": "fixed"})]
    )
    pairs = [("say 1", "0 0 0 0 1")]
    assert not check(write(pairs, name="echo-test.json.gz"), registry=registry).ok
    tidy = write(pairs, name="echo-tidy.json.gz")
    assert check(tidy, registry=registry).ok
    assert not check(tidy, registry=registry, target="echo:quirk.leak=as_written").ok
    assert check(write(pairs, name="other.json.gz"), registry=registry, target="echo:quirk.leak=fixed").ok


def test_what_a_sequence_leaves_behind_is_a_difference(write, echo):
    path = write([("say 1", "0 0 0 0 1")])
    assert check(path, registry=echo(), target="echo").ok  # the target's settings mend it
    (difference,) = check(path, registry=echo(), target="echo:quirk.leak=as_written").differences
    assert (difference.index, difference.operation, difference.expected) == (1, END, "nothing is left")
    assert difference.got.startswith("LedgerError: ")


def test_processes_find_the_same(write, echo, monkeypatch, pytestconfig):
    # The executor of the test is pickled by its module's name, which the processes have to find.
    monkeypatch.syspath_prepend(pytestconfig.rootpath)
    sequences = [[("say 1", f"0 0 0 0 {i % 4}")] for i in range(25)]
    path = write(*sequences)
    serial = check(path, registry=echo())
    assert len(serial.differences) == 19
    reports = []
    spread = check([path], registry=echo(), executor=ProcessExecutor(2), progress=reports.append)
    assert spread.to_dict() == serial.to_dict()
    assert reports[0] == CheckProgress(done=0, total=25, eta_s=None)
    assert [report.total for report in reports] == [25] * 4
    assert reports[-1].done == 25


def test_what_a_check_leaves(write, echo, tmp_path):
    path = write(GOOD, [("say 1", "0 0 0 0 2")])
    found = check(path, registry=echo(), target="echo", out=tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["check.json", "run.json"]
    assert json.loads((tmp_path / "out" / "check.json").read_text()) == json.loads(found.to_json())
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["schema"], run["level"]) == (1, "L3")
    (file,) = run["files"]
    assert (file["file"], file["target"], file["sequences"]) == (str(path), "echo:quirk.leak=fixed", 2)


def test_a_check_keeps_its_schema(write, echo):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    path = write(GOOD, [("say 1", "0 0 0 0 2")], [("break", "0 0 0 0")])
    document = json.loads(check(path, registry=echo()).to_json())
    validator.validate(document)
    assert list(document) == SCHEMA["required"]
    assert list(document["differences"][0]) == [
        "file", "sequence", "index", "operation", "expected", "got", "level", "before",
    ]  # fmt: skip
    assert document["differing_sequences"] == 2
    for key, value, problem in [
        ("operations", -1, "-1 is less than the minimum of 0"),
        ("level", "L4", "'L4' is not one of ['L0', 'L1', 'L2', 'L3']"),
        ("more", 1, "Additional properties are not allowed ('more' was unexpected)"),
    ]:
        wrong = copy.deepcopy(document)
        wrong[key] = value
        assert [error.message for error in validator.iter_errors(wrong)] == [problem]


def test_a_check_says_what_it_is(write, echo):
    found = check(write(GOOD), registry=echo(), level="L2")
    assert repr(found) == "<Check of 1 sequences at L2: 3 operations, 0 sequences differ>"
