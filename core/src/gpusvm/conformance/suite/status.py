"""Say how a check of a driver can end: a closed list, so that nothing can be counted as something else."""

from enum import StrEnum

__all__ = ["Status"]


class Status(StrEnum):
    """Be the outcome of one check of one driver.

    A `fail` is a rule that the driver does not follow; an `error` says nothing about the rule, because the check ended
    in something that no check may end in (a TypeError, a crash, no end at all). `xfail` and `xpass` are a failure that
    the driver's `conformance.toml` states, and one that it states and that is not there. `unsupported` rests on a
    capability that the driver says it lacks, and `not-run` says nothing.
    """

    PASS = "pass"  # an outcome
    FAIL = "fail"
    ERROR = "error"
    UNSUPPORTED = "unsupported"
    XFAIL = "xfail"
    XPASS = "xpass"
    NOT_RUN = "not-run"

    @property
    def is_failure(self) -> bool:
        """Tell whether a driver with such an outcome does not conform, and the command ends with exit code 1."""
        return self in _FAILURES

    @property
    def rank(self) -> int:
        """Order outcomes from bad to good: what falls from one run to the next is a regression."""
        return _RANKS[self]


_FAILURES = frozenset({Status.FAIL, Status.ERROR, Status.XPASS})
_RANKS = {
    Status.ERROR: 0,
    Status.FAIL: 0,
    Status.XPASS: 0,
    Status.NOT_RUN: 1,
    Status.UNSUPPORTED: 2,
    Status.XFAIL: 3,
    Status.PASS: 4,
}
