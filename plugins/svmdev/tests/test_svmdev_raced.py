"""Whatever two threads came to on Linux 7.3.4 the model allows: an order of their steps ends so."""

import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from gpusvm.plugins import LoadedDriver, Registry
from gpusvm.realkernel import race
from gpusvm.realkernel.races.allowed import allowed_outcomes
from gpusvm.realkernel.targets import ask_to_race
from gpusvm_svmdev.info import INFO
from gpusvm_svmdev.operations import OPERATIONS

RECORDED = Path(__file__).with_name("recorded") / "svmdev-races.json"
DRIVERS = Registry.of_loaded([LoadedDriver(info=INFO, operations=OPERATIONS)])
DOCUMENT = json.loads(RECORDED.read_text())


@pytest.mark.parametrize("name", [each.name for each in OPERATIONS.races])
def test_every_outcome_of_linux_is_one_of_the_models(name):
    """One preemption is enough for all that the kernel did; the outcomes of the recording are of two."""
    (result,) = race("svmdev", recorded=RECORDED, names=[name], preemptions=1, registry=DRIVERS).results
    assert (result.race, result.unknown, result.verdict) == (
        next(each for each in OPERATIONS.races if each.name == name),
        [],
        "allowed",
    )
    # MM-S3, as written: a folio is unlocked that was not locked, and nobody gets at its page any more.
    assert {outcome[-1] for outcome in result.allowed.broken} == ({"HANG"} if name == "evict-fault-huge" else set())
    (recorded,) = (each for each in DOCUMENT["races"] if each["name"] == name)
    assert result.allowed.outcomes <= {tuple(each["answers"]) for each in recorded["outcomes"] if each["model"]}


def test_the_recording_says_what_answered_and_how_often():
    jsonschema.validate(
        DOCUMENT, json.loads(resources.files("gpusvm.realkernel").joinpath("schema", "race-1.json").read_text())
    )
    assert (DOCUMENT["target"], DOCUMENT["release"], DOCUMENT["cpus"], DOCUMENT["preemptions"]) == (
        "svmdev",
        "7.3.4",
        2,
        2,
    )
    for each in DOCUMENT["races"]:
        assert (each["verdict"], each["exhausted"], each["tries"]) == ("allowed", True, DOCUMENT["tries"])
        assert sum(outcome["kernel"] for outcome in each["outcomes"]) == each["tries"]


def test_the_hang_of_mm_s3_is_gone_where_that_is_fixed():
    asked = ask_to_race("svmdev:quirk.mm_s3=fixed", "one-thp", DRIVERS)
    (hung,) = (each for each in OPERATIONS.races if each.name == "evict-fault-huge")
    found = allowed_outcomes(hung, asked, preemptions=1)
    assert (found.exhausted, found.broken) == (True, {})


def test_a_model_whose_threads_wait_for_each_other_is_refuted():
    """What Linux did only where one side came between two steps of the other has no such order then."""
    (recorded,) = (each for each in DOCUMENT["races"] if each["name"] == "evict-fault")
    seen = {tuple(each["answers"]) for each in recorded["outcomes"] if each["kernel"]}
    (result,) = race("svmdev", recorded=RECORDED, names=["evict-fault"], preemptions=0, registry=DRIVERS).results
    assert (result.verdict, set(result.unknown)) == ("refuted", seen - result.allowed.outcomes)
    assert len(result.unknown) == 1
