"""Make random sequences, have a real kernel and the model do them, and keep what differs, made short."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, Protocol

import attrs
from attrs import Factory, define, frozen

from gpusvm.errors import InputError, nearest
from gpusvm.plugins import Registry, load_drivers
from gpusvm.realkernel.answers import LEVELS, Level
from gpusvm.realkernel.build import Built, find_built
from gpusvm.realkernel.delta import shortened
from gpusvm.realkernel.guest import Guest, GuestDiedError, Variant
from gpusvm.realkernel.recordings import Pairs, write_recording
from gpusvm.realkernel.result import check_directory
from gpusvm.realkernel.sequence import SequenceResult, check_sequence
from gpusvm.realkernel.targets import Asked, ask_as

__all__ = ["Diff", "DiffListener", "DiffProgress", "Finding", "diff"]

_TRIES_MAX: Final = 400
_GENERATED: Final = "(generated)"

Kind = Literal["difference", "crash", "unsteady"]


@frozen(kw_only=True)
class Finding:
    """Hold one sequence that does not end alike.

    `kind`: ``difference``, the answers of kernel and model differ, at `level`; ``crash``, the kernel died, `serial` is
    the end of what it said; ``unsteady``, the kernel answered otherwise when asked again. `pairs` are the operations,
    made as short as they could be, with the kernel's answers (none, for a crash); `got` is the model's last.
    """

    kind: Kind
    sequence: int
    pairs: Pairs
    got: str = ""
    level: Level | None = None
    serial: str = ""


@frozen(kw_only=True)
class DiffProgress:
    """Say how far a comparison is."""

    done: int
    total: int
    findings: int
    eta_s: float | None


class DiffListener(Protocol):
    """Hear how far it is, after each sequence."""

    def __call__(self, progress: DiffProgress, /) -> None: ...


@define(kw_only=True)
class Diff:
    """Hold what a comparison came to: the answers of the kernel, and what differs.

    `header` says what the sequences were made from and what answered them, as in the recording that `save` writes.
    """

    header: dict[str, Any]
    level: Level
    sequences: list[Pairs] = Factory(list)
    findings: list[Finding] = Factory(list)
    compared: Counter[str] = Factory(Counter)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True if every sequence was answered alike."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``diff.json`` (schema ``diff-1.json``)."""
        return {
            "schema": 1,
            **{key: value for key, value in self.header.items() if key != "schema"},
            "level": self.level,
            "sequences": len(self.sequences),
            "operations": dict(sorted(self.compared.items())),
            "findings": [
                {**attrs.asdict(each), "pairs": [list(pair) for pair in each.pairs]} for each in self.findings
            ],
        }

    def to_json(self) -> str:
        """Return ``diff.json`` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``diff.json``, the kernel's answers as a recording, and a recording for each difference."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.header['target']}-{self.header['profile']}-{self.header['seed']}"
        (folder / "diff.json").write_text(self.to_json(), "utf-8")
        write_recording(folder / f"{name}.json.gz", self.sequences, header=self.header)
        for number, finding in enumerate(self.findings):
            header = {**self.header, "finding": finding.kind, "sequence": finding.sequence}
            write_recording(folder / f"{name}-{finding.kind}-{number}.json.gz", [finding.pairs], header=header)
            if finding.serial:
                (folder / f"{name}-{finding.kind}-{number}.serial.txt").write_text(finding.serial + "\n", "utf-8")


def diff(
    driver: str,
    *,
    profile: str | None = None,
    sequences: int = 200,
    seed: int = 1,
    level: str = "L3",
    kernel: str = "7.3",
    shop: Path | None = None,
    out: Path | None = None,
    registry: Registry | None = None,
    progress: DiffListener | None = None,
) -> Diff:
    """Compare kernel and model on `sequences` random sequences of a profile of `driver`, a spec string.

    The same seed makes the same sequences. `kernel` names one that `gpusvm realkernel build` built. What differs is
    asked again in a fresh process, and shortened on both sides. `out` is a new or empty directory for what `Diff.save`
    writes. InputError for what cannot be asked.
    """
    if level not in LEVELS:
        raise InputError(f"--level: unknown level {level!r}; {nearest(level, LEVELS)}")
    if sequences < 1:
        raise InputError(f"--seqs: expected 1 or more, got {sequences}")
    if out is not None:
        check_directory(out)
    asked = ask_as(driver, profile, registry or load_drivers())
    session = _Session(asked, find_built(kernel, shop=shop), level)
    found = session.diff(sequences, seed, progress)
    if out is not None:
        found.save(out)
    return found


@define
class _Session:
    asked: Asked
    built: Built
    level: Level
    _serial: str = ""

    def diff(self, sequences: int, seed: int, progress: DiffListener | None) -> Diff:
        began = time.monotonic()
        with Guest(self.built, Variant.of(self.asked)) as guest:
            header = {**self.asked.header(), "seed": seed, **guest.header()}
            found = Diff(level=self.level, header=header)
            for number in range(sequences):
                self._one(guest, number, seed, found)
                if progress is not None:
                    done = number + 1
                    eta_s = (time.monotonic() - began) * (sequences - done) / done
                    progress(DiffProgress(done=done, total=sequences, findings=len(found.findings), eta_s=eta_s))
        found.seconds = time.monotonic() - began
        return found

    def _one(self, guest: Guest, number: int, seed: int, found: Diff) -> None:
        profile = self.asked.profile
        operations = profile.sequence(Random(f"{profile.name} {seed} {number}"))  # noqa: S311  # no secret
        answers = self._asked(guest, operations)
        if answers is None:
            found.findings.append(self._crash(guest, number, operations))
            return
        pairs = tuple(zip(operations, answers, strict=False))
        result = self._checked(number, pairs)
        found.sequences.append(pairs)
        found.compared.update(result.compared)
        if result.difference is None and len(answers) == len(operations):
            return
        again = self._asked(guest, operations)
        if again != answers:
            found.findings.append(Finding(kind="unsteady", sequence=number, pairs=pairs))
            return
        found.findings.append(self._difference(guest, number, pairs))

    def _asked(self, guest: Guest, operations: Sequence[str]) -> list[str] | None:
        """Ask the kernel; None if it died, and is up again."""
        try:
            return guest.sequence(operations)
        except GuestDiedError:
            self._serial = guest.serial
            guest.restart()
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

    def _difference(self, guest: Guest, number: int, pairs: Pairs) -> Finding:
        def differs(operations: Sequence[str]) -> bool:
            answers = self._asked(guest, operations)
            if answers is None:
                return False
            return self._checked(number, tuple(zip(operations, answers, strict=False))).difference is not None

        first = self._checked(number, pairs).difference
        end = len(pairs) if first is None else min(first.index + 1, len(pairs))
        operations = shortened([operation for operation, _ in pairs[:end]], differs, tries_max=_TRIES_MAX)
        answers = self._asked(guest, operations) or []
        short = tuple(zip(operations, answers, strict=False))
        last = self._checked(number, short).difference
        return Finding(
            kind="difference",
            sequence=number,
            pairs=short,
            got="" if last is None else last.got,
            level=None if last is None else last.level,
        )

    def _crash(self, guest: Guest, number: int, operations: Sequence[str]) -> Finding:
        serial = self._serial
        short = shortened(operations, lambda some: self._asked(guest, some) is None, tries_max=40)
        return Finding(
            kind="crash",
            sequence=number,
            pairs=tuple((operation, "") for operation in short),
            serial=self._serial or serial,
        )
