"""Write values as people read them: units scaled, thousands apart, three or four digits."""

from collections.abc import Sequence
from typing import Final

from gpusvm.compare.table import Row, Table, Unit

__all__ = ["NONE", "cell_texts", "conditions_text", "row_texts", "value_text"]

NONE: Final = "–"  # what does not apply

_SCALES: Final[dict[Unit, tuple[tuple[float, str], ...]]] = {
    "ns": ((1, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")),
    "s": ((1, "s"),),
    "bytes": ((1, "B"), (2**10, "KiB"), (2**20, "MiB"), (2**30, "GiB")),
    "count": ((1, ""),),
}
_WIDEST: Final = 10_000  # values of one row that lie further apart than this get a unit each


def row_texts(row: Row) -> tuple[str, ...]:
    """Write the values of a row in one unit, to compare at a glance; each in its own if they lie far apart."""
    return cell_texts(row.values, row.metric.unit)


def cell_texts(values: Sequence[float | None], unit: Unit) -> tuple[str, ...]:
    """Write several values of one kind; None becomes a dash."""
    sizes = [abs(value) for value in values if value]
    if not sizes or max(sizes) / min(sizes) > _WIDEST:
        return tuple(NONE if value is None else value_text(value, unit) for value in values)
    scale, name = _scale(min(sizes), unit)
    return tuple(NONE if value is None else _written(value, scale, name) for value in values)


def value_text(value: float, unit: Unit) -> str:
    """Write one value in the unit that suits it."""
    scale, name = _scale(abs(value), unit)
    return _written(value, scale, name)


def conditions_text(table: Table) -> str:
    """Say what the runs of a table have in common."""
    parts = [
        f"{value_text(value, 'bytes')} VRAM" if key == "vram_bytes" else f"{key} {value}"
        for key, value in table.conditions.items()
    ]
    return ", ".join(parts)


def _scale(value: float, unit: Unit) -> tuple[float, str]:
    fitting = [step for step in _SCALES[unit] if step[0] <= value]
    return fitting[-1] if fitting else _SCALES[unit][0]


def _written(value: float, scale: float, name: str) -> str:
    if value == 0:
        return "0"
    scaled = value / scale
    digits = 0 if abs(scaled) >= 100 or (isinstance(value, int) and scale == 1) else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:,.{digits}f} {name}".strip()
