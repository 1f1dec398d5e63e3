"""Drivers that break one rule of the contract each, as an author may: what the suite has to tell him.

They are no bugs that Linux had, and exploration is not asked to find them; a check that neither a mutant nor one of
these fails has yet to show that it can.
"""

from collections.abc import Mapping
from typing import Final

from gpusvm.conformance.mutants.broken.advice import ADVICE
from gpusvm.conformance.mutants.broken.devices import DEVICES
from gpusvm.conformance.mutants.broken.driver import BrokenDriver
from gpusvm.conformance.mutants.broken.ends import ENDS
from gpusvm.conformance.mutants.broken.faults import FAULTS
from gpusvm.conformance.mutants.broken.invalidation import INVALIDATION
from gpusvm.conformance.mutants.broken.kinds import KINDS
from gpusvm.conformance.mutants.broken.memory import MEMORY
from gpusvm.conformance.mutants.broken.power import POWER

__all__ = ["BROKEN", "BrokenDriver"]

BROKEN: Final[Mapping[str, BrokenDriver]] = {
    broken.id: broken for broken in (*INVALIDATION, *FAULTS, *MEMORY, *DEVICES, *POWER, *ENDS, *ADVICE, *KINDS)
}
"""By id."""
