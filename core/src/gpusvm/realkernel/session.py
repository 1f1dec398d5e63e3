"""Ask a kernel and the model the same, ask again what does not end alike, and make it short."""

import re
from collections.abc import Sequence
from typing import Final

from attrs import Factory, define

from gpusvm.realkernel.answers import HANG, Level
from gpusvm.realkernel.delta import shortened
from gpusvm.realkernel.findings import Finding
from gpusvm.realkernel.guest import Guest, GuestDiedError
from gpusvm.realkernel.recordings import Pairs
from gpusvm.realkernel.sequence import SequenceResult, check_sequence
from gpusvm.realkernel.targets import Asked

__all__ = ["Session"]

_GENERATED: Final = "(generated)"
_TRIES_MAX: Final = 400
# Each takes another boot, and a hang the time after which it is one.
_CRASH_TRIES_MAX: Final = 40
_HANG_TRIES_MAX: Final = 12
_DIED_IN: Final = re.compile(r"RIP: [0-9a-f]+:(\S+?)\+")


@define
class Session:
    """Compare sequence after sequence on one guest, which is booted again whenever it dies.

    `died` maps the place where the kernel died to the first sequence of which it did.
    """

    guest: Guest
    asked: Asked
    level: Level
    died: dict[str, int] = Factory(dict)

    def compare(self, number: int, operations: Sequence[str]) -> tuple[Pairs | None, SequenceResult, Finding | None]:
        """Ask one sequence: the kernel's answers, None if it died; what was compared; what does not end alike."""
        answers = self._ask(operations)
        if answers is None:
            return None, SequenceResult(), self._crash(number, operations)
        pairs = tuple(zip(operations, answers, strict=False))
        result = self._checked(number, pairs)
        if result.difference is None and _is_whole(operations, answers):
            return pairs, result, None
        serial = self.guest.said if answers[-1:] == [HANG] else ""
        if self._ask(operations) != answers:
            return pairs, result, Finding(kind="unsteady", sequence=number, pairs=pairs, serial=serial)
        if answers[-1:] == [HANG]:
            return pairs, result, self._hang(number, pairs, serial)
        return pairs, result, self._difference(number, pairs)

    def _ask(self, operations: Sequence[str]) -> list[str] | None:
        """Ask the kernel; None if it died, and is up again."""
        try:
            return self.guest.sequence(operations)
        except GuestDiedError:
            self.guest.restart()
            return None

    def _checked(self, number: int, pairs: Pairs) -> SequenceResult:
        return check_sequence(
            _GENERATED,
            number,
            pairs,
            spec=self.asked.spec,
            target=self.asked.target,
            level=self.level,
            devices=self.asked.devices,
        )

    def _difference(self, number: int, pairs: Pairs) -> Finding:
        def differs(operations: Sequence[str]) -> bool:
            answers = self._ask(operations)
            if answers is None:
                return False
            return self._checked(number, tuple(zip(operations, answers, strict=False))).difference is not None

        first = self._checked(number, pairs).difference
        end = len(pairs) if first is None else min(first.index + 1, len(pairs))
        operations = shortened([operation for operation, _ in pairs[:end]], differs, tries_max=_TRIES_MAX)
        short = tuple(zip(operations, self._ask(operations) or [], strict=False))
        last = self._checked(number, short).difference
        return Finding(
            kind="difference",
            sequence=number,
            pairs=short,
            got="" if last is None else last.got,
            level=None if last is None else last.level,
        )

    def _hang(self, number: int, pairs: Pairs, serial: str) -> Finding:
        def hangs(operations: Sequence[str]) -> bool:
            answers = self._ask(operations) or []
            return answers[-1:] == [HANG] and len(answers) == len(operations)

        operations = shortened([operation for operation, _ in pairs], hangs, tries_max=_HANG_TRIES_MAX)
        short = tuple(zip(operations, self._ask(operations) or [], strict=False))
        last = self._checked(number, short).difference
        return Finding(
            kind="hang", sequence=number, pairs=short, got="" if last is None else last.got, level="L0", serial=serial
        )

    def _crash(self, number: int, operations: Sequence[str]) -> Finding:
        serial = self.guest.said
        pairs = tuple((operation, "") for operation in operations)
        place = _DIED_IN.search(serial)
        if place is not None and place[1] in self.died:
            return Finding(kind="crash", sequence=number, pairs=pairs, serial=serial, same_as=self.died[place[1]])
        if self._ask(operations) is not None:
            return Finding(kind="unsteady", sequence=number, pairs=pairs, serial=serial)
        short = shortened(operations, lambda some: self._ask(some) is None, tries_max=_CRASH_TRIES_MAX)
        if place is not None:
            self.died[place[1]] = number
        return Finding(
            kind="crash", sequence=number, pairs=tuple((operation, "") for operation in short), serial=serial
        )


def _is_whole(operations: Sequence[str], answers: Sequence[str]) -> bool:
    return len(answers) == len(operations) or list(answers[-1:]) == [HANG]
