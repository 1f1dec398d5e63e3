"""Give the recorded answers of a real Linux 7.3.4 again, all of them, and every notifier event in its order."""

import gzip
import json
from pathlib import Path

import pytest
from gpusvm.plugins import LoadedDriver, Registry
from gpusvm.realkernel import check, write_recording
from gpusvm.realkernel.recordings import read_recording
from gpusvm_dmirror.info import INFO
from gpusvm_dmirror.operations import OPERATIONS

RECORDED = Path(__file__).with_name("recorded")
DRIVERS = Registry.of_loaded([LoadedDriver(info=INFO, operations=OPERATIONS)])
SIZES = {
    "base": (600, 16_800),
    "thp": (300, 6_300),
    "base-1": (400, 11_200),
    "file-1": (700, 24_500),
    "coherent-1": (500, 15_716),
    "fork-1": (599, 17_371),
    "two-device-1": (469, 15_477),
    "release-1": (100, 3_500),
    "batch": (10, 92),
}
PART = 100
PARTS = [(profile, first) for profile, (count, _) in SIZES.items() for first in range(0, count, PART)]


@pytest.mark.parametrize("profile", SIZES)
def test_every_recorded_sequence_is_there(profile):
    sequences = read_recording(RECORDED / f"dmirror-{profile}.json.gz").sequences
    assert (len(sequences), sum(map(len, sequences))) == SIZES[profile]


@pytest.mark.parametrize(("profile", "first"), PARTS)
def test_every_answer_is_that_of_linux(tmp_path, profile, first):
    recording = read_recording(RECORDED / f"dmirror-{profile}.json.gz")
    some = recording.sequences[first : first + PART]
    part = write_recording(tmp_path / "dmirror-part.json.gz", some, header=recording.header or None)
    found = check(part, level="L3", registry=DRIVERS)
    assert found.differences == ()
    assert (found.sequences, found.operations) == (len(some), sum(map(len, some)))
    # Warnings of which the model knows nothing, and pages that are copied because they waited to be activated.
    warned = sum(pair[0] == "warn" and pair[1] != "0 0 0 0" for each in some for pair in each)
    assert found.explained == warned + (3 if profile == "batch" else 0)


@pytest.mark.parametrize("profile", [name for name in SIZES if name.endswith("-1")])
def test_a_recording_says_what_answered(profile):
    header = read_recording(RECORDED / f"dmirror-{profile}.json.gz").header
    assert (header["target"], f"{header['profile']}-{header['seed']}") == ("dmirror", profile)
    assert (header["release"], header["module"], header["cpus"]) == ("7.3.4", "test_hmm_repaired", 1)
    built = header["built"]
    hashes = [built["config_sha256"], built["image_sha256"], built["agent_sha256"], *built["modules"].values()]
    assert {len(each) for each in hashes} == {64}
    assert built["source"]["package"] == "linux-source-7.3"


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
