"""The machinery of the conformance suite: what a check is, how it can end, and what a driver states about itself."""

from gpusvm.conformance.lab import Lab
from gpusvm.conformance.suite.check import PROFILES, SPEC_VERSION, Check, Profile, check, check_of
from gpusvm.conformance.suite.expected import Expected, Statement, read_statement
from gpusvm.conformance.suite.status import Status

__all__ = [
    "PROFILES",
    "SPEC_VERSION",
    "Check",
    "Expected",
    "Lab",
    "Profile",
    "Statement",
    "Status",
    "check",
    "check_of",
    "read_statement",
]
