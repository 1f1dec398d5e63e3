"""What docs/explanation/exploration.md says was exhausted, for its smallest trees, with the counts it gives."""

import re
from pathlib import Path

import pytest
from gpusvm.explore import explore

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "exploration.md"
ROW = re.compile(r"^\| (\S+) \| (\S+) \| ([\d,]+) \| ([\d,]+) \| [\d.]+ \|$", re.MULTILINE)
ROWS = {
    (scenario, driver): (int(executions.replace(",", "")), int(skipped.replace(",", "")))
    for scenario, driver, executions, skipped in ROW.findall(PAGE.read_text("utf-8"))
}


def test_there_are_eight_at_least():
    assert len({scenario for scenario, _ in ROWS}) >= 8


@pytest.mark.parametrize(
    ("scenario", "driver"),
    [("fault-cpu-write", "dmirror"), ("fault-first-touch", "dmirror"), ("fault-first-touch", "nouveau")],
)
def test_a_tree_has_as_many_executions_as_the_page_says(scenario, driver):
    found = explore([scenario], [driver], scheduler="dfs:preemptions=3").results[0]
    assert found.exhausted
    assert not found.findings
    assert (found.schedules, found.skipped) == ROWS[scenario, driver]
