"""Read what is expected of each driver in each question, and where the model is known to answer otherwise."""

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Final

from attrs import Factory, field, frozen

from gpusvm.documents import structure
from gpusvm.errors import InputError

__all__ = ["Expectation", "expectations"]

_FILE: Final = "expected.toml"


@frozen(kw_only=True)
class Expectation:
    """Hold one row of expected.toml.

    `linux` says, by driver, what a driver does according to Linux's source, its documentation or its recorded answers.
    `model` says what is seen of one that they do not speak of, so that it cannot change unnoticed. `deviation` names
    the drivers of which something else is seen than expected, and the reason; `seen` is what that is. `note` explains
    what is as expected.
    """

    linux: Mapping[str, str] = field(factory=dict)
    model: Mapping[str, str] = field(factory=dict)
    seen: Mapping[str, str] = field(factory=dict)
    deviation: Mapping[str, str] = field(factory=dict)
    note: Mapping[str, str] = field(factory=dict)

    def of(self, driver: str) -> str | None:
        """Return what is expected of a driver, None if nothing is."""
        return self.linux.get(driver, self.model.get(driver))


@frozen(kw_only=True)
class _Row:
    linux: dict[str, str] = Factory(dict)
    model: dict[str, str] = Factory(dict)
    seen: dict[str, str] = Factory(dict)
    deviation: dict[str, str] = Factory(dict)
    note: dict[str, str] = Factory(dict)


@functools.cache
def expectations() -> Mapping[str, Expectation]:
    """Return the rows by id. InputError if one names a deviation without what is seen, or the reverse."""
    text = resources.files("gpusvm.conformance.probes").joinpath(_FILE).read_text("utf-8")
    found = {}
    for id_, table in tomllib.loads(text).items():
        row = structure(table, _Row, source=f"{_FILE}: {id_}")
        unpaired = row.seen.keys() ^ row.deviation.keys()
        if unpaired:
            raise InputError(f"{_FILE}: {id_}: {min(unpaired)}: a deviation needs both what is seen and its reason")
        both = row.linux.keys() & row.model.keys()
        if both:
            raise InputError(f"{_FILE}: {id_}: {min(both)}: is in both linux and model")
        strange = row.note.keys() - row.linux.keys() - row.model.keys()
        if strange:
            raise InputError(f"{_FILE}: {id_}: {min(strange)}: a note on what nothing is expected of")
        found[id_] = Expectation(
            linux=row.linux, model=row.model, seen=row.seen, deviation=row.deviation, note=row.note
        )
    return found
