"""The 58 invariants of the mm and of what mirrors it, by number, and what checks them in a machine."""

from gpusvm.check.checker import Checker
from gpusvm.check.invariants import ALWAYS, EVENT, INVARIANTS, QUIESCENT, Invariant
from gpusvm.check.power import watch_power
from gpusvm.check.quiescent import check_quiescent, violations
from gpusvm.check.rules import RULES
from gpusvm.check.violation import InvariantError, Violation

__all__ = [
    "ALWAYS",
    "EVENT",
    "INVARIANTS",
    "QUIESCENT",
    "RULES",
    "Checker",
    "Invariant",
    "InvariantError",
    "Violation",
    "check_quiescent",
    "violations",
    "watch_power",
]
