"""Show power: the states of each device over time and who held it awake, as one line and as a picture."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from attrs import frozen

from gpusvm.report.chart import Tick, time_ticks
from gpusvm.report.units import value_text
from gpusvm.run.spec import PmDevice, RunResult

__all__ = ["Lane", "PowerChart", "Stretch", "Track", "power_chart", "power_texts"]

_COLOURS: Final = {"D0": "awake", "D3hot": "hot", "D3cold": "cold"}
_WIDTH, _LEFT, _RIGHT = 760.0, 92.0, 12.0
_NAME, _STATE, _HOLDER, _GAP, _AXIS = 20.0, 16.0, 13.0, 10.0, 22.0
_THIN: Final = 6.0  # how high the bar in the lane of a holder is
_THINNEST: Final = 0.6  # what is shorter is drawn as long as this: a short sleep is to be seen


@frozen(kw_only=True)
class Stretch:
    """Draw one stretch of time; `hint` is what pointing at it tells."""

    x: float
    width: float
    colour: str
    hint: str


@frozen(kw_only=True)
class Lane:
    """Draw one row: the states of a device, or when one holder had references."""

    label: str
    y: float
    height: float
    stretches: tuple[Stretch, ...]


@frozen(kw_only=True)
class Track:
    """Draw one device of one run: its name above its lanes."""

    name: str
    y: float
    lanes: tuple[Lane, ...]


@frozen(kw_only=True)
class PowerChart:
    """Hold one drawing; lengths are in units of its view box, `title` says in words what it shows."""

    caption: str
    title: str
    width: float
    height: float
    keys: tuple[tuple[str, str], ...]
    tracks: tuple[Track, ...]
    ticks: tuple[Tick, ...]


def power_texts(runs: Sequence[RunResult]) -> list[str]:
    """Say in a line for each device whose driver has runtime power management how it spent the run, and why."""
    return [
        f"{name}: {_states_text(device, run['sim_ns'])}; {_held_text(device, run['sim_ns'])}"
        for name, run, device in _devices(runs)
    ]


def power_chart(workload: str, runs: Sequence[RunResult]) -> PowerChart | None:
    """Lay out states and holders over time, all runs of a workload on one scale; None if no driver has power
    management.
    """
    found = list(_devices(runs))
    if not found:
        return None
    ticks = time_ticks(max(run["sim_ns"] for _, run, _ in found))
    scale = (_WIDTH - _LEFT - _RIGHT) / ticks[-1][0]
    tracks = []
    y = 0.0
    for name, run, device in found:
        lanes = _lanes(device, run["sim_ns"], scale, y + _NAME)
        tracks.append(Track(name=name, y=y + _NAME - 6, lanes=lanes))
        y = lanes[-1].y + _HOLDER + _GAP
    caption = "Power over time: the state of each device, and when who held references on it"
    return PowerChart(
        caption=caption,
        title=f"{caption}, {workload}: {'; '.join(power_texts(runs))}",
        width=_WIDTH,
        height=y + _AXIS,
        keys=(*_COLOURS.items(), ("referenced", "held")),
        tracks=tuple(tracks),
        ticks=tuple(Tick(x=round(_LEFT + ns * scale, 2), text=text) for ns, text in ticks),
    )


def _devices(runs: Sequence[RunResult]) -> Iterator[tuple[str, RunResult, PmDevice]]:
    for run in runs:
        for device in [] if run["pm"] is None else run["pm"]["devices"]:
            yield f"{run['driver']}, {device['device']}", run, device


def _stretches(device: PmDevice, sim_ns: int) -> list[tuple[str, int, int]]:
    """List states with the times from and until which they lasted."""
    changes = [(each["from_ns"], each["state"]) for each in device["states"]]
    return [(state, since, until) for (since, state), (until, _) in pairwise([*changes, (sim_ns, "")]) if until > since]


def _states_text(device: PmDevice, sim_ns: int) -> str:
    spent = dict.fromkeys(_COLOURS, 0)
    for state, since, until in _stretches(device, sim_ns):
        spent[state] += until - since
    states = ", ".join(f"{state} {_share(ns, sim_ns)}" for state, ns in spent.items() if ns)
    return f"{states}; {device['resumes']} resume{'' if device['resumes'] == 1 else 's'}"


def _held_text(device: PmDevice, sim_ns: int) -> str:
    holders = sorted(device["holders"], key=lambda each: -each["held_ns"])
    held = ", ".join(f"{each['holder']} {_share(each['held_ns'], sim_ns)}" for each in holders)
    left = ", ".join(
        f"{each['count']} of {each['holder']} (since {value_text(each['since_ns'][0], 'ns')})"
        for each in device["references"]
    )
    return f"held by {held or 'nobody'}; when the program ended {left or 'by nobody'}"


def _share(ns: int, sim_ns: int) -> str:
    percent = 100 * ns / sim_ns if sim_ns else 0.0
    return "< 1 %" if percent < 1 else f"{percent:.0f} %"


def _lanes(device: PmDevice, sim_ns: int, scale: float, y: float) -> tuple[Lane, ...]:
    states = [(state, _COLOURS[state], since, until) for state, since, until in _stretches(device, sim_ns)]
    lanes = [_lane("state", y, _STATE, states, scale)]
    y += _STATE + 4
    for each in device["holders"]:
        what = f"{each['holder']}, {each['refs_max']} at most"
        lanes.append(
            _lane(each["holder"], y, _THIN, [(what, "held", since, until) for since, until in each["spans_ns"]], scale)
        )
        y += _HOLDER
    return tuple(lanes)


def _lane(label: str, y: float, height: float, pieces: Sequence[tuple[str, str, int, int]], scale: float) -> Lane:
    return Lane(
        label=label,
        y=y,
        height=height,
        stretches=tuple(
            Stretch(
                x=round(_LEFT + since * scale, 2),
                width=max(_THINNEST, round((until - since) * scale, 2)),
                colour=colour,
                hint=f"{what}: {value_text(since, 'ns')} to {value_text(until, 'ns')}",
            )
            for what, colour, since, until in pieces
        ),
    )
