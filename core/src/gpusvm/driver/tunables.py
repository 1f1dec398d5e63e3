"""Declare what a spec string may set: tunables and quirks are frozen attrs classes whose fields carry their unit
and limits.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import attrs

__all__ = ["QUIRK_VARIANTS", "Unit", "Variant", "all_fixed", "quirk", "tunable"]

Unit = Literal["bytes", "pages", "ms", "us", "MiB", "count", "choice", "flag"]
Variant = Literal["as_written", "fixed"]
QUIRK_VARIANTS: Final[tuple[Variant, ...]] = ("as_written", "fixed")


def tunable(
    default: Any,
    doc: str,
    *,
    unit: Unit,
    minimum: int | None = None,
    maximum: int | None = None,
    power_of_two: bool = False,
    descending: bool = False,
    choices: Sequence[str] | None = None,
    cite: str = "",
) -> Any:
    """Declare a field of a tunables class.

    `default` is an int, a bool (unit "flag"), a str (unit "choice", one of `choices`) or a tuple, of such strings or of
    ints, each within `minimum` and `maximum`; a field of unit "bytes" takes K, M and G suffixes in a spec string.
    `descending` demands that a tuple falls strictly. `doc` is one sentence, `cite` the place in Linux 7.3.4 that the
    default comes from.
    """
    return attrs.field(
        default=default,
        metadata={
            "doc": doc,
            "unit": unit,
            "minimum": minimum,
            "maximum": maximum,
            "power_of_two": power_of_two,
            "descending": descending,
            "choices": None if choices is None else tuple(choices),
            "cite": cite,
        },
    )


def quirk(doc: str, *, cite: str, fixable: bool = True, default: Variant = "as_written") -> Any:
    """Declare a field of a quirks class: a place where Linux 7.3 as written does something surprising.

    The default is "as_written"; `doc` gives the reason where it is not. A quirk that has no second variant says
    `fixable=False`; "fixed" is then refused for it.
    """
    variants = QUIRK_VARIANTS if fixable else QUIRK_VARIANTS[:1]
    return attrs.field(default=default, metadata={"doc": doc, "cite": cite, "choices": variants, "unit": "choice"})


def all_fixed(quirks: Any) -> Any:
    """Return `quirks` (an instance of a quirks class) with everything fixed that can be."""
    fixable = [
        each.name for each in attrs.fields(type(quirks)) if "fixed" in each.metadata.get("choices", QUIRK_VARIANTS)
    ]
    return attrs.evolve(quirks, **dict.fromkeys(fixable, "fixed"))
