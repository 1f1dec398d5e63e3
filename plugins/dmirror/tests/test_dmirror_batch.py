"""Copy a page that waits to be activated where Linux did, and let no other event of Linux's pass for such a copy."""

from pathlib import Path

import pytest
from gpusvm.plugins import LoadedDriver, Registry
from gpusvm.realkernel import check, write_recording
from gpusvm.realkernel.recordings import read_recording
from gpusvm_dmirror.info import INFO
from gpusvm_dmirror.operations import OPERATIONS

RECORDED = Path(__file__).with_name("recorded") / "dmirror-batch.json.gz"
DRIVERS = Registry.of_loaded([LoadedDriver(info=INFO, operations=OPERATIONS)])
CLEAR = " inv(0,2,3,1,-) inv(1,2,3,1,-)"
COPIED = "w 0 2 1 500", "0 0 1 0" + CLEAR
REUSED = "w 0 2 1 500", "0 0 1 0"
THRICE, DRAINED_BETWEEN, BY_WAY_OF_THE_DEVICE = 3, 4, 5


def with_last_write(number, pair):
    pairs = list(read_recording(RECORDED).sequences[number])
    (at,) = (i for i, (operation, _) in enumerate(pairs) if operation == pair[0])
    return [*pairs[:at], pair, *pairs[at + 1 :]]


def checked(tmp_path, pairs):
    return check(write_recording(tmp_path / "dmirror-one.json.gz", [pairs]), registry=DRIVERS)


@pytest.mark.parametrize("number", [THRICE, BY_WAY_OF_THE_DEVICE])
def test_a_page_that_may_wait_is_copied_or_not_as_it_was(tmp_path, number):
    found = checked(tmp_path, with_last_write(number, COPIED))
    assert (found.differences, found.explained, found.kinds["w"].explained) == ((), 1, 1)
    found = checked(tmp_path, with_last_write(number, REUSED))
    assert (found.differences, found.explained) == ((), 0)


@pytest.mark.parametrize("number", [1, 2, DRAINED_BETWEEN, 7])
def test_one_that_cannot_wait_is_not_copied(tmp_path, number):
    """The batch was drained since, the page was pinned once, it is active already, or part of a large folio."""
    (difference,) = checked(tmp_path, with_last_write(number, COPIED)).differences
    assert (difference.operation, difference.got, difference.level) == (*REUSED, "L2")


def test_the_event_that_gives_an_exclusive_page_back_cannot_be_missing(tmp_path):
    pairs = list(read_recording(RECORDED).sequences[THRICE])
    exclusive, answer = pairs[5]
    assert exclusive.startswith("ex ")
    assert CLEAR in answer
    pairs[5] = exclusive, answer.replace(CLEAR, "")
    (difference,) = checked(tmp_path, pairs).differences
    assert (difference.index, difference.got, difference.level) == (5, answer, "L2")


def test_a_large_folio_drains_the_batch_as_it_is_never_in_one(tmp_path):
    waits, drained = read_recording(RECORDED).sequences[8:10]
    (copied,), (reused,) = (
        [answer for operation, answer in each if operation == "w 0 600 1 9"] for each in (waits, drained)
    )
    assert (copied, reused) == ("0 0 1 0 inv(0,258,259,1,-) inv(1,258,259,1,-)", "0 0 1 0")
    assert checked(tmp_path, waits).ok
    (difference,) = checked(tmp_path, [*drained[:-1], waits[-1]]).differences
    assert (difference.operation, difference.got) == ("w 0 600 1 9", reused)
