"""Check recordings: read them, spread their sequences over processes, and gather what differs."""

import hashlib
import platform
import time
from collections import Counter
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import frozen

from gpusvm.driver.operations import OperationTarget
from gpusvm.driver.spec import DriverSpec, read_spec, split_spec
from gpusvm.errors import InputError, nearest
from gpusvm.plugins import Installed, Registry, load_drivers
from gpusvm.realkernel.answers import LEVELS, Level
from gpusvm.realkernel.recordings import Pairs, Recording, load_recording, read_recording, target_of_name
from gpusvm.realkernel.result import Check, KindCount, check_directory
from gpusvm.realkernel.sequence import SequenceResult, check_sequence
from gpusvm.realkernel.targets import target_of, with_settings
from gpusvm.run.executor import Executor, SerialExecutor

if TYPE_CHECKING:
    from gpusvm.plugins import LoadedDriver

__all__ = ["CheckProgress", "CheckProgressListener", "check"]

# So many sequences travel to another process at once: few enough for a bar that moves.
_BATCH: Final = 10


@frozen(kw_only=True)
class CheckProgress:
    """Say how many sequences are checked; `eta_s` is None until some are."""

    done: int
    total: int
    eta_s: float | None


class CheckProgressListener(Protocol):
    """Take reports, in the thread that called `check`."""

    def __call__(self, progress: CheckProgress, /) -> None: ...


@frozen(kw_only=True)
class _Job:
    """Hold some sequences of one file, the first of which has the number `first`."""

    file: str
    first: int
    sequences: tuple[Pairs, ...]
    target: str
    devices: int | None
    level: Level
    drivers: Installed | Registry


def check(
    files: str | Path | Sequence[str | Path],
    *,
    target: str | None = None,
    level: str = "L3",
    out: str | Path | None = None,
    executor: Executor | None = None,
    registry: Registry | None = None,
    without: Collection[str] = (),
    progress: CheckProgressListener | None = None,
) -> Check:
    """Have a driver answer what a real kernel was asked, and compare the answers with the recorded ones.

    `files` are recordings; `target` is a driver's spec string, by default the one that the file says, or the driver
    that its name begins with (``dmirror-base.json.gz``). What the driver's plugin says that its recordings were made
    with is set, unless the spec says otherwise; the mm's quirks are as written. `level` is ``L0`` for return, errno,
    counts and data, ``L1`` for snapshot bytes and residency too, ``L2`` for the notifier events of each operation too,
    ``L3`` for their order.

    `out`, a new or empty directory, gets ``run.json`` and ``check.json``. `executor` is by default a `SerialExecutor`:
    this process. Raises InputError, in one line with file, sequence and operation, for what is wrong, before anything
    is executed.
    """
    if level not in LEVELS:
        raise InputError(f"--level: unknown level {level!r}; {nearest(level, LEVELS)}")
    if out is not None:
        check_directory(Path(out))
    paths = [Path(each) for each in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise InputError("no recording is named; name a file such as dmirror-base.json.gz")
    loaded = load_drivers(without=without) if registry is None else registry
    drivers: Installed | Registry = Installed(tuple(without), loaded) if registry is None else registry
    jobs: list[_Job] = []
    documents = []
    for path in paths:
        chosen = _target_of(path, target, loaded)
        spec, operations = _prepared(chosen, loaded, path.name)
        recording = _loaded(path, operations, chosen, loaded)
        documents.append(_document(path, recording, spec, loaded.find(spec.name)))
        jobs += [
            _Job(
                file=recording.file,
                first=first,
                sequences=recording.sequences[first : first + _BATCH],
                target=chosen,
                devices=recording.devices,
                level=level,
                drivers=drivers,
            )
            for first in range(0, len(recording.sequences), _BATCH)
        ]
    results = _run(jobs, SerialExecutor() if executor is None else executor, progress)
    found = _gather(results, level, {"schema": 1, "level": level, "versions": _versions(), "files": documents})
    if out is not None:
        found.save(out)
    return found


def _run(
    jobs: Sequence[_Job], executor: Executor, progress: CheckProgressListener | None
) -> list[list[SequenceResult]]:
    total = sum(len(job.sequences) for job in jobs)
    started_s = time.monotonic()
    done = 0
    results: list[list[SequenceResult]] = [[] for _ in jobs]
    if progress is not None:
        progress(CheckProgress(done=0, total=total, eta_s=None))
    for index, result in executor.run(_check_job, jobs):
        results[index] = result
        done += len(result)
        if progress is not None:
            eta_s = (time.monotonic() - started_s) * (total - done) / done
            progress(CheckProgress(done=done, total=total, eta_s=eta_s))
    return results


def _check_job(job: _Job) -> list[SequenceResult]:
    registry = job.drivers.registry() if isinstance(job.drivers, Installed) else job.drivers
    spec, target = _prepared(job.target, registry, Path(job.file).name)
    return [
        check_sequence(job.file, job.first + i, pairs, spec=spec, target=target, level=job.level, devices=job.devices)
        for i, pairs in enumerate(job.sequences)
    ]


def _able(registry: Registry) -> list[str]:
    return [driver.info.name for driver in registry.drivers if driver.operations is not None]


def _target_of(path: Path, target: str | None, registry: Registry) -> str:
    if target is not None:
        return target
    said = read_recording(path).spec
    return target_of_name(path, _able(registry)) if said is None else said


def _loaded(path: Path, target: OperationTarget, spec: str, registry: Registry) -> Recording:
    """Read a recording; where the target does not know its operations and the name says whose they are, say so."""
    try:
        return load_recording(path, target)
    except InputError as error:
        named, chosen = path.name.partition("-")[0], split_spec(spec)[0]
        if named == chosen or named not in _able(registry):
            raise
        raise InputError(
            f"{error}; by the file's name its operations are {named}'s, and --target says {chosen}: leave --target "
            f"out, or name {named} with settings"
        ) from None


def _prepared(text: str, registry: Registry, file: str) -> tuple[DriverSpec, OperationTarget]:
    """Read a spec string, with the settings that its recordings, and this one by its name, need unless it names
    them.
    """
    name, options = split_spec(text)
    read_spec(text, registry)
    target = target_of(name, registry)
    settings = dict(target.settings)
    for pattern, of_such in target.settings_by_name:
        if fnmatchcase(file, pattern):
            settings.update(of_such)
    return with_settings(name, options, settings, registry), target


def _gather(jobs: Sequence[Sequence[SequenceResult]], level: Level, document: dict[str, Any]) -> Check:
    results = [result for job in jobs for result in job]
    compared: Counter[str] = Counter()
    explained: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    differences = []
    for result in results:
        compared.update(result.compared)
        explained.update(result.explained_kinds)
        reasons.update(result.explained)
        if result.difference is not None:
            differences.append(result.difference)
    differing = Counter(each.operation.split(maxsplit=1)[0] for each in differences)
    kinds = {
        name: KindCount(operations=compared[name], differing=differing[name], explained=explained[name])
        for name in sorted({*compared, *differing})
    }
    return Check(
        level=level,
        sequences=len(results),
        operations=compared.total(),
        kinds=kinds,
        reasons=dict(reasons),
        differences=tuple(differences),
        document=document,
    )


def _document(path: Path, recording: Recording, spec: DriverSpec, driver: "LoadedDriver") -> dict[str, Any]:
    return {
        "file": recording.file,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "target": spec.text,
        "driver": driver.origin,
        "sequences": len(recording.sequences),
    }


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "gpusvm-core": metadata.version("gpusvm-core"),
    }
