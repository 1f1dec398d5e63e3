"""Have a real kernel do the operations of a file."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import define

from gpusvm.driver.operations import PROCESS_OPERATIONS
from gpusvm.errors import InputError
from gpusvm.plugins import Registry, load_drivers
from gpusvm.realkernel.build import find_built
from gpusvm.realkernel.guest import Guest, GuestDiedError, Variant
from gpusvm.realkernel.operations import read_operation
from gpusvm.realkernel.recordings import Pairs, read_recording, write_recording
from gpusvm.realkernel.targets import ask_as

__all__ = ["CRASHED", "Run", "read_operations", "run"]

CRASHED: Final = "CRASHED"
"""What stands for the answer of a sequence of which the kernel died."""

_GZIP: Final = b"\x1f\x8b"


@define(kw_only=True)
class Run:
    """Hold what a kernel answered: pairs of operation and answer for each sequence, and what it said when it died."""

    header: dict[str, Any]
    sequences: list[Pairs]
    serial: dict[int, str]

    @property
    def ok(self) -> bool:
        """True if the kernel survived every sequence."""
        return not self.serial


def read_operations(path: Path) -> list[list[str]]:
    """Read sequences of operations: a recording, or text with an operation a line, an empty line between sequences and
    comments behind ``#``. InputError names the file, and the line.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: expected operations: {exc.strerror or exc}") from None
    if data.startswith(_GZIP):
        try:
            gzip.decompress(data)
        except (OSError, EOFError) as exc:
            raise InputError(f"{path}: expected a recording or text: {exc}") from None
        return [[operation for operation, _ in pairs] for pairs in read_recording(path).sequences]
    sequences: list[list[str]] = [[]]
    for line in data.decode(errors="replace").splitlines():
        operation, hash_, _ = line.partition("#")
        if operation.strip():
            sequences[-1].append(" ".join(operation.split()))
        elif not hash_ and sequences[-1]:
            sequences.append([])
    found = [each for each in sequences if each]
    if not found:
        raise InputError(f"{path}: expected operations, one a line, found none")
    return found


def run(
    file: str | Path,
    driver: str,
    *,
    profile: str | None = None,
    kernel: str = "7.3",
    shop: Path | None = None,
    out: Path | None = None,
    registry: Registry | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Do the sequences of `file` on a real kernel with the devices of a profile of `driver`, by default its first.

    `out` is a recording to write. What the operations are is checked before the kernel is booted. A sequence of which
    the kernel dies ends with `CRASHED`, and the next goes on after another boot.
    """
    asked = ask_as(driver, profile, registry or load_drivers())
    sequences = read_operations(Path(file))
    forms = {**PROCESS_OPERATIONS, **asked.target.operations}
    for number, operations in enumerate(sequences):
        for index, operation in enumerate(operations):
            try:
                read_operation(operation, forms, devices=asked.devices)
            except InputError as exc:
                raise InputError(f"{file}: sequence {number}, operation {index}: {exc}") from None
    if out is not None and out.exists():
        raise InputError(f"--out: {out} is there already; name another file")
    built = find_built(kernel, shop=shop)
    with Guest(built, Variant.of(asked)) as guest:
        found = Run(header={**asked.header(), **guest.header()}, sequences=[], serial={})
        for number, operations in enumerate(sequences):
            found.sequences.append(_answered(guest, number, operations, found))
            if progress is not None:
                progress(number + 1, len(sequences))
    if out is not None:
        write_recording(out, found.sequences, header=found.header)
    return found


def _answered(guest: Guest, number: int, operations: Sequence[str], found: Run) -> Pairs:
    try:
        answers = guest.sequence(operations)
    except GuestDiedError as died:
        found.serial[number] = died.serial
        guest.restart()
        return tuple((operation, CRASHED) for operation in operations)
    return tuple(zip(operations, answers, strict=False))
