"""Give the recorded answers of a real Linux 7.3.4 again, all of them, and every notifier event in its order."""

import gzip
import json
from pathlib import Path

import pytest
from gpusvm.plugins import LoadedDriver, Registry
from gpusvm.realkernel import check, write_recording
from gpusvm_dmirror.info import INFO
from gpusvm_dmirror.operations import OPERATIONS

RECORDED = Path(__file__).with_name("recorded")
DRIVERS = Registry.of_loaded([LoadedDriver(info=INFO, operations=OPERATIONS)])
SIZES = {"base": (600, 16_800), "thp": (300, 6_300)}


@pytest.mark.parametrize("profile", SIZES)
def test_every_answer_is_that_of_linux(profile):
    found = check(RECORDED / f"dmirror-{profile}.json.gz", level="L3", registry=DRIVERS)
    assert found.differences == ()
    assert (found.sequences, found.operations, found.explained) == (*SIZES[profile], 0)


# The first recorded sequence that goes otherwise with one switch set, where, and at which level: a check that answered
# "equal" to these would check nothing.
VISIBLE = [
    ("mm_s1=fixed", "thp", 47, 11, "L0"),
    ("mm_s2=fixed", "base", 212, 13, "L2"),
    ("mm_s3=fixed", "thp", 1, 5, "L2"),
    ("mm_q2=fixed", "thp", 21, 8, "L1"),
    ("mm_q7=fixed", "base", 26, 19, "L0"),
    ("mm_q10=fixed", "thp", 130, 8, "L2"),
    ("mm_q13=fixed", "base", 56, 24, "L1"),
    ("mm_q16=fixed", "thp", 1, 6, "L2"),
    ("inclusive_last=fixed", "base", 95, 9, "L0"),
    ("compound_count=fixed", "thp", 5, 16, "L0"),
    ("device_page=as_written", "base", 0, 18, None),  # the model fails where the kernel oopses
]


@pytest.mark.parametrize(("setting", "profile", "number", "index", "level"), VISIBLE)
def test_a_recorded_sequence_shows_a_quirk(tmp_path, setting, profile, number, index, level):
    with gzip.open(RECORDED / f"dmirror-{profile}.json.gz") as file:
        sequence = json.load(file)[number]
    alone = write_recording(tmp_path / "dmirror-one.json.gz", [sequence])
    assert check(alone, registry=DRIVERS).ok
    (difference,) = check(alone, target=f"dmirror:quirk.{setting}", registry=DRIVERS).differences
    assert (difference.index, difference.level) == (index, level)
