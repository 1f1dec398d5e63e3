"""What a process drops while nouveau brings it home."""

import pytest
from gpusvm.explore import explore


@pytest.mark.parametrize(
    ("filled_hole", "mm_q3", "found"),
    [
        ("as_written", "as_written", ["2 reads did not see the last write, by the quirk filled_hole"]),
        ("fixed", "as_written", []),
        ("as_written", "fixed", []),
    ],
)
def test_filled_hole_what_is_dropped_beside_a_fault_comes_back(filled_hole, mm_q3, found):
    driver = f"nouveau:quirk.filled_hole={filled_hole},quirk.mm_q3={mm_q3}"
    explored = explore(["home-discard"], [driver], schedules=20, shrunk=False)
    assert [each.finding.message for each in explored.findings] == found
