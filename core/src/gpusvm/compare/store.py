"""Keep a comparison in a directory: ``run.json``, one file for each finished run, and what is made of them.

Every file is written beside its place and renamed into it, so whoever reads the directory, at any time, finds whole
files.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from attrs import define, field

from gpusvm.errors import InputError
from gpusvm.run.spec import RunResult

__all__ = ["RunDirectory"]

_RUN = "run.json"
_RUNS = "runs"


@define
class RunDirectory:
    """Hold the directory of one comparison; nothing is created before `begin`."""

    path: Path
    _created: Path | None = field(default=None, init=False)

    def check(self, *, resume: bool) -> None:
        """Raise InputError unless the directory can take a comparison: new, empty or, with `resume`, one begun."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: expected a directory, got a file; name another one")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not (self.path / _RUN).exists():
            raise InputError(f"{self.path}: the directory is not empty and holds no comparison; name another one")
        if not resume:
            raise InputError(
                f"{self.path}: the directory holds a comparison already; complete it with --resume, or name another one"
            )

    def begin(self, document: Mapping[str, Any]) -> None:
        """Create the directory and write ``run.json``; raises InputError if that cannot be done.

        A comparison that is in the directory already has to be part of `document`: its summary would be replaced by one
        that says less.
        """
        self._check_contains(document)
        top = self.path
        while not top.parent.exists():
            top = top.parent
        existed = top.exists()
        try:
            (self.path / _RUNS).mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(f"{self.path}: cannot be written: {exc.strerror or exc}") from None
        self._created = None if existed else top
        try:
            self.write(_RUN, _dump(document))
        except InputError:
            self.discard()
            raise

    def _check_contains(self, document: Mapping[str, Any]) -> None:
        path = self.path / _RUN
        if not path.exists():
            return
        try:
            specs = [run["spec"] for run in json.loads(path.read_text("utf-8"))["runs"]]
            lost = [spec for spec in specs if spec not in [run["spec"] for run in document["runs"]]]
        except (ValueError, KeyError, TypeError) as exc:
            raise InputError(
                f"{path}: expected the run.json of a comparison: {exc!r}; name another directory"
            ) from None
        if lost:
            first = f"{lost[0]['driver']} on {lost[0]['workload']}"
            raise InputError(
                f"{self.path}: the directory holds a comparison with {first}, which "
                "this one does not have, or with other options; repeat all of its arguments, or name another directory"
            )

    def discard(self) -> None:
        """Remove what `begin` created, if no run has finished in it."""
        if self._created is not None and not any((self.path / _RUNS).glob("*.json")):
            shutil.rmtree(self._created)
            self._created = None

    def finished(self, key: str) -> RunResult | None:
        """Return the result of the run `key`, None if it has not finished here."""
        try:
            document = json.loads((self.path / _RUNS / f"{key}.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise InputError(
                f"{self.path / _RUNS / key}.json: expected JSON: {exc}; delete the file to run it again"
            ) from None
        return cast("RunResult", document["result"])

    def finish(self, key: str, document: Mapping[str, Any]) -> None:
        """Keep the result of the run `key`, with what identifies it."""
        self.write(f"{_RUNS}/{key}.json", _dump(document))

    def events(self, key: str) -> Path:
        """Name the file that the events of the run `key` go to."""
        return self.path / _RUNS / f"{key}.events.jsonl"

    def write(self, name: str, text: str) -> Path:
        """Write one file of the directory, whole or not at all; raises InputError if that cannot be done."""
        path = self.path / name
        pending = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pending.write_text(text, encoding="utf-8")
            pending.replace(path)
        except OSError as exc:
            raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from None
        finally:
            pending.unlink(missing_ok=True)
        return path


def _dump(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
