"""Make random sequences, have a real kernel and the model do them, and keep what differs, made short."""

import json
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Protocol

import attrs
from attrs import Factory, define, frozen

from gpusvm.errors import InputError, nearest
from gpusvm.plugins import Registry, load_drivers
from gpusvm.realkernel.answers import LEVELS, Level
from gpusvm.realkernel.build import find_built
from gpusvm.realkernel.findings import Finding
from gpusvm.realkernel.guest import Guest, Variant
from gpusvm.realkernel.recordings import Pairs, write_recording
from gpusvm.realkernel.result import check_directory
from gpusvm.realkernel.session import Session
from gpusvm.realkernel.targets import ask_as

__all__ = ["Diff", "DiffListener", "DiffProgress", "Finding", "diff"]


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
    explained: Counter[str] = Factory(Counter)
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
            "explained": dict(self.explained),
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
    began = time.monotonic()
    with Guest(find_built(kernel, shop=shop), Variant.of(asked)) as guest:
        found = Diff(level=level, header={**asked.header(), "seed": seed, **guest.header()})
        session = Session(guest, asked, level)
        for number in range(sequences):
            chance = Random(f"{asked.profile.name} {seed} {number}")  # noqa: S311  # no secret
            pairs, result, finding = session.compare(number, asked.profile.sequence(chance))
            if pairs is not None:
                found.sequences.append(pairs)
            found.compared.update(result.compared)
            found.explained.update(result.explained)
            if finding is not None:
                found.findings.append(finding)
            if progress is not None:
                done = number + 1
                eta_s = (time.monotonic() - began) * (sequences - done) / done
                progress(DiffProgress(done=done, total=sequences, findings=len(found.findings), eta_s=eta_s))
    found.seconds = time.monotonic() - began
    if out is not None:
        found.save(out)
    return found
