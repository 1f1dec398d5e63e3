"""Draw an execution as an SVG picture: a lane for each task, time downwards, nothing but the file itself needed."""

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from gpusvm.errors import InputError
from gpusvm.report.explanation import Row, rows_of

if TYPE_CHECKING:
    from gpusvm.explore.finding import Finding
    from gpusvm.explore.repeat import Repeated

__all__ = ["draw_explanation"]

_LINE: Final = 17
_CHARACTER: Final = 6.7  # of the monospaced letters below, at 11 px
_NUMBER: Final = 50
_TOP: Final = 64
_MESSAGE: Final = 60  # characters
_COLOURS: Final = {
    "fail": "#c2185b",
    "wait": "#b26a00",
    "begin": "#000000",
    "end": "#000000",
    "event": "#00677a",
    "folded": "#888888",
    "message": "#c00000",
}
_STYLE: Final = """
text { font: 11px ui-monospace, Menlo, Consolas, monospace; fill: #222222; white-space: pre }
.head { font-weight: bold } .title { font: bold 14px sans-serif } .place { fill: #777777 }
.lane { stroke: #cccccc } .on { stroke: #4a76b8; stroke-width: 3 } .off { stroke: #b26a00; stroke-dasharray: 3 3 }
.switch { stroke: #4a76b8; stroke-width: 1.2 } .broken { fill: #ffe3e3; stroke: #c00000 }
"""


def draw_explanation(repeated: "Repeated", finding: "Finding", path: Path, *, full: bool = False) -> None:
    """Write a picture of a repeated finding. InputError if the file cannot be written."""
    text = _picture(repeated, finding, full=full)
    try:
        path.write_text(text, "utf-8")
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from None


def _picture(repeated: "Repeated", finding: "Finding", *, full: bool) -> str:
    failure = repeated.execution.failure
    message = "" if failure is None else "\n".join(_wrapped(failure.message))
    rows = rows_of(repeated.recording, message, full=full)
    tasks = list(dict.fromkeys(row.task for row in rows))
    widths = [
        12 + _CHARACTER * max(len(task), *(len(row.text) for row in rows if row.task == task)) + 12 for task in tasks
    ]
    lanes = {task: _NUMBER + sum(widths[:at]) for at, task in enumerate(tasks)}
    places = _NUMBER + sum(widths)
    codes = places + _CHARACTER * max((len(row.place) for row in rows), default=0) + 12
    width = codes + _CHARACTER * max((len(row.code) for row in rows), default=0) + 12
    height = _TOP + _LINE * len(rows) + 16
    svg = ET.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        width=_px(width),
        height=_px(height),
        viewBox=f"0 0 {_px(width)} {_px(height)}",
    )
    ET.SubElement(svg, "style").text = _STYLE
    ET.SubElement(svg, "rect", width="100%", height="100%", fill="#ffffff")
    _write(svg, 12, 22, f"{finding.scenario.name} on {finding.driver}: {finding.kind} {finding.invariant}", "title")
    for task, x in lanes.items():
        _write(svg, x + 8, _TOP - 14, task, "head")
        _line(svg, x, _TOP - 8, x, height - 8, "lane")
    _write(svg, places, _TOP - 14, "place", "head")
    _write(svg, codes, _TOP - 14, "code", "head")
    for at, row in enumerate(rows):
        y = _TOP + _LINE * at
        if row.broken:
            x, wide = lanes[row.task] + 3, widths[tasks.index(row.task)] - 6
            ET.SubElement(svg, "rect", {"class": "broken"}, x=_px(x), y=_px(y), width=_px(wide), height=_px(_LINE))
        if row.kind != "message":
            _write(svg, 12, y + 13, str(row.number), "place")
        _write(svg, lanes[row.task] + 8, y + 13, row.text, "", _COLOURS.get(row.kind))
        _write(svg, places, y + 13, row.place, "place")
        _write(svg, codes, y + 13, row.code, "place")
    _draw_turns(svg, rows, lanes)
    return ET.tostring(svg, encoding="unicode") + "\n"


def _wrapped(message: str) -> list[str]:
    """Cut the lines of a message so that it does not make its lane wider than the steps do."""
    return [line for whole in message.splitlines() for line in wrap(whole, _MESSAGE) or [""]]


def _draw_turns(svg: ET.Element, rows: list[Row], lanes: dict[str, float]) -> None:
    """Draw who runs when, who waits, and the switches between lanes."""
    waits: dict[str, float] = {}
    for at, row in enumerate(rows):
        y = _TOP + _LINE * at
        if row.task in waits:
            _line(svg, lanes[row.task], waits.pop(row.task), lanes[row.task], y, "off")
        _line(svg, lanes[row.task], y, lanes[row.task], y + _LINE, "on")
        if row.kind == "wait":
            waits[row.task] = y + _LINE
        if at and rows[at - 1].task != row.task:
            _line(svg, lanes[rows[at - 1].task], y, lanes[row.task], y, "switch")


def _px(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    ET.SubElement(svg, "line", {"class": kind}, x1=_px(x1), y1=_px(y1), x2=_px(x2), y2=_px(y2))


def _write(svg: ET.Element, x: float, y: float, text: str, kind: str, colour: str | None = None) -> None:
    if not text:
        return
    element = ET.SubElement(svg, "text", x=_px(x), y=_px(y))
    if kind:
        element.set("class", kind)
    if colour is not None:
        element.set("style", f"fill: {colour}")
    element.text = text
