"""Keep what is built in one folder, and remember what each step was made from."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from gpusvm.errors import InputError

__all__ = ["Shop", "default_shop", "sha256_of"]

_STAMPS: Final = "stamps"


def default_shop() -> Path:
    """Return ``$XDG_CACHE_HOME/gpusvm/realkernel``, in ``~/.cache`` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpusvm" / "realkernel"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@frozen
class Shop:
    """Be the folder that everything is built in; `log` is where the tools' output goes."""

    root: Path

    @property
    def packages(self) -> Path:
        return self.root / "packages"

    @property
    def log(self) -> Path:
        return self.root / "build.log"

    def kernel(self, release: str) -> Path:
        """Return the folder of one kernel: ``source``, ``objects``, ``modules``, ``out``."""
        return self.root / release

    def make_ready(self) -> None:
        """Make the folder. InputError if that cannot be."""
        try:
            self.packages.mkdir(parents=True, exist_ok=True)
            (self.root / _STAMPS).mkdir(exist_ok=True)
        except OSError as exc:
            raise InputError(
                f"{self.root}: cannot be made: {exc.strerror or exc}; name another one with --cache"
            ) from None

    def is_done(self, step: str, made_from: Iterable[str], results: Iterable[Path]) -> bool:
        """Tell whether a step was done with the same inputs, and all that came of it is still there."""
        stamp = self._stamp(step)
        if not stamp.is_file() or not all(path.exists() for path in results):
            return False
        noted: Any = json.loads(stamp.read_text("utf-8"))
        return bool(noted == list(made_from))

    def note(self, step: str, made_from: Iterable[str]) -> None:
        """Note what a step that is done was made from."""
        stamp = self._stamp(step)
        pending = stamp.with_suffix(".pending")
        pending.write_text(json.dumps(list(made_from)), "utf-8")
        pending.replace(stamp)

    def _stamp(self, step: str) -> Path:
        return self.root / _STAMPS / f"{step.replace('/', '-').replace(' ', '-')}.json"
