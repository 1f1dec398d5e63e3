"""Turn what the user names into the runs of a comparison, and find what is wrong with it before anything is run."""

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import attrs
from attrs import frozen

from gpusvm.errors import InputError, nearest
from gpusvm.run.spec import Quirks, RunSpec, Thp

if TYPE_CHECKING:
    from gpusvm.machine import Topology
    from gpusvm.plugins import Registry

__all__ = ["DEFAULT_VRAM", "Plan", "PlannedRun", "make_plan", "read_size"]

DEFAULT_VRAM: Final = (
    "1GiB"  # more than any bundled trace touches, so that evictions are asked for and never a surprise
)
_SMALLEST_VRAM: Final = 2 << 20  # the largest range: one PMD
_PAGE_BYTES: Final = 4096


@frozen(kw_only=True)
class PlannedRun:
    """Hold one run: its spec, the key of its files, and the number of accesses, by which time is estimated."""

    spec: RunSpec
    key: str
    inputs: dict[str, str]
    accesses: int


@frozen(kw_only=True)
class Plan:
    """Hold a checked comparison: `runs` by workload, then driver, as given; `document` becomes ``run.json``."""

    drivers: tuple[str, ...]
    workloads: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    document: dict[str, Any]
    registry: "Registry"


def make_plan(
    drivers: str | Sequence[str] | None,
    workloads: str | Path | Sequence[str | Path] | None,
    *,
    vram: int | str,
    thp: str,
    seed: int,
    costs: str | Path,
    quirks: str,
    topology: str | Path,
    events: bool,
    registry: "Registry",
) -> Plan:
    """Check everything that a comparison is made of; raises InputError, in one line, for what is wrong first."""
    from gpusvm.driver import read_spec
    from gpusvm.machine import load_topology
    from gpusvm.run.costs import load_profile
    from gpusvm.workload import load

    _one_of("--thp", thp, get_args(Thp))
    _one_of("--quirks", quirks, get_args(Quirks))
    if seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {seed}")
    vram_bytes = _vram(vram)
    cost_hash = load_profile(str(costs)).sha256
    machine = load_topology(topology)
    topology_hash = _hash(machine)
    texts = [drivers] if isinstance(drivers, str) else list(drivers or registry)
    if not texts:
        raise InputError(
            "no driver plugin is installed; install one (gpusvm-xe, for example), or name a file in GPUSVM_DRIVERS"
        )
    normalised = [read_spec(text, registry, quirks=quirks).text for text in texts]  # type: ignore[arg-type]  # checked
    _no_repeat("driver spec", normalised)
    named = _workloads(workloads)
    _no_repeat("workload", named)
    traces = {name: load(name) for name in named}
    versions = _versions(registry, [text.partition(":")[0] for text in normalised])
    runs = []
    for workload, trace in traces.items():
        for text in normalised:
            spec = RunSpec(
                driver=text,
                workload=workload,
                vram_bytes=vram_bytes,
                seed=seed,
                thp=thp,  # type: ignore[arg-type]  # checked above
                topology=str(topology),
                costs=str(costs),
                quirks=quirks,  # type: ignore[arg-type]  # checked above
                events=events,
            )
            inputs = {
                "trace": trace.sha256,
                "costs": cost_hash,
                "topology": topology_hash,
                "core": versions["gpusvm-core"],
                "driver": versions.get(text.partition(":")[0], ""),
            }
            runs.append(PlannedRun(spec=spec, key=spec.key(inputs=inputs), inputs=inputs, accesses=len(trace)))
    document = {
        "schema": 1,
        "versions": versions,
        "workloads": {name: {"sha256": trace.sha256, "accesses": len(trace)} for name, trace in traces.items()},
        "costs": {"name": str(costs), "sha256": cost_hash},
        "topology": {"name": str(topology), "sha256": topology_hash},
        "runs": [{"key": run.key, "spec": attrs.asdict(run.spec)} for run in runs],
    }
    return Plan(
        drivers=tuple(normalised), workloads=tuple(named), runs=tuple(runs), document=document, registry=registry
    )


def read_size(text: int | str, what: str) -> int:
    """Read bytes such as ``256MiB``, ``1GiB``, ``64K`` or 4096; raises InputError that names `what`."""
    from gpusvm.driver import parse_size

    if isinstance(text, int):
        return text
    try:
        return parse_size(text.removesuffix("iB") if text[-3:-2] in ("K", "M", "G") else text)
    except ValueError:
        raise InputError(f"{what}: expected a size such as 256MiB, 1GiB, 64K or 4096, got {text!r}") from None


def _vram(vram: int | str) -> int:
    size = read_size(vram, "--vram")
    if size < _SMALLEST_VRAM:
        raise InputError(f"--vram: {vram} is smaller than one range (2MiB); give the device at least that")
    if size % _PAGE_BYTES:
        raise InputError(f"--vram: expected whole pages of {_PAGE_BYTES} bytes, got {vram}")
    return size


def _workloads(workloads: str | Path | Sequence[str | Path] | None) -> list[str]:
    from gpusvm.workload import DEFAULT_WORKLOADS, bundled

    if workloads is None:
        return list(DEFAULT_WORKLOADS)
    names = [workloads] if isinstance(workloads, (str, Path)) else workloads
    return [each for name in names for each in (bundled() if name == "all" else (str(name),))]


def _hash(topology: "Topology") -> str:
    return hashlib.sha256(json.dumps(attrs.asdict(topology), sort_keys=True).encode()).hexdigest()


def _one_of(option: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise InputError(f"{option}: unknown value {value!r}; {nearest(value, valid)}")


def _no_repeat(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{what} {name!r} is given twice")


def _versions(registry: "Registry", names: Sequence[str]) -> dict[str, str]:
    """Say which code ran: Python, NumPy, core, and the distribution of each driver."""
    versions = {
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "gpusvm-core": metadata.version("gpusvm-core"),
    }
    for name in names:
        versions[name] = registry.find(name).origin
    return versions
