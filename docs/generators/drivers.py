"""Write a card for each driver that ships: what it says of itself, and what can be set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from gpusvm.driver import DriverInfo, format_size

from generators.markdown import NOTICE, code, table
from generators.shipped import SHIPPED, info_of

__all__ = ["page"]


def page(root: Path) -> str:
    """Return docs/reference/drivers.md."""
    infos = [info_of(name) for name in SHIPPED]
    lines = [
        "# Drivers",
        "",
        NOTICE,
        "",
        "The drivers that ship. A tunable or quirk is set in a spec string: `xe:chunk_sizes=64K+4K`,",
        "`xe:quirk.acked_failure=fixed`.",
        "",
        "## Side by side",
        "",
        *table(("", *SHIPPED), _side_by_side(infos)),
    ]
    for info in infos:
        lines += ["", *_card(info)]
    lines += [
        "",
        "## Quirks of the mm",
        "",
        "Places where Linux 7.3.4's own mm surprises; any driver's spec string may set them, as `quirk.mm_s1=fixed`:",
        "[quirks of the mm](mm-quirks.md).",
    ]
    return "\n".join(lines) + "\n"


def _side_by_side(infos: list[DriverInfo]) -> Iterator[tuple[str, ...]]:
    yield ("embedding", *(info.embedding for info in infos))
    yield ("page to bo", *(info.bo_mapping for info in infos))
    yield ("runtime PM", *(info.pm for info in infos))
    yield ("promises to be awake while a page is in use", *("yes" if info.awake_with_pages else "no" for info in infos))
    for name in dict(infos[0].capabilities.items()):
        yield (code(name), *(str(getattr(info.capabilities, name)) for info in infos))


def _card(info: DriverInfo) -> Iterator[str]:
    yield f"## {info.name}"
    yield ""
    yield f"{info.summary}. Follows Linux {info.kernel}; driver ABI {'.'.join(map(str, info.abi))}."
    yield ""
    yield from table(
        ("tunable", "default", "limits", "what it sets", "from"), map(_tunable, attrs.fields(info.tunables))
    )
    yield ""
    quirks = [_quirk(each) for each in attrs.fields(info.quirks)]
    if quirks:
        yield from table(("quirk", "as written", "default", "from"), quirks)
    else:
        yield "No quirks."


def _tunable(field: "attrs.Attribute[Any]") -> tuple[str, str, str, str, str]:
    meta = field.metadata
    return code(field.name), _value(field.default, meta["unit"]), _limits(meta), meta["doc"], meta["cite"]


def _value(value: Any, unit: str) -> str:
    if isinstance(value, tuple):
        return code("+".join(format_size(each) if unit == "bytes" else str(each) for each in value))
    if unit == "bytes":
        return code(format_size(value))
    if unit in {"choice", "count"}:
        return code(str(value))
    if unit == "flag":
        return code("on" if value else "off")
    return f"{code(str(value))} {unit}"


def _limits(meta: Any) -> str:
    unit, parts = meta["unit"], []
    if meta["choices"] is not None:
        parts.append(" or ".join(map(code, meta["choices"])))
    low, high = meta["minimum"], meta["maximum"]
    if low is not None and high is not None:
        parts.append(f"{_value(low, unit)} to {_value(high, unit)}")
    elif low is not None:
        parts.append(f"at least {_value(low, unit)}")
    elif high is not None:
        parts.append(f"at most {_value(high, unit)}")
    if meta["power_of_two"]:
        parts.append("a power of two")
    if meta["descending"]:
        parts.append("descending")
    return ", ".join(parts)


def _quirk(field: "attrs.Attribute[Any]") -> tuple[str, str, str, str]:
    default: str = field.default or ""
    others = [each for each in field.metadata["choices"] if each != default]
    variants = f"{code(default)}, else {' or '.join(map(code, others))}" if others else f"{code(default)} only"
    return code(field.name), field.metadata["doc"], variants, field.metadata["cite"]
