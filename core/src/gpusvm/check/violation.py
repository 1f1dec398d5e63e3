"""Say what is broken where, so that a program can ask and a person can read it."""

from attrs import frozen

from gpusvm.check.invariants import INVARIANTS
from gpusvm.errors import ModelError

__all__ = ["InvariantError", "Violation"]

_SHOWN = 4


@frozen(kw_only=True)
class Violation:
    """Name a broken invariant, what was found instead, and the places: addresses by mm, pfns, tasks.

    `known` names the quirk of Linux, as written, that breaks the rule by design; None is a finding.
    """

    invariant: int
    what: str
    addresses: tuple[tuple[str, int], ...] = ()
    pfns: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    known: str | None = None

    def __str__(self) -> str:
        """Say it in one line."""
        places = [f"{name}:{address:#x}" for name, address in self.addresses[:_SHOWN]]
        places += [f"pfn {pfn:#x}" for pfn in self.pfns[:_SHOWN]]
        places += [f"task {task!r}" for task in self.tasks[:_SHOWN]]
        where = f" [{', '.join(places)}]" if places else ""
        quirk = f" (known: quirk {self.known})" if self.known else ""
        return f"invariant {self.invariant} ({INVARIANTS[self.invariant].name}): {self.what}{where}{quirk}"


class InvariantError(ModelError):
    """Report broken invariants, one a line, and what is `said` of the driver that broke them."""

    def __init__(self, violations: "tuple[Violation, ...]", said: str = "") -> None:
        super().__init__("\n".join(map(str, violations)) + said)
        self.violations = violations
