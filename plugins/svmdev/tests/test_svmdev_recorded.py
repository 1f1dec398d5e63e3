"""Give recorded answers of the real helpers of Linux 7.3.4 again, and every event in its order."""

import gzip
import json
from pathlib import Path

import pytest
from gpusvm.plugins import LoadedDriver, Registry
from gpusvm.realkernel import check, write_recording
from gpusvm_svmdev.info import INFO
from gpusvm_svmdev.operations import OPERATIONS

RECORDED = Path(__file__).with_name("recorded")
DRIVERS = Registry.of_loaded([LoadedDriver(info=INFO, operations=OPERATIONS)])
SIZES = {
    "one-base": (400, 15_729),
    "one-thp": (250, 8_628),
    "two-same-base": (250, 10_834),
    "two-same-thp": (200, 7_506),
    "two-diff-base": (250, 10_834),
    "two-diff-thp": (200, 7_506),
    "ntf-base": (100, 4_324),
    "ntf-thp": (100, 3_754),
    "samepm-base": (100, 4_334),
    "samepm-thp": (100, 3_780),
}
EVERY = 12


def sequences(name):
    with gzip.open(RECORDED / f"svmdev-{name}.json.gz") as file:
        return json.load(file)


PROFILES = RECORDED / "profiles"
PROFILED = 130


def profiled(name):
    with gzip.open(PROFILES / f"svmdev-{name}-1.json.gz") as file:
        return json.load(file)


@pytest.mark.parametrize("name", [profile.name for profile in OPERATIONS.profiles])
def test_a_sample_of_what_a_profile_was_answered_is_that_of_linux(tmp_path, name):
    """All of them are checked by a lane of .ci/run."""
    recording = profiled(name)
    header = {key: value for key, value in recording.items() if key != "sequences"}
    assert len(recording["sequences"]) == PROFILED
    assert (header["spec"].partition(":")[0], header["profile"], header["release"]) == ("svmdev", name, "7.3.4")
    assert header["built"]["modules"].keys() >= {"svmdev"}
    sample = recording["sequences"][:: 2 * EVERY]
    found = check(write_recording(tmp_path / "sample.json.gz", sample, header=header), level="L3", registry=DRIVERS)
    assert found.differences == ()
    assert (found.sequences, found.explained) == (len(sample), 0)


@pytest.fixture
def some(tmp_path):
    """Write some sequences of a recording as a recording of the same name."""

    def some(name, chosen):
        return write_recording(tmp_path / f"svmdev-{name}.json.gz", chosen)

    return some


@pytest.mark.parametrize("name", SIZES)
def test_a_sample_of_the_answers_is_that_of_linux(some, name):
    sample = sequences(name)[::EVERY]
    found = check(some(name, sample), level="L3", registry=DRIVERS)
    assert found.differences == ()
    assert (found.sequences, found.explained) == (len(sample), 0)


def test_the_recordings_are_whole():
    """All of them are checked by a lane of .ci/run."""
    found = {name: sequences(name) for name in SIZES}
    assert {name: (len(each), sum(map(len, each))) for name, each in found.items()} == SIZES
    assert sorted(path.name for path in RECORDED.glob("*.gz")) == sorted(f"svmdev-{name}.json.gz" for name in SIZES)


def test_a_target_may_say_what_the_name_of_a_file_says(tmp_path):
    path = write_recording(tmp_path / "kept.json.gz", sequences("two-diff-base")[:3])
    module = "same_owner=0,notifier_size=536870912,device_pages=48,can_migrate_same_pagemap=0"
    assert check(path, target=f"svmdev:{module}", registry=DRIVERS).ok


# The first sequence that goes otherwise when the module is loaded otherwise, and where: a check that took any module
# for the recorded one would check nothing.
LOADED = [
    ("same_owner=1", "two-diff-base", 0, 39),
    ("same_owner=0", "two-same-base", 0, 39),
    ("notifier_size=512M", "ntf-base", 0, 16),
    ("device_pages=1280", "one-base", 12, 21),
    ("can_migrate_same_pagemap=0", "samepm-base", 5, 15),
    ("chunk_sizes=64K+4K", "one-thp", 0, 4),
    ("fault_rounds=2", "samepm-thp", 2, 1),
]


@pytest.mark.parametrize(("setting", "name", "number", "index"), LOADED)
def test_another_module_answers_otherwise(some, setting, name, number, index):
    path = some(name, [sequences(name)[number]])
    assert check(path, registry=DRIVERS).ok
    (difference,) = check(path, registry=DRIVERS, target=f"svmdev:{setting}").differences
    assert difference.index == index


# The first recorded sequence that goes otherwise with one switch set, where, and at which level.
VISIBLE = [
    ("mm_s1=fixed", "two-same-thp", 79, 23, "L0"),
    ("mm_s2=fixed", "one-thp", 0, 14, "L0"),
    ("mm_s3=fixed", "one-thp", 17, 11, "L2"),
    ("mm_s3=fixed", "one-thp", 195, 10, "L0"),  # where Linux never returned
    ("mm_q7=fixed", "one-thp", 6, 24, "L0"),
    ("hole_count=fixed", "one-thp", 0, 4, "L0"),
]


@pytest.mark.parametrize(("setting", "name", "number", "index", "level"), VISIBLE)
def test_a_recorded_sequence_shows_a_quirk(some, setting, name, number, index, level):
    alone = some(name, [sequences(name)[number]])
    assert check(alone, registry=DRIVERS).ok
    (difference,) = check(alone, target=f"svmdev:quirk.{setting}", registry=DRIVERS).differences
    assert (difference.index, difference.level) == (index, level)


def test_the_operation_that_never_returned_waits_for_a_page_that_nobody_will_unlock(some):
    """As written, MM-S3 leaves the lock bit of the head page set after a failed copy; the next access waits for it."""
    pairs = sequences("one-thp")[195]
    assert pairs[-1] == ["w 0 0 1 36865", "HANG"]
    returned = [*pairs[:-1], (pairs[-1][0], "0 0 1 0")]
    (difference,) = check(some("one-thp", [returned]), registry=DRIVERS).differences
    assert (difference.index, difference.level) == (len(pairs) - 1, "L0")
    first, second, *stack = difference.got.splitlines()
    assert first == "HANG: deadlock: nothing can run"
    assert second.startswith("  task 'main' waits for waitqueue 'folio lock of pfn ")
    assert [line.split()[-1] for line in stack if "mm/memory.py" in line][:2] == ["lock_device_page", "do_swap_page"]
