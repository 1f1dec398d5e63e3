"""Say what a broken driver is: one that ships, with one rule of the contract broken."""

from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from gpusvm.conformance.mutants.mutant import Swap, replaced

__all__ = ["BrokenDriver"]


@frozen(kw_only=True)
class BrokenDriver:
    """Be a driver that ships, with one rule broken: `rule` says which, in words that begin with ``it``.

    `driver` is the spec of the one that shows it. What is replaced may be what drivers share: there the mistake is
    written once, and would be the driver's as well.
    """

    id: str
    rule: str
    driver: str
    swaps: tuple[Swap, ...]

    @contextmanager
    def active(self) -> Iterator["BrokenDriver"]:
        """Break the rule in every machine that boots or runs inside the context."""
        with replaced(self.swaps, by=self.id, of=self.driver):
            yield self
