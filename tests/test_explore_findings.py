"""Schedules that once broke something, kept as exploration wrote them: none may break anything again."""

from pathlib import Path

import pytest
from gpusvm.explore.finding import read_finding
from gpusvm.explore.repeat import repeat_finding
from gpusvm.plugins import Installed

FILES = sorted((Path(__file__).parent / "findings").glob("*.txt"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_it_does_not_show_again(file):
    finding = read_finding(file)
    repeated = repeat_finding(finding, drivers=Installed(without=()))
    assert repeated.execution.failure is None
    assert not repeated.execution.abandoned
