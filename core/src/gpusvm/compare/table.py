"""Lay results out as rows of one metric each and columns of one driver each; plain values, for whoever shows them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from attrs import frozen

from gpusvm.run.spec import RunResult

__all__ = ["METRICS", "Metric", "Row", "Table", "Unit", "make_table"]

Unit: TypeAlias = Literal["ns", "s", "bytes", "count"]


@frozen
class Metric:
    """Name one row: `path` into a run of ``compare.json``, and whether less of it is better or it only describes."""

    path: str
    label: str
    unit: Unit
    group: str
    less_is_better: bool = True

    def of(self, run: Mapping[str, Any]) -> float | None:
        """Return the value in `run`, None where it does not apply; ``integrity.known`` is summed over the quirks."""
        value: Any = run
        for key in self.path.split("."):
            if value is None:
                return None
            value = value[key]
        if isinstance(value, Mapping):
            return sum(value.values())
        return value if value is None or isinstance(value, int) else float(value)


# The order of the rows is the order of the questions: how long, how often, how much moved, what a fault cost, at what
# upkeep, and was it right.
METRICS = (
    Metric("sim_ns", "simulated time", "ns", "time"),
    Metric("assumed_ns", "time on assumed costs", "ns", "time", less_is_better=False),
    Metric("wall_s", "time to model it", "s", "time", less_is_better=False),
    Metric("accesses", "accesses", "count", "faults", less_is_better=False),
    Metric("gpu_faults", "GPU faults", "count", "faults"),
    Metric("cpu_faults", "CPU faults on device entries", "count", "faults"),
    Metric("cpu_minor_faults", "CPU minor faults", "count", "faults"),
    Metric("retries", "pipeline restarts", "count", "faults"),
    Metric("migrated_to_device_bytes", "migrated to the device", "bytes", "movement"),
    Metric("migrated_to_ram_bytes", "migrated to RAM", "bytes", "movement"),
    Metric("remote_bytes", "accessed in place", "bytes", "movement"),
    Metric("remote_ns", "time of accesses in place", "ns", "movement"),
    Metric("evictions", "evicted allocations", "count", "movement"),
    Metric("fault_latency_ns.mean", "fault latency, mean", "ns", "GPU fault"),
    Metric("fault_latency_ns.p50", "fault latency, median", "ns", "GPU fault"),
    Metric("fault_latency_ns.p99", "fault latency, 99 %", "ns", "GPU fault"),
    Metric("stage_ns.queue", "stage queue, sum", "ns", "GPU fault"),
    Metric("stage_ns.gc", "stage gc, sum", "ns", "GPU fault"),
    Metric("stage_ns.lookup", "stage lookup, sum", "ns", "GPU fault"),
    Metric("stage_ns.migrate", "stage migrate, sum", "ns", "GPU fault"),
    Metric("stage_ns.get_pages", "stage get_pages, sum", "ns", "GPU fault"),
    Metric("stage_ns.bind", "stage bind, sum", "ns", "GPU fault"),
    Metric("stage_ns.ack", "stage ack, sum", "ns", "GPU fault"),
    Metric("pm.resumes", "device resumes", "count", "power"),
    Metric("pm.awake_ns", "device awake", "ns", "power"),
    Metric("pm.refs_max", "PM references at once", "count", "power", less_is_better=False),
    Metric("objects.pagemaps", "pagemaps", "count", "objects at once"),
    Metric("objects.bos_max", "buffer objects", "count", "objects at once"),
    Metric("objects.zdds_max", "zdds", "count", "objects at once"),
    Metric("objects.ranges_max", "ranges", "count", "objects at once"),
    Metric("objects.notifiers_max", "notifiers", "count", "objects at once"),
    Metric("page_index.lookups", "page lookups in an index", "count", "page to object"),
    Metric("page_index.loads", "dependent loads of these", "count", "page to object"),
    Metric("page_index.bytes_max", "size of the index at most", "bytes", "page to object"),
    Metric("page_index.marks_bytes_max", "marks of pages that left", "bytes", "page to object"),
    Metric("page_index.ns", "time of the lookups", "ns", "page to object"),
    Metric("integrity.reads_checked", "reads checked", "count", "integrity", less_is_better=False),
    Metric("integrity.mismatches", "mismatches", "count", "integrity"),
    Metric("integrity.known", "mismatches of named quirks", "count", "integrity"),
)


@frozen(kw_only=True)
class Row:
    """Hold one metric's values by column; `best` are the columns of the least value, where they differ.

    A column whose reads saw wrong contents is best at nothing.
    """

    metric: Metric
    values: tuple[float | None, ...]
    best: tuple[int, ...]


@frozen(kw_only=True)
class Table:
    """Hold the comparison of one workload: a column for each driver spec, None as its values where its run failed.

    `notes` are sentences about columns that need one.
    """

    workload: str
    conditions: dict[str, Any]
    columns: tuple[str, ...]
    failed: tuple[int, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def make_table(
    workload: str, columns: Sequence[str], runs: Mapping[str, RunResult], *, extra: Mapping[str, Any]
) -> Table:
    """Build the table of `workload` from its runs by driver spec; a column without a run is one that failed.

    `extra` are conditions that the runs share and do not name.
    """
    found = [runs.get(column) for column in columns]
    right = [run is not None and not _wrong_reads(run) for run in found]
    rows = []
    for metric in METRICS:
        values = tuple(None if run is None else metric.of(run) for run in found)
        compared = [value if good else None for value, good in zip(values, right, strict=True)]
        rows.append(Row(metric=metric, values=values, best=_best(compared) if metric.less_is_better else ()))
    first: Mapping[str, Any] = next((run for run in found if run is not None), {})
    return Table(
        workload=workload,
        conditions={
            **{key: first[key] for key in ("vram_bytes", "thp", "costs", "topology", "seed") if key in first},
            **extra,
        },
        columns=tuple(columns),
        failed=tuple(i for i, run in enumerate(found) if run is None),
        rows=tuple(rows),
        notes=tuple(
            _note(column, run)
            for column, run in zip(columns, found, strict=True)
            if run is not None and _wrong_reads(run)
        ),
    )


def _wrong_reads(run: RunResult) -> int:
    integrity = run["integrity"]
    return integrity["mismatches"] + sum(integrity["known"].values())


def _note(column: str, run: RunResult) -> str:
    """Say what was wrong in a run, and how to have it without."""
    integrity = run["integrity"]
    parts = [f"{count:,} by the quirk {quirk}" for quirk, count in integrity["known"].items()]
    if integrity["mismatches"]:
        parts.append(f"{integrity['mismatches']:,} that no quirk explains")
    return f"{column}: reads that saw wrong contents, {', '.join(parts)}; the column is marked least in no row."


def _best(values: Sequence[float | None]) -> tuple[int, ...]:
    """Return the columns with the least value; none of them where all that apply are equal, for then none is better."""
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return ()
    return tuple(i for i, value in enumerate(values) if value == min(known))
