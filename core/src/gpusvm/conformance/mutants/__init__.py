"""Bugs that Linux had, each re-introduced by a switch: what exploration has to find.

Production code is clean: what mends a bug is a small function or method there, with the reason in its comment, and a
mutant replaces it by the buggy form while it is active::

    with load("GS-01").active():
        ...  # machines that boot or run here leak what get_pages mapped before an error
"""

from collections.abc import Mapping
from typing import Final

from gpusvm.conformance.mutants.broken import BROKEN, BrokenDriver
from gpusvm.conformance.mutants.drivers import DRIVERS
from gpusvm.conformance.mutants.gpusvm import GPUSVM
from gpusvm.conformance.mutants.mm import MM
from gpusvm.conformance.mutants.mutant import Mutant, Swap
from gpusvm.conformance.mutants.ops import OPS_BROKEN
from gpusvm.conformance.mutants.pagemap import PAGEMAP
from gpusvm.errors import InputError, nearest

__all__ = ["BROKEN", "MUTANTS", "OPS_BROKEN", "BrokenDriver", "Mutant", "Swap", "load", "load_any"]

MUTANTS: Final[Mapping[str, Mutant]] = {mutant.id: mutant for mutant in (*GPUSVM, *PAGEMAP, *DRIVERS, *MM)}
"""By id: those of drm_gpusvm, of drm_pagemap, of the drivers and of the mm."""


def load(mutant_id: str) -> Mutant:
    """Return the mutant of an id, in whatever case. InputError with the nearest id if there is none."""
    by_name = {name.upper(): mutant for name, mutant in MUTANTS.items()}
    mutant = by_name.get(mutant_id.upper())
    if mutant is None:
        raise InputError(f"unknown mutant {mutant_id!r}, {nearest(mutant_id.upper(), MUTANTS)}")
    return mutant


def load_any(name: str) -> Mutant | BrokenDriver:
    """Return the mutant, or the driver with a rule broken, of an id. InputError with the nearest if there is none."""
    for known in (BROKEN, OPS_BROKEN):
        if name.lower() in known:
            return known[name.lower()]
    ids = {each.upper(): each for each in (*MUTANTS, *BROKEN)}
    if name.upper() not in ids:
        raise InputError(f"unknown mutant {name!r}, {nearest(name, [*MUTANTS, *BROKEN])}")
    return load(name)
