import json
from pathlib import Path

import pytest
from gpusvm.report.chart import stage_charts

EXAMPLE = Path(__file__).parents[1] / "compare" / "example.json"


@pytest.fixture
def triad():
    return [run for run in json.loads(EXAMPLE.read_text())["runs"] if run["workload"] == "triad"]


def test_a_bar_is_as_long_as_its_time(triad):
    (chart,) = stage_charts("triad", triad)
    totals = [sum(run["stage_ns"].values()) for run in triad]
    assert [bar.name for bar in chart.bars] == ["xe", "nouveau", "dmirror", "xe:chunk_sizes=64K+4K"]
    assert [bar.total for bar in chart.bars] == ["13.9 ms", "197.7 ms", "441.3 ms", "47.3 ms"]
    for bar, total in zip(chart.bars, totals, strict=True):
        assert bar.end / total == pytest.approx(chart.bars[2].end / totals[2], rel=0.001)
    assert [tick.text for tick in chart.ticks] == ["0", "100 ms", "200 ms", "300 ms", "400 ms", "500 ms"]
    assert max(bar.end for bar in chart.bars) <= chart.ticks[-1].x <= chart.width


def test_stages_follow_one_another(triad):
    bar = stage_charts("triad", triad)[0].bars[2]
    assert [segment.stage for segment in bar.segments] == list(triad[0]["stage_ns"])
    for first, second in zip(bar.segments, bar.segments[1:], strict=False):
        assert first.x + first.width == pytest.approx(second.x, abs=0.02)
    assert bar.segments[3].hint == "migrate: 311 ms, 70%"


def test_a_stage_too_thin_to_see_is_left_out(triad):
    triad[2]["stage_ns"] = {**triad[2]["stage_ns"], "gc": 1}
    assert "gc" not in [segment.stage for segment in stage_charts("triad", triad)[0].bars[2].segments]


def test_no_fault_no_chart(triad):
    for run in triad:
        run["stage_ns"] = dict.fromkeys(run["stage_ns"], 0)
    assert stage_charts("triad", triad) == []
    assert stage_charts("triad", []) == []


def test_a_long_queue_does_not_hide_the_other_stages(triad):
    for run in triad:
        run["stage_ns"] = {**run["stage_ns"], "queue": 300_000_000}
    everything, served = stage_charts("triad", triad)
    assert everything.stages == ("queue", *served.stages)
    assert everything.caption == "Time in GPU faults, by stage, summed over the faults"
    assert served.caption == "The same without waiting in the queue"
    assert [bar.total for bar in served.bars] == ["11.8 ms", "167.8 ms", "374.7 ms", "40.2 ms"]
