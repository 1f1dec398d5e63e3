"""Read the operations of recordings: their words, and what each of their numbers may be."""

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from gpusvm.errors import InputError, nearest

__all__ = ["PAGE", "SLOT_PAGES", "Operation", "address", "read_operation"]

PAGE: Final = 4096
SLOT_PAGES: Final = 0x1000
_BASE: Final = 0x1000_0000_0000
_SLOTS: Final = 64  # one PUD entry

_PROT: Final = (0, 1, 3)


@frozen
class Operation:
    """Hold one operation: its name and its numbers."""

    name: str
    numbers: tuple[int, ...]


def address(slot: int, page: int) -> int:
    """Return the address of a page of a slot."""
    return _BASE + (slot * SLOT_PAGES + page) * PAGE


def read_operation(text: str, forms: Mapping[str, tuple[str, ...]], *, devices: int) -> Operation:
    """Read one operation. InputError, without its place, for one that is none."""
    name, *words = text.split() or [""]
    form = forms.get(name)
    if form is None:
        raise InputError(f"unknown operation {name!r}; {nearest(name, sorted(forms))}")
    try:
        numbers = tuple(map(int, words))
    except ValueError:
        numbers = ()
    if len(numbers) != len(form) or len(words) != len(form):
        raise InputError(f"expected {name!r} with {len(form)} whole numbers ({' '.join(form)}), got {text!r}")
    for kind, number in zip(form, numbers, strict=True):
        problem = _problem(kind, number, devices)
        if problem:
            raise InputError(f"{kind} of {text!r}: expected {problem}, got {number}")
    if "n" in form and "page" in form:
        page, n = numbers[form.index("page")], numbers[form.index("n")]
        if page + n > SLOT_PAGES:
            raise InputError(f"{text!r} goes beyond the {SLOT_PAGES} pages of a slot")
    return Operation(name, numbers)


def _problem(kind: str, number: int, devices: int) -> str | None:
    if kind == "dev":
        return None if 0 <= number < devices else f"a device from 0 to {devices - 1}"
    if kind == "file":
        return None if number in (0, 1) else "0 (a tmpfs object) or 1 (a ramfs file)"
    if kind == "slot":
        return None if 0 <= number < _SLOTS else f"a slot from 0 to {_SLOTS - 1}"
    if kind == "prot":
        return None if number in _PROT else "0, 1 or 3"
    if kind in {"n", "pages"}:
        least = int(kind == "n")
        return None if least <= number <= SLOT_PAGES else f"{least} to {SLOT_PAGES} pages"
    return None if number >= 0 else "0 or more"
