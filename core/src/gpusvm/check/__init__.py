"""Invariants as functions of a machine's state, each with the number that the reference of the mm gives it."""

from gpusvm.check.quiescent import QUIESCENT, Violation, check_quiescent, violations

__all__ = ["QUIESCENT", "Violation", "check_quiescent", "violations"]
