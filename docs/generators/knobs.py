"""Write what of the drivers' strategies can be turned, knob by knob, from knobs.toml and what the drivers declare."""

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
from gpusvm.driver import DriverInfo, read_spec
from gpusvm.errors import InputError

from generators.markdown import NOTICE, code, table
from generators.shipped import SHIPPED, info_of

__all__ = ["Turn", "page", "refusal", "turns"]

HEAD = f"""\
# Knobs

{NOTICE}

What drivers do differently can be asked of another driver, where that means something: `xe:evict_order=lru`, say, or
`nouveau:fault_batching=off`. Each knob and, for each driver, the keys of its spec string that turn it; a dash says that
none does, and [why](#why-there-is-no-key) is below. The keys, with units and limits, are in [drivers](drivers.md),
classes of your own in [put a policy of your own into a shipped driver](../how-to/your-own-policy.md).
"""


@attrs.frozen
class Turn:
    """Say how one driver's spec string turns a knob: by `keys`, or, without one, why not (`note`)."""

    knob: str
    driver: str
    keys: tuple[str, ...]
    note: str


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "knobs.toml").read_text("utf-8"))


def turns(driver: DriverInfo) -> list[Turn]:
    """Return what the table says of a driver, knob by knob; ValueError for a key that the driver does not have."""
    known = {each.name for each in attrs.fields(driver.tunables)} | set(driver.strategies) | {"populate"}
    known |= {f"quirk.{each.name}" for each in attrs.fields(driver.quirks)}
    found = []
    for knob in _data()["knob"]:
        said = knob[driver.name]
        if isinstance(said, str):
            said = {"note": said}
        elif isinstance(said, list):
            said = {"keys": said}
        turn = Turn(knob["id"], driver.name, tuple(said.get("keys", ())), said.get("note", ""))
        for key in turn.keys:
            if key not in known:
                raise ValueError(f"knobs.toml: {turn.knob}: driver {driver.name} has no key {key!r}")
        found.append(turn)
    return found


def refusal(spec: str) -> str:
    """Return why a spec string is refused; ValueError if it is not."""
    name = spec.partition(":")[0]
    try:
        read_spec(spec, {name: info_of(name)})
    except InputError as error:
        return str(error).removeprefix(f"driver spec {spec!r}: ")
    raise ValueError(f"knobs.toml: {spec!r} is not refused")


def page(root: Path) -> str:
    """Return docs/reference/knobs.md."""
    infos = [info_of(name) for name in SHIPPED]
    columns = [turns(info) for info in infos]
    knobs = _data()["knob"]
    rows = (
        (knob["id"], knob["name"], knob["values"], *(_keys(column[at]) for column in columns))
        for at, knob in enumerate(knobs)
    )
    lines = [HEAD, *table(("", "knob", "values", *SHIPPED), rows)]
    lines += ["", "`KEY=MODULE:CLASS` stands for a class of your own.", "", "## Why there is no key"]
    for info, column in zip(infos, columns, strict=True):
        why = ((turn.knob, knob["name"], turn.note) for turn, knob in zip(column, knobs, strict=True) if not turn.keys)
        lines += ["", f"### {info.name}", "", *table(("", "knob", "what it does, and why nothing else"), why)]
    lines += ["", "## What cannot be combined", ""]
    lines += table(("knobs", "spec string", "refused because"), _refused())
    lines += ["", "Suspicious, and not refused:", ""]
    lines += table(("knobs", "why"), ((each["knobs"], each["why"]) for each in _data()["combination"] if "why" in each))
    lines += ["", "## Keys of no knob", "", "What is hardware, a timeout, or a quirk that no strategy is about:", ""]
    lines += table(("driver", "keys"), _others(infos, columns))
    return "\n".join(lines) + "\n"


def _keys(turn: Turn) -> str:
    """Write the keys of a knob; a strategy's with how a class of one's own is named."""
    if not turn.keys:
        return "–"
    info = info_of(turn.driver)
    tunables = {each.name for each in attrs.fields(info.tunables)}
    written = []
    for key in turn.keys:
        if key in tunables:
            written.append(code(key) + (f" or {code(f'{key}=MODULE:CLASS')}" if key in info.strategies else ""))
        else:
            written.append(code(f"{key}=MODULE:CLASS") if key in info.strategies else code(key))
    return ", ".join(written) + (f"; {turn.note}" if turn.note else "")


def _refused() -> Iterator[tuple[str, str, str]]:
    for each in _data()["combination"]:
        if "spec" in each:
            yield each["knobs"], code(each["spec"]), refusal(each["spec"])


def _others(infos: list[DriverInfo], columns: list[list[Turn]]) -> Iterator[tuple[str, str]]:
    for info, column in zip(infos, columns, strict=True):
        turned = {key for turn in column for key in turn.keys}
        names = [each.name for each in attrs.fields(info.tunables)]
        names += [f"quirk.{each.name}" for each in attrs.fields(info.quirks)]
        yield info.name, ", ".join(code(name) for name in names if name not in turned)
