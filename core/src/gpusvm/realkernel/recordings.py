"""Read files of recorded answers: gzipped JSON, a list of sequences, each a list of [operation, answer] pairs."""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import Factory, frozen

from gpusvm.driver.operations import PROCESS_OPERATIONS, OperationTarget
from gpusvm.errors import InputError
from gpusvm.realkernel.answers import HANG, read_answer
from gpusvm.realkernel.operations import read_operation

__all__ = ["Pairs", "Recording", "load_recording", "read_recording", "target_of_name", "write_recording"]

_SCHEMA: Final = 1

Pairs = tuple[tuple[str, str], ...]
"""The pairs of operation and answer of one sequence, as text."""


@frozen(kw_only=True)
class Recording:
    """Hold one file: its path as given, its sequences, and what it says of how they came about, if it says anything."""

    file: str
    sequences: tuple[Pairs, ...]
    header: Mapping[str, Any] = Factory(dict)

    @property
    def spec(self) -> str | None:
        """Return the spec string of the driver that answers as what was recorded; None if the file does not say."""
        spec = self.header.get("spec")
        return spec if isinstance(spec, str) else None

    @property
    def devices(self) -> int | None:
        """Return how many devices there were; None if the file does not say: as many as its target has."""
        devices = self.header.get("devices")
        return devices if isinstance(devices, int) else None


def target_of_name(path: Path, targets: Sequence[str]) -> str:
    """Return the driver that the name of a file begins with, as in ``dmirror-base.json.gz``. InputError, also if there
    is no such file: the wrong path is then what is wrong with its name.
    """
    if not path.exists():
        raise InputError(f"{path}: expected a recording: No such file or directory")
    name, dash, _ = path.name.partition("-")
    if dash and name in targets:
        return name
    raise InputError(
        f"{path}: the name does not begin with a driver that executes operations "
        f"({', '.join(targets) or 'none is installed'}) and a dash; name the driver with --target"
    )


def read_recording(path: Path) -> Recording:
    """Read a file, without asking what its operations mean. InputError names the file and the place."""
    document = _document(path)
    header: dict[str, Any] = {}
    if isinstance(document, dict):
        header = {key: value for key, value in document.items() if key != "sequences"}
        if header.get("schema") != _SCHEMA:
            raise InputError(f"{path}: expected a recording of schema {_SCHEMA}, got {_kind(header.get('schema'))}")
        document = document.get("sequences")
    if not isinstance(document, list):
        raise InputError(f"{path}: expected a list of sequences, got {_kind(document)}")
    if not document:
        raise InputError(f"{path}: expected sequences, got an empty list")
    sequences = tuple(_pairs(each, f"{path}: sequence {number}") for number, each in enumerate(document))
    return Recording(file=str(path), sequences=sequences, header=header)


def load_recording(path: Path, target: OperationTarget) -> Recording:
    """Read and check a file for `target`. InputError names the file, the sequence and the operation."""
    recording = read_recording(path)
    forms = {**PROCESS_OPERATIONS, **target.operations}
    for number, pairs in enumerate(recording.sequences):
        _check_pairs(pairs, f"{path}: sequence {number}", forms, target, recording.devices)
    return recording


def write_recording(
    path: str | Path, sequences: Iterable[Iterable[tuple[str, str]]], *, header: Mapping[str, Any] | None = None
) -> Path:
    """Write sequences of (operation, answer) pairs as a recording; return its path. The same input, the same bytes.

    `header` is what stands before them: which driver was asked, and what answered. Without one it is a bare list.
    """
    target = Path(path)
    listed = [[list(pair) for pair in pairs] for pairs in sequences]
    text = json.dumps(listed if header is None else {**header, "sequences": listed}, separators=(",", ":"))
    target.write_bytes(gzip.compress(text.encode(), mtime=0))
    return target


def _document(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: expected a recording: {exc.strerror or exc}") from None
    try:
        text = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise InputError(f"{path}: expected JSON in gzip: {exc}") from None
    try:
        return json.loads(text)
    except (UnicodeDecodeError, ValueError) as exc:
        raise InputError(f"{path}: expected JSON in gzip: {exc}") from None


def _pairs(found: Any, where: str) -> Pairs:
    if not isinstance(found, list):
        raise InputError(f"{where}: expected a list of [operation, answer] pairs, got {_kind(found)}")
    pairs = []
    for number, pair in enumerate(found):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
            raise InputError(
                f"{where}, operation {number}: expected an [operation, answer] pair of two texts, got {_kind(pair)}"
            )
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def _check_pairs(
    pairs: Pairs, where: str, forms: Mapping[str, tuple[str, ...]], target: OperationTarget, devices: int | None
) -> None:
    for number, (operation, answer) in enumerate(pairs):
        try:
            read_operation(operation, forms, devices=target.devices if devices is None else devices)
            if answer != HANG:
                read_answer(answer, target.events)
            elif number != len(pairs) - 1:
                raise InputError(f"expected the sequence to end with {HANG}, got more operations behind it")
        except InputError as exc:
            raise InputError(f"{where}, operation {number}: {exc}") from None


def _kind(value: Any) -> str:
    text = " ".join(json.dumps(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
