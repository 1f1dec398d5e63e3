"""Work out a stacked bar of fault time by stage: where each rectangle and each word goes; the template draws it."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

from attrs import frozen

from gpusvm.report.units import cell_texts, value_text
from gpusvm.run.spec import RunResult, StageNs

__all__ = ["Bar", "Chart", "Segment", "Tick", "stage_charts", "time_ticks"]

_STAGES = tuple(StageNs.__annotations__)  # top to bottom in the pipeline
_WIDTH = 760.0
_RIGHT = 84.0  # room for the total after the longest bar
_LABEL, _BAR, _GAP, _AXIS = 16.0, 16.0, 12.0, 22.0
_THINNEST = 0.4  # a stage thinner than this, in units of the drawing, would only blur its neighbours


@frozen(kw_only=True)
class Segment:
    """Draw one stage of one bar; `hint` is what pointing at it tells."""

    stage: str
    x: float
    width: float
    hint: str


@frozen(kw_only=True)
class Bar:
    """Draw one driver: its name above, its stages in the order of a fault, its total behind."""

    name: str
    y: float
    end: float
    total: str
    segments: tuple[Segment, ...]


@frozen(kw_only=True)
class Tick:
    """Draw one line of the grid, with its value below."""

    x: float
    text: str


@frozen(kw_only=True)
class Chart:
    """Hold one drawing; lengths are in units of its view box, `title` says in words what it shows."""

    caption: str
    title: str
    width: float
    height: float
    bar_height: float
    stages: tuple[str, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]


def stage_charts(workload: str, runs: Sequence[RunResult]) -> list[Chart]:
    """Lay out the chart of the runs of one workload; none if no run spent time in a fault.

    Faults wait in the queue at the same time, and the sum over all of them can hide the stages that serve them: where
    it is most of a bar, a second chart leaves it out.
    """
    charts = [_chart(workload, runs, _STAGES, "Time in GPU faults, by stage, summed over the faults")]
    times = [(run["stage_ns"]["queue"], sum(_times(run, _STAGES).values())) for run in runs]
    if any(queue_ns > total_ns / 2 for queue_ns, total_ns in times):
        charts.append(_chart(workload, runs, _STAGES[1:], "The same without waiting in the queue"))
    return [chart for chart in charts if chart is not None]


def _chart(workload: str, runs: Sequence[RunResult], stages: Sequence[str], caption: str) -> Chart | None:
    totals = [sum(_times(run, stages).values()) for run in runs]
    if not any(totals):
        return None
    ticks = time_ticks(max(totals))
    scale = (_WIDTH - _RIGHT) / ticks[-1][0]
    bars = []
    texts = cell_texts(totals, "ns")
    for index, (run, total) in enumerate(zip(runs, totals, strict=True)):
        y = index * (_LABEL + _BAR + _GAP) + _LABEL
        bars.append(
            Bar(
                name=run["driver"],
                y=y,
                end=round(total * scale, 2),
                total=texts[index],
                segments=_segments(_times(run, stages), total, scale),
            )
        )
    return Chart(
        caption=caption,
        title=f"{caption}, {workload}: {', '.join(f'{bar.name} {bar.total}' for bar in bars)}",
        width=_WIDTH,
        height=len(bars) * (_LABEL + _BAR + _GAP) + _AXIS,
        bar_height=_BAR,
        stages=tuple(stages),
        bars=tuple(bars),
        ticks=tuple(Tick(x=round(ns * scale, 2), text=text) for ns, text in ticks),
    )


def _times(run: RunResult, stages: Sequence[str]) -> Mapping[str, int]:
    times = cast("Mapping[str, int]", run["stage_ns"])
    return {stage: times[stage] for stage in stages}


def _segments(times: Mapping[str, int], total: int, scale: float) -> tuple[Segment, ...]:
    segments = []
    x = 0.0
    for stage, time_ns in times.items():
        width = time_ns * scale
        if width >= _THINNEST:
            hint = f"{stage}: {value_text(time_ns, 'ns')}, {time_ns / total:.0%}"
            segments.append(Segment(stage=stage, x=round(x, 2), width=round(width, 2), hint=hint))
        x += width
    return tuple(segments)


def time_ticks(most_ns: int) -> list[tuple[float, str]]:
    """Return round times from 0 to at least `most_ns`, three to five steps, and how they are written."""
    rough = most_ns / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    ticks = [step * index for index in range(math.ceil(most_ns / step) + 1)]
    return list(zip(ticks, cell_texts(ticks, "ns"), strict=True))
