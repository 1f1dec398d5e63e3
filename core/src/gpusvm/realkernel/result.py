"""Hold what a check of recordings found, and the files it becomes."""

import json
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from gpusvm.errors import InputError
from gpusvm.realkernel.answers import Level
from gpusvm.realkernel.sequence import Difference

__all__ = ["Check", "KindCount", "check_directory"]


@frozen(kw_only=True)
class KindCount:
    """Count the operations of one kind: those compared, those that differ, those that differ on purpose."""

    operations: int
    differing: int = 0
    explained: int = 0


@frozen(kw_only=True, repr=False)
class Check:
    """Hold a finished check.

    `operations` were compared, in `sequences`; a sequence ends at its first difference. `kinds` are the totals by kind
    of operation; `reasons` count deviations on purpose. `document` is what is needed to repeat the check.
    """

    level: Level
    sequences: int
    operations: int
    kinds: dict[str, KindCount]
    reasons: dict[str, int]
    differences: tuple[Difference, ...]
    document: dict[str, Any]

    @property
    def ok(self) -> bool:
        """True if every answer is as recorded, or differs on purpose."""
        return not self.differences

    @property
    def explained(self) -> int:
        """Count the answers that differ on purpose."""
        return sum(self.reasons.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``check.json``, schema 1 (docs/reference/realkernel-check-json.md)."""
        return {
            "schema": 1,
            "level": self.level,
            "sequences": self.sequences,
            "operations": self.operations,
            "differing_sequences": len(self.differences),
            "explained": self.explained,
            "kinds": {name: attrs.asdict(count) for name, count in self.kinds.items()},
            "differences": [_listed(each) for each in self.differences],
        }

    def to_json(self) -> str:
        """Return ``check.json`` as text."""
        return _dump(self.to_dict())

    def save(self, directory: str | Path) -> Path:
        """Write ``run.json`` and ``check.json`` into a new or empty directory; return its path. InputError."""
        path = Path(directory)
        check_directory(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "run.json").write_text(_dump(self.document), encoding="utf-8")
            (path / "check.json").write_text(self.to_json(), encoding="utf-8")
        except OSError as exc:
            raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from None
        return path

    def __repr__(self) -> str:
        return (
            f"<Check of {self.sequences} sequences at {self.level}: "
            f"{self.operations} operations, {len(self.differences)} sequences differ>"
        )


def check_directory(path: Path) -> None:
    """Raise InputError unless a directory is new or empty."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: expected a new or empty directory; name another one")


def _listed(difference: Difference) -> dict[str, Any]:
    return {**attrs.asdict(difference), "before": [list(pair) for pair in difference.before]}


def _dump(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
