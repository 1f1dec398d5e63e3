"""Say what one run is: everything that decides its result, and the shape of that result.

`gpusvm.run.execute.execute` is an `Execute`: it boots a machine, replays the workload and returns the run's entry of
``compare.json``.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypedDict

import attrs
from attrs import frozen

if TYPE_CHECKING:
    from gpusvm.plugins import Registry

__all__ = [
    "Execute",
    "FaultLatency",
    "Integrity",
    "Objects",
    "Pm",
    "PmDevice",
    "PmHolder",
    "PmReferences",
    "PmState",
    "Quirks",
    "RunResult",
    "RunSpec",
    "StageNs",
    "Thp",
]

Thp: TypeAlias = Literal["always", "madvise", "never"]
Quirks: TypeAlias = Literal["as_written", "fixed"]


@frozen(kw_only=True)
class RunSpec:
    """Identify one run; two runs with equal specs, traces, cost profiles and versions differ only in ``wall_s``.

    `driver` is a normalised spec string (``xe:chunk_sizes=64K+4K``; ``populate=explicit`` is a key of it), `workload` a
    bundled trace's name or the path of a trace file, `costs` a profile's name or the path of a TOML file. `vram_bytes`
    is the memory of each GPU, `thp` the setting of transparent huge pages. `quirks` sets every quirk that the
    spec string does not name, the mm's too. `checked` turns on lockdep and named ledger holders, `events` the trace.
    """

    driver: str
    workload: str
    vram_bytes: int
    seed: int = 0
    thp: Thp = "always"
    topology: str = "single"
    costs: str = "h100-pcie5"
    quirks: Quirks = "as_written"
    checked: bool = True
    events: bool = False

    def key(self, *, inputs: dict[str, str]) -> str:
        """Hash the spec and `inputs` to the 16 hex digits that name the run's files.

        `inputs` says what the names stand for: hashes of the trace and the cost profile, versions of core and driver.
        """
        document = json.dumps({"spec": attrs.asdict(self), "inputs": inputs}, sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:16]


class FaultLatency(TypedDict):
    """Nanoseconds from the access to the acknowledgement, over the GPU faults of a run; None where it had none."""

    mean: float | None
    p50: float | None
    p99: float | None


class StageNs(TypedDict):
    """Simulated nanoseconds in each stage of the pipeline, summed over the faults; together they are the latencies.

    Faults wait in the queue at the same time, so that sum may be many times the length of the run.
    """

    queue: int
    gc: int
    lookup: int
    migrate: int
    get_pages: int
    bind: int
    ack: int


class PmState(TypedDict):
    """A device is in `state` from then on: "D0", "D3hot" or "D3cold"."""

    from_ns: int
    state: str


class PmHolder(TypedDict):
    """Who held references on a device: nanoseconds with one or more, most at once, and when, as [[from, until], …]."""

    holder: str
    held_ns: int
    refs_max: int
    spans_ns: list[list[int]]


class PmReferences(TypedDict):
    """Who held how many references when the program ended, and since when each, the oldest first.

    Where it is not known what each was for, `since_ns` has the one time since when there had been any.
    """

    holder: str
    count: int
    since_ns: list[int]


class PmDevice(TypedDict):
    """Power of one device over time, until the program ended."""

    device: str
    resumes: int
    awake_ns: int
    states: list[PmState]
    holders: list[PmHolder]
    references: list[PmReferences]


class Pm(TypedDict):
    """Runtime power management of all devices: times resumed, nanoseconds awake, most references on one at once."""

    resumes: int
    awake_ns: int
    refs_max: int
    devices: list[PmDevice]


class Objects(TypedDict):
    """Most objects alive at once; None for a kind that the driver does not have."""

    pagemaps: int | None
    bos_max: int | None
    zdds_max: int | None
    ranges_max: int | None
    notifiers_max: int | None


class PageIndexUse(TypedDict):
    """What indices from pages to what holds them came to; None without one, when the pages say so themselves.

    `loads` are those of lookups, each of which depends on the one before; `ns` is what was charged for them.
    `marks_bytes_max` is the size of what marks pages that have left outside of them; None if nothing does.
    """

    lookups: int
    loads: int
    bytes_max: int
    marks_bytes_max: int | None
    ns: int


class Integrity(TypedDict):
    """Reads compared with what the last ordered write left; `known` counts, per named quirk, mismatches it explains."""

    reads_checked: int
    mismatches: int
    known: dict[str, int]


class RunResult(TypedDict):
    """One element of ``runs`` in ``compare.json``, schema 1; docs/reference/compare-json.md explains each key.

    `assumed_ns` is the time that tasks, engines and the link spent on events whose cost is assumed in the profile.
    Where they work at the same time each counts, so it may exceed `sim_ns`.
    """

    driver: str
    name: str
    workload: str
    seed: int
    vram_bytes: int
    thp: str
    topology: str
    costs: str
    accesses: int
    gpu_faults: int
    cpu_faults: int
    cpu_minor_faults: int
    sim_ns: int
    wall_s: float
    migrated_to_device_bytes: int
    migrated_to_ram_bytes: int
    remote_bytes: int | None
    remote_ns: int | None
    evictions: int | None
    retries: int
    fault_latency_ns: FaultLatency
    stage_ns: StageNs
    assumed_ns: int
    pm: Pm | None
    objects: Objects
    page_index: PageIndexUse | None
    integrity: Integrity


class Execute(Protocol):
    """Run one spec.

    `drivers` defaults to what `load_drivers()` finds; with ``spec.events`` the trace goes to the new file `events_to`.
    Raises InputError for a spec that cannot run (with the reason), ModelError for a finding that ends the run (lockdep,
    a leak at teardown, an invariant). Wrong contents do not raise: they are counted in ``integrity``.
    """

    def __call__(
        self, spec: RunSpec, /, *, drivers: "Registry | None" = None, events_to: Path | None = None
    ) -> RunResult: ...
