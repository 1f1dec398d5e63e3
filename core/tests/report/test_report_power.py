import itertools
import json
from pathlib import Path

import pytest
from gpusvm.report.power import power_chart, power_texts

EXAMPLE = Path(__file__).parents[1] / "compare" / "example.json"


@pytest.fixture
def triad():
    return [run for run in json.loads(EXAMPLE.read_text())["runs"] if run["workload"] == "triad"]


def test_a_device_has_a_lane_for_its_states_and_one_for_each_holder(triad):
    chart = power_chart("triad", triad)
    assert [(track.name, [lane.label for lane in track.lanes]) for track in chart.tracks] == [
        ("xe, gpu0", ["state", "vm", "bo"]),
        ("nouveau, gpu0", ["state", "ioctl"]),
        ("xe:chunk_sizes=64K+4K, gpu0", ["state", "vm", "bo"]),
    ]
    assert chart.keys == (("D0", "awake"), ("D3hot", "hot"), ("D3cold", "cold"), ("referenced", "held"))


def test_states_fill_the_run_without_gaps_on_one_scale(triad):
    chart = power_chart("triad", triad)
    short, long = (track.lanes[0].stretches for track in chart.tracks[:2])
    for states in (short, long):
        for one, next_ in itertools.pairwise(states):
            assert one.x + one.width == pytest.approx(next_.x, abs=0.6)
    assert [each.colour for each in long] == ["awake", "hot", "awake", "hot", "awake"]
    lengths = [states[-1].x + states[-1].width - states[0].x for states in (short, long)]
    assert lengths[0] / lengths[1] == pytest.approx(triad[0]["sim_ns"] / triad[1]["sim_ns"], rel=0.05)
    assert chart.ticks[0].x == short[0].x
    assert chart.ticks[-1].x <= chart.width


def test_lanes_do_not_overlap(triad):
    chart = power_chart("triad", triad)
    lanes = [lane for track in chart.tracks for lane in track.lanes]
    for one, next_ in itertools.pairwise(lanes):
        assert one.y + one.height < next_.y
    assert lanes[-1].y + lanes[-1].height < chart.height


def test_the_shortest_sleep_is_drawn(triad):
    triad[0]["pm"]["devices"][0]["states"] = [
        {"from_ns": 0, "state": "D0"},
        {"from_ns": 5, "state": "D3hot"},
        {"from_ns": 6, "state": "D0"},
    ]
    states = power_chart("triad", triad[:1]).tracks[0].lanes[0].stretches
    assert [each.colour for each in states] == ["awake", "hot", "awake"]
    assert states[1].width > 0.5
    assert states[1].hint == "D3hot: 5 ns to 6 ns"


def test_a_line_says_how_long_how_often_and_why(triad):
    run = triad[0]
    run["sim_ns"] = 1000
    run["pm"]["devices"][0] |= {
        "resumes": 0,
        "states": [{"from_ns": 0, "state": "D0"}],
        "holders": [],
        "references": [{"holder": "vm", "count": 3, "since_ns": [10, 20, 30]}],
    }
    assert power_texts([run]) == [
        "xe, gpu0: D0 100 %; 0 resumes; held by nobody; when the program ended 3 of vm (since 10 ns)"
    ]


def test_a_driver_without_power_management_has_neither(triad):
    without = [{**run, "pm": None} for run in triad]
    assert power_texts(without) == []
    assert power_chart("triad", without) is None
