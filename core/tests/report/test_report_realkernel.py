"""Answers as people read them: what is repeated is counted."""

import pytest
from gpusvm.report.realkernel import shortened


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("0 0 0 0", "0 0 0 0"),
        ("0 0 3 0 5,5,5", "0 0 3 0 5,5,5"),
        ("0 0 6 0 1,5,5,5,5,55", "0 0 6 0 1,5×4,55"),
        ("0 0 4 0 0,0,0,0 inv(0,0,0,0,0)", "0 0 4 0 0×4 inv(0,0,0,0,0)"),
        ("0 0 9 0 " + "06" * 9, "0 0 9 0 06×9"),
        ("0 0 10 0 22" + "06" * 9 + " inv(0,1,2,6,-)", "0 0 10 0 22 06×9 inv(0,1,2,6,-)"),
        ("0 0 12 0 nnnnnnnnnXXP", "0 0 12 0 n×9 XXP"),
        ("-2 11 0 0 ", "-2 11 0 0 "),
        ("ModelError: 0,0,0,0", "ModelError: 0×4"),
        ("", ""),
    ],
)
def test_what_is_repeated_is_counted(answer, text):
    assert shortened(answer) == text
