"""Answers as text and as values, and the level at which two of them differ."""

import pytest
from gpusvm.driver.operations import Answer
from gpusvm.errors import InputError
from gpusvm.realkernel.answers import first_difference, read_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("0 0 0 0", Answer()),
        ("-1 22 0 0", Answer(-1, 22)),
        ("0 0 2 1 a,b", Answer(0, 0, 2, 1, "a,b")),
        ("-2 11 0 0 ", Answer(-2, 11, payload="")),
        ("0 0 0 0 inv(0,1,2,6,own) inv(1,1,2,6,-)", Answer(events=("inv(0,1,2,6,own)", "inv(1,1,2,6,-)"))),
        ("0 0 4 0 0,0 inv(0,0,10,3,-)", Answer(done=4, payload="0,0", events=("inv(0,0,10,3,-)",))),
        ("0 0 0 0 rng(0,1,mig) get(0) inv(0,1)", Answer(payload="rng(0,1,mig) get(0)", events=("inv(0,1)",))),
    ],
)
def test_an_answer_is_read_and_written(text, answer):
    assert read_answer(text, ("inv", "gc")) == answer
    assert str(answer) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected an answer of four numbers, then data and events, got ''"),
        ("0 0 0", "expected an answer of four numbers, then data and events, got '0 0 0'"),
        ("0 0 0 zero", "expected an answer of four numbers, then data and events, got '0 0 0 zero'"),
        ("0 0 0 0 inv(0) 5", "expected events (inv(…), gc(…)) at the end of an answer, got '5'"),
        ("0 0 0 0 gc(0", "expected events (inv(…), gc(…)) at the end of an answer, got 'gc(0'"),
    ],
)
def test_what_is_no_answer_is_refused(text, problem):
    with pytest.raises(InputError) as error:
        read_answer(text, ("inv", "gc"))
    assert str(error.value) == problem


EVENTS = ("inv(0)", "inv(1)")


@pytest.mark.parametrize(
    ("got", "residency", "level"),
    [
        (Answer(0, 0, 2, 1, "ab", EVENTS), False, None),
        (Answer(-1, 0, 2, 1, "ab", EVENTS), False, "L0"),
        (Answer(0, 1, 2, 1, "ab", EVENTS), False, "L0"),
        (Answer(0, 0, 3, 1, "ab", EVENTS), True, "L0"),
        (Answer(0, 0, 2, 0, "ab", EVENTS), False, "L0"),
        (Answer(0, 0, 2, 1, "ac", EVENTS), False, "L0"),
        (Answer(0, 0, 2, 1, None, EVENTS), False, "L0"),
        (Answer(0, 0, 2, 1, "ac", EVENTS), True, "L1"),
        (Answer(0, 0, 2, 1, "ab", ("inv(0)",)), True, "L2"),
        (Answer(0, 0, 2, 1, "ab", ("inv(0)", "inv(0)", "inv(1)")), False, "L2"),
        (Answer(0, 0, 2, 1, "ab", ("inv(1)", "inv(0)")), False, "L3"),
    ],
)
def test_two_answers_differ_at_a_level(got, residency, level):
    assert first_difference(Answer(0, 0, 2, 1, "ab", EVENTS), got, residency=residency) == level
