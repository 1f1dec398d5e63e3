"""Read what a kernel did in races out of a ``race.json``."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from attrs import frozen

from gpusvm.documents import structure
from gpusvm.driver.operations import OperationRace
from gpusvm.errors import InputError
from gpusvm.realkernel.races.result import RaceResult, Races

__all__ = ["read_recorded"]


@frozen(kw_only=True)
class _Outcome:
    answers: tuple[str, ...]
    kernel: int
    delay: int | None


@frozen(kw_only=True)
class _Race:
    name: str
    about: str
    profile: str
    before: tuple[str, ...]
    left: str
    right: str
    after: tuple[str, ...]
    outcomes: tuple[_Outcome, ...]

    def result(self) -> RaceResult:
        seen = [each for each in self.outcomes if each.kernel]
        return RaceResult(
            race=OperationRace(
                name=self.name,
                about=self.about,
                before=self.before,
                left=self.left,
                right=self.right,
                after=self.after,
                profile=self.profile,
            ),
            kernel=Counter({each.answers: each.kernel for each in seen}),
            delays={each.answers: each.delay for each in seen if each.delay is not None},
        )


@frozen(kw_only=True)
class _Document:
    schema: int
    target: str
    spec: str
    races: tuple[_Race, ...]


def read_recorded(path: Path) -> Races:
    """Read the races of a ``race.json`` with the kernel's outcomes; the model's are left out.

    The header is as in the file. InputError names the file and the place.
    """
    document = _document(path)
    read = structure(document, _Document, source=str(path), unknown_keys=True)
    if read.schema != 1:
        raise InputError(f"{path}: expected races of schema 1, got {read.schema}")
    header = {key: value for key, value in document.items() if key not in {"schema", "races"}}
    return Races(header=header, results=[each.result() for each in read.races])


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise InputError(f"{path}: expected a race.json: {exc.strerror or exc}") from None
    except ValueError as exc:
        raise InputError(f"{path}: expected a race.json: {exc}") from None
