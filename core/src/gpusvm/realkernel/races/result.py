"""Hold what came of races in a kernel and in the model, and the files it becomes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final, Literal

from attrs import Factory, define

from gpusvm.driver.operations import OperationRace
from gpusvm.realkernel.races.allowed import Allowed
from gpusvm.realkernel.races.files import race_text
from gpusvm.realkernel.races.outcome import Outcome

__all__ = ["RaceResult", "Races", "Verdict"]

Verdict = Literal["allowed", "refuted", "open"]
"""What is to be said of a race: the model allows every outcome of the kernel; it does not allow one of them; it was not
asked for all orders within the bound, and one of them was not met so far."""

_NAME: Final = "race.json"


@define(kw_only=True)
class RaceResult:
    """Hold what came of one race: how often the kernel had each outcome, and which the model allows.

    `delays` has the first delay (`line_of`) with which the kernel had an outcome; `serial` the end of what a kernel
    said that died or hung.
    """

    race: OperationRace
    kernel: Counter[Outcome] = Factory(Counter)
    delays: dict[Outcome, int] = Factory(dict)
    serial: dict[Outcome, str] = Factory(dict)
    allowed: Allowed = Factory(Allowed)

    @property
    def tries(self) -> int:
        """How often the kernel did it."""
        return self.kernel.total()

    @property
    def unknown(self) -> list[Outcome]:
        """Outcomes of the kernel that the model does not allow."""
        return sorted({*self.kernel} - self.allowed.outcomes)

    @property
    def unseen(self) -> list[Outcome]:
        """Outcomes that the model allows and the kernel never had."""
        return sorted(self.allowed.outcomes - {*self.kernel})

    @property
    def verdict(self) -> Verdict:
        """Say what is to be said of it."""
        if not self.unknown:
            return "allowed"
        return "refuted" if self.allowed.exhausted else "open"

    def to_dict(self) -> dict[str, Any]:
        """Return what ``race.json`` says of it."""
        both = sorted(self.kernel, key=lambda each: (-self.kernel[each], each)) + self.unseen
        return {
            "name": self.race.name,
            "about": self.race.about,
            "profile": self.race.profile,
            "before": list(self.race.before),
            "left": self.race.left,
            "right": self.race.right,
            "after": list(self.race.after),
            "tries": self.tries,
            "schedules": self.allowed.schedules,
            "exhausted": self.allowed.exhausted,
            "bounded": self.allowed.bounded,
            "verdict": self.verdict,
            "outcomes": [
                {
                    "answers": list(each),
                    "kernel": self.kernel[each],
                    "model": each in self.allowed.outcomes,
                    "delay": self.delays.get(each),
                    "says": self.allowed.broken.get(each),
                }
                for each in both
            ],
        }


@define(kw_only=True)
class Races:
    """Hold what came of the races of a driver. `header` says what was asked, and what answered."""

    header: dict[str, Any]
    results: list[RaceResult] = Factory(list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if the kernel did nothing but what the model allows."""
        return all(each.verdict == "allowed" for each in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``race.json`` (schema ``race-1.json``)."""
        return {"schema": 1, **self.header, "races": [each.to_dict() for each in self.results]}

    def to_json(self) -> str:
        """Return ``race.json`` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``race.json``, and a text of each race with an outcome that the model does not allow, to repeat it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _NAME).write_text(self.to_json(), "utf-8")
        for each in self.results:
            notes = []
            for outcome in each.unknown:
                notes.append(f"{each.kernel[outcome]} of {each.tries} tries, delay {each.delays.get(outcome)}:")
                notes += [f"    {answer}" for answer in outcome]
            if notes:
                head = [
                    f"Not among the {len(each.allowed.outcomes)} outcomes of {each.allowed.schedules} orders:",
                    *notes,
                ]
                (folder / f"{each.race.name}.txt").write_text(race_text(each.race, head), "utf-8")
                for number, outcome in enumerate(each.unknown):
                    if each.serial.get(outcome):
                        at = folder / f"{each.race.name}-{number}.serial.txt"
                        at.write_text(each.serial[outcome] + "\n", "utf-8")
