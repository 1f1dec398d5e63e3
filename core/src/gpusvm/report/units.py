"""Write values as people read them: units scaled, thousands apart, three or four digits."""

import math
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
_DIGITS_BEHIND: Final = 2
_WIDEST: Final = 1_000  # values of one row that lie further apart than this get a unit each


def row_texts(row: Row) -> tuple[str, ...]:
    """Write the values of a row in one unit, that of the largest, with as many digits behind the point as the least
    needs for three in all, or for two where those would be more than two; each in its own if they lie far apart.
    """
    return cell_texts(row.values, row.metric.unit)


def cell_texts(values: Sequence[float | None], unit: Unit) -> tuple[str, ...]:
    """Write several values of one kind; None becomes a dash."""
    sizes = [abs(value) for value in values if value]
    if not sizes or max(sizes) / min(sizes) > _WIDEST:
        return tuple(NONE if value is None else value_text(value, unit) for value in values)
    scale, name = _scale(max(sizes), unit)
    digits = max(_digits(value, scale) for value in values if value)
    if digits > _DIGITS_BEHIND:
        digits = max(digits - 1, _DIGITS_BEHIND)
    return tuple(NONE if value is None else _written(value, scale, name, digits) for value in values)


def value_text(value: float, unit: Unit) -> str:
    """Write one value in the unit that suits it."""
    scale, name = _scale(abs(value), unit)
    return _written(value, scale, name, _digits(value, scale))


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


def _digits(value: float, scale: float) -> int:
    """Return how many digits behind the point show three in all, none of a whole number of the smallest unit."""
    if not value or (isinstance(value, int) and scale == 1):
        return 0
    return max(0, 2 - math.floor(math.log10(abs(value / scale))))


def _written(value: float, scale: float, name: str, digits: int) -> str:
    return f"{value / scale:,.{digits}f} {name}".strip() if value else "0"
