"""Write races down as text, and read them: operations, one of which is ``race LEFT | RIGHT``."""

from collections.abc import Sequence
from pathlib import Path

from gpusvm.driver.operations import OperationRace
from gpusvm.errors import InputError
from gpusvm.realkernel.running import read_operations

__all__ = ["race_text", "read_races"]

_RACE = "race "


def race_text(race: OperationRace, notes: Sequence[str] = ()) -> str:
    """Write a race down, an operation a line, below `notes` as comments."""
    lines = [f"# {note}" for note in (race.about, *notes) if note]
    return "\n".join([*lines, *race.before, f"{_RACE}{race.left} | {race.right}", *race.after]) + "\n"


def read_races(path: Path, profile: str | None) -> list[OperationRace]:
    """Read the races of a text, an empty line between them, for the devices of a profile.

    They are called as the file is, numbered from 0 on if there are several. InputError names the file and the race.
    """
    texts = read_operations(path)
    found = []
    for number, operations in enumerate(texts):
        where = f"{path}: race {number}"
        at = [i for i, operation in enumerate(operations) if operation.startswith(_RACE)]
        if len(at) != 1:
            raise InputError(f"{where}: expected one line 'race LEFT | RIGHT', got {len(at)}")
        sides = [side.strip() for side in operations[at[0]].removeprefix(_RACE).split("|")]
        if len(sides) != 2 or not all(sides):
            raise InputError(f"{where}: expected 'race LEFT | RIGHT', got {operations[at[0]]!r}")
        found.append(
            OperationRace(
                name=path.stem if len(texts) == 1 else f"{path.stem}-{number}",
                about="",
                before=tuple(operations[: at[0]]),
                left=sides[0],
                right=sides[1],
                after=tuple(operations[at[0] + 1 :]),
                profile=profile,
            )
        )
    return found
