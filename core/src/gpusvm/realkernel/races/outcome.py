"""Say what came of a race, in words that a kernel and the model share."""

import re
from collections.abc import Sequence
from typing import Final

from attrs import evolve

from gpusvm.driver.operations import OperationRace, OperationTarget
from gpusvm.errors import GpusvmError
from gpusvm.realkernel.answers import ENDED, HANG, read_answer

__all__ = ["BLOCK_PAGES", "CRASH", "Outcome", "for_block", "line_of", "observed"]

Outcome = tuple[str, ...]
"""The answers of the left side, of the right side, and of what looked afterwards, without events. It ends with `HANG`
or `CRASH` where there are no more answers."""

CRASH: Final = "CRASH"
"""What ends the outcome of a race that the kernel does not survive."""

BLOCK_PAGES: Final = 512
"""Pages of a huge page of the kernel."""

_EIGHTHS: Final = re.compile(r"@(\d+)")


def for_block(race: OperationRace, pages: int) -> OperationRace:
    """Write a race down for huge pages of so many pages: ``@3`` is three eighths of one."""

    def counted(text: str) -> str:
        return _EIGHTHS.sub(lambda found: str(int(found[1]) * pages // 8), text)

    return evolve(
        race,
        before=tuple(map(counted, race.before)),
        left=counted(race.left),
        right=counted(race.right),
        after=tuple(map(counted, race.after)),
    )


def line_of(race: OperationRace, delay: int) -> str:
    """Return the line that has the guest do both sides at once; an odd `delay` is the left side's, an even one the
    right's.
    """
    return f"race {delay} {race.left} | {race.right}"


def observed(race: OperationRace, answers: Sequence[str], target: OperationTarget) -> Outcome:
    """Return the outcome that a guest's answers to `before`, the race and `after` say."""
    begun = list(answers[len(race.before) :])
    if not begun:
        raise GpusvmError(f"race {race.name}: the kernel answered {list(answers)}, and did not come to the race")
    left, bar, right = begun[0].partition(" | ")
    if not bar and not _is_end(left):
        raise GpusvmError(f"race {race.name}: expected the answers of two sides, got {left!r}")
    sides = (left, right) if bar else (left,)
    return tuple(_without_events(each, target) for each in (*sides, *begun[1:]))


def _is_end(answer: str) -> bool:
    return answer == HANG or answer.startswith(ENDED)


def _without_events(answer: str, target: OperationTarget) -> str:
    return answer if _is_end(answer) else str(evolve(read_answer(answer, target.events), events=()))
