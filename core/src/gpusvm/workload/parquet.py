"""Read and write page-touch traces in Parquet files, and refuse a bad one with one clear line.

The format is docs/reference/trace-format.md. pyarrow takes 0.2 s to import, so rooms above import this module only when
they read a trace.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attrs import frozen
from numpy.typing import ArrayLike, NDArray

from gpusvm.documents import structure
from gpusvm.errors import InputError, nearest
from gpusvm.workload import rules
from gpusvm.workload.segments import misplaced
from gpusvm.workload.trace import CPU, GPU, NO_SM, PAGE_BYTES, Allocation, CpuPhases, Int64s, Kernel, Launches, Trace

__all__ = ["read_trace", "write_trace"]

_COLUMNS = ("time_ns", "agent", "page", "op", "sm")
_ADDRESS = "address"  # may stand for `page`
_TYPES: dict[str, np.dtype[np.integer[Any]]] = {
    "time_ns": np.dtype(np.int64),
    "agent": np.dtype(np.uint8),
    "page": np.dtype(np.uint32),
    _ADDRESS: np.dtype(np.int64),
    "op": np.dtype(np.uint8),
    "sm": np.dtype(np.uint16),
}
_LAUNCH_COLUMNS = ("kernel", "launch_ns", "start_ns", "end_ns")
_CPU_PHASE_COLUMNS = ("phase", "start_ns", "end_ns")


@frozen(kw_only=True)
class _Metadata:
    """The keys of the JSON object under `trace` that are read; a file may have more."""

    workload: str
    allocations: tuple[Allocation, ...]
    kernels: tuple[Kernel, ...]
    launches: tuple[tuple[int, ...], ...]
    cpu_phase_names: tuple[str, ...]
    cpu_phases: tuple[tuple[int, ...], ...]
    about: str = ""
    page_size: int = PAGE_BYTES
    bucket_ns: int = 0
    launch_columns: tuple[str, ...] = _LAUNCH_COLUMNS
    cpu_phase_columns: tuple[str, ...] = _CPU_PHASE_COLUMNS
    gpu_ms_logged: float = 1.0
    gpu_ms_unlogged: float = 1.0
    end_ns: int | None = None


def read_trace(path: str | Path) -> Trace:
    """Read and validate one trace file.

    Raises InputError, one line with the file, the place in it (row, column or key; rows count from 0), what was
    expected and the mend, for anything that docs/reference/trace-format.md does not allow.
    """
    path = Path(path)
    data = _bytes(path)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise InputError(f"{path}: expected a Parquet file, got {_what(data)}: {_first_line(exc)}") from None
    wanted = _wanted_columns(path, schema)
    metadata = _metadata(path, schema.metadata or {})
    try:
        table = file.read(columns=wanted, use_threads=False)
        columns = {name: _values(path, name, table.column(name)) for name in wanted}
    except (pa.ArrowException, OSError, ValueError) as exc:
        raise InputError(
            f"{path}: expected whole columns, got damaged ones: {_first_line(exc)}; copy it again"
        ) from None
    launches, cpu_phases = _lists(path, metadata)
    time_ns, agent, place, op, sm = (columns[name] for name in wanted)
    for problem in itertools.chain(
        rules.allocation_problems(metadata.allocations),
        rules.time_problems(time_ns),
        rules.event_problems(agent, op, sm),
        rules.address_problems(place) if _ADDRESS in columns else (),
    ):
        raise InputError(f"{path}: {problem}")
    page = (place // PAGE_BYTES).astype(np.uint32) if _ADDRESS in columns else place
    for problem in itertools.chain(
        rules.page_problems(page, metadata.allocations, column=wanted[2]),
        misplaced(launches, cpu_phases, time_ns=time_ns, agent=agent),
    ):
        raise InputError(f"{path}: {problem}")
    return Trace(
        name=metadata.workload,
        about=metadata.about,
        allocations=metadata.allocations,
        kernels=metadata.kernels,
        launches=launches,
        cpu_phase_names=metadata.cpu_phase_names,
        cpu_phases=cpu_phases,
        time_ns=_read_only(time_ns),
        agent=_read_only(agent),
        page=_read_only(page),
        op=_read_only(op),
        sm=_read_only(sm),
        gpu_ms_logged=metadata.gpu_ms_logged,
        gpu_ms_unlogged=metadata.gpu_ms_unlogged,
        bucket_ns=metadata.bucket_ns,
        end_ns=int(time_ns[-1]) if metadata.end_ns is None else metadata.end_ns,
        sha256=hashlib.sha256(data).hexdigest(),
        file_bytes=len(data),
    )


def write_trace(
    path: str | Path,
    name: str,
    *,
    allocations: Iterable[Allocation],
    time_ns: ArrayLike,
    agent: ArrayLike,
    op: ArrayLike,
    page: ArrayLike | None = None,
    address: ArrayLike | None = None,
    sm: ArrayLike | None = None,
    kernels: Sequence[Kernel] | None = None,
    launches: Sequence[tuple[int, int, int, int]] | None = None,
    cpu_phase_names: Sequence[str] | None = None,
    cpu_phases: Sequence[tuple[int, int, int]] | None = None,
    about: str = "",
    bucket_ns: int = 0,
    gpu_ms_logged: float = 1.0,
    gpu_ms_unlogged: float = 1.0,
    end_ns: int | None = None,
) -> Trace:
    """Write a trace of your own and return it as `read_trace` sees it.

    Give either `page` (4 KiB pages) or `address` (bytes). Without `sm`, all GPU rows are of streaming multiprocessor 0.
    Without `launches`, every run of GPU rows becomes a launch of a kernel called `kernel`; without `cpu_phases`, every
    run of CPU rows becomes a phase called `host`. Launch rows are (kernel, launch_ns, start_ns, end_ns), phase rows
    (name, start_ns, end_ns). Raises InputError as `read_trace` does, and leaves `path` as it was then; ValueError for
    columns of different lengths.
    """
    path = Path(path)
    times, agents = _cast(path, "time_ns", time_ns), _cast(path, "agent", agent)
    columns = {"time_ns": times, "agent": agents}
    if page is not None:
        columns["page"] = _cast(path, "page", page)
    if address is not None:
        columns[_ADDRESS] = _cast(path, _ADDRESS, address)
    columns["op"] = _cast(path, "op", op)
    columns["sm"] = _cast(path, "sm", np.where(agents == CPU, NO_SM, 0) if sm is None else sm)
    if launches is None:
        kernels = [Kernel(name="kernel", blocks=1, threads=1)]
        launches = [(0, start, start, end) for start, end in _runs(times, agents, GPU)]
    if cpu_phases is None:
        cpu_phase_names = ["host"]
        cpu_phases = [(0, start, end) for start, end in _runs(times, agents, CPU)]
    metadata = _Metadata(
        workload=name,
        about=about,
        bucket_ns=bucket_ns,
        gpu_ms_logged=gpu_ms_logged,
        gpu_ms_unlogged=gpu_ms_unlogged,
        end_ns=end_ns if end_ns is not None or not len(times) else int(times[-1]),
        allocations=tuple(allocations),
        kernels=tuple(kernels or ()),
        launches=tuple(launches),
        cpu_phase_names=tuple(cpu_phase_names or ()),
        cpu_phases=tuple(cpu_phases),
    )
    table = pa.table(columns).replace_schema_metadata({"trace": json.dumps(attrs.asdict(metadata))})
    pending = path.with_name(path.name + ".partial")
    try:
        pq.write_table(table, pending, compression="zstd", row_group_size=max(len(times), 1))
        trace = read_trace(pending)
        pending.replace(path)
    except InputError as exc:
        raise InputError(str(exc).replace(str(pending), str(path))) from None
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {_first_line(exc)}") from None
    finally:
        pending.unlink(missing_ok=True)
    return trace


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        beside = sorted(other.name for other in path.parent.glob("*.parquet")) if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, beside)}" if beside else ""
        raise InputError(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a Parquet file, got a directory; name one file in it") from None
    except (OSError, ValueError) as exc:
        raise InputError(f"{path}: cannot be read: {_first_line(exc)}") from None


def _what(data: bytes) -> str:
    """Guess why a file that does not open is none."""
    if not data:
        return "an empty file"
    if data[:4] == b"PAR1":
        return "a damaged one" if data[-4:] == b"PAR1" else f"one cut short after {len(data)} bytes (copy it again)"
    return f"a file that begins with {data[:8]!r}"


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0].rstrip(".")


def _wanted_columns(path: Path, schema: pa.Schema) -> list[str]:
    """Return the names of the columns to read, in the order of `_COLUMNS`, all there and of the right type."""
    names = schema.names
    if "page" in names and _ADDRESS in names:
        raise InputError(f"{path}: expected a column 'page' or a column 'address', got both; drop one")
    wanted = [_ADDRESS if name == "page" and _ADDRESS in names else name for name in _COLUMNS]
    for name in wanted:
        if names.count(name) > 1:
            raise InputError(f"{path}: column '{name}': expected one, got {names.count(name)}; drop the others")
        if name not in names:
            near = nearest(name, [other for other in names if other not in wanted])
            hint = f"; {near}" if near.startswith("did") else f"; add it as {_arrow_type(name)}"
            raise InputError(f"{path}: no column '{name}', the columns are: {', '.join(names) or 'none'}{hint}")
        got = schema.field(name).type
        if got != _arrow_type(name):
            raise InputError(f"{path}: column '{name}': expected type {_arrow_type(name)}, got {got}; cast it")
    return wanted


def _arrow_type(column: str) -> pa.DataType:
    return pa.from_numpy_dtype(_TYPES[column])


def _values(path: Path, name: str, column: pa.ChunkedArray) -> NDArray[Any]:
    if not len(column):
        raise InputError(f"{path}: expected 1 row or more, got none; a trace has events")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise InputError(f"{path}: row {row}: column '{name}': expected a value, got null; fill it in or drop the row")
    values: NDArray[Any] = column.to_numpy()
    return values


def _metadata(path: Path, raw: dict[bytes, bytes]) -> _Metadata:
    source = f"{path}: metadata key 'trace'"
    if b"trace" not in raw:
        found = ", ".join(sorted(key.decode(errors="replace") for key in raw)) or "none"
        raise InputError(f"{path}: no metadata key 'trace', the keys are: {found}; write_trace writes one")
    try:
        document = json.loads(raw[b"trace"])
    except ValueError as exc:
        raise InputError(f"{source}: expected JSON, got {_first_line(exc)}; write_trace writes it") from None
    metadata = structure(document, _Metadata, source=source, unknown_keys=True)
    for key, got, expected in (
        ("page_size", metadata.page_size, PAGE_BYTES),
        ("launch_columns", metadata.launch_columns, _LAUNCH_COLUMNS),
        ("cpu_phase_columns", metadata.cpu_phase_columns, _CPU_PHASE_COLUMNS),
    ):
        if got != expected:
            raise InputError(f"{source}: {key}: expected {expected}, got {got}; convert the trace")
    for key, value in (("gpu_ms_logged", metadata.gpu_ms_logged), ("gpu_ms_unlogged", metadata.gpu_ms_unlogged)):
        if not 0 < value < float("inf"):
            raise InputError(f"{source}: {key}: expected a positive number, got {value}; leave it out if unknown")
    if metadata.bucket_ns < 0:
        raise InputError(f"{source}: bucket_ns: expected 0 or more, got {metadata.bucket_ns}; leave it out if unknown")
    return metadata


def _lists(path: Path, metadata: _Metadata) -> tuple[Launches, CpuPhases]:
    """Turn the row lists of the metadata to columns; the first entry of each row is inside the list it indexes."""
    for key, lists, columns in (
        ("launches", metadata.launches, _LAUNCH_COLUMNS),
        ("cpu_phases", metadata.cpu_phases, _CPU_PHASE_COLUMNS),
    ):
        for i, row in enumerate(lists):
            if len(row) != len(columns):
                raise InputError(
                    f"{path}: {key}[{i}]: expected {', '.join(columns)}, got {len(row)} numbers; correct it"
                )
    try:
        launches = np.array(metadata.launches, dtype=np.int64).reshape(-1, 4)
        phases = np.array(metadata.cpu_phases, dtype=np.int64).reshape(-1, 3)
    except OverflowError:
        raise InputError(f"{path}: launches, cpu_phases: expected times that fit 64 bits; count from 0") from None
    for key, of, rows, names in (
        ("launches", "kernels", launches, metadata.kernels),
        ("cpu_phases", "cpu_phase_names", phases, metadata.cpu_phase_names),
    ):
        for wrong in np.flatnonzero((rows[:, 0] < 0) | (rows[:, 0] >= len(names))):
            got = f"{rows[wrong, 0]}, and {of} has {len(names)}"
            raise InputError(f"{path}: {key}[{wrong}][0]: expected an index into {of}, got {got}; add it there")
    kernel, call_ns, start_ns, end_ns = (_read_only(launches[:, i].copy()) for i in range(4))
    name, phase_start_ns, phase_end_ns = (_read_only(phases[:, i].copy()) for i in range(3))
    return (
        Launches(kernel=kernel, call_ns=call_ns, start_ns=start_ns, end_ns=end_ns),
        CpuPhases(name=name, start_ns=phase_start_ns, end_ns=phase_end_ns),
    )


def _cast(path: Path, column: str, values: ArrayLike) -> NDArray[Any]:
    """Convert to the column's type, refusing values that it cannot hold (a plain cast would wrap them around)."""
    dtype = _TYPES[column]
    given = np.asarray(values)
    if given.size and given.dtype.kind not in "iu":
        raise InputError(f"{path}: column '{column}': expected whole numbers, got {given.dtype}; convert them")
    limits = np.iinfo(dtype)
    for row in np.flatnonzero((given < limits.min) | (given > limits.max)):
        expected = f"{limits.min} to {limits.max}"
        raise InputError(f"{path}: row {row}: column '{column}': expected {expected}, got {given[row]}; correct it")
    return given.astype(dtype)


def _runs(time_ns: Int64s, agent: NDArray[np.uint8], who: int) -> list[tuple[int, int]]:
    """Return (first time, last time) of every run of consecutive rows of one agent."""
    if not len(agent):
        return []
    first = np.flatnonzero(np.diff(agent, prepend=agent[0] ^ 1))
    last = np.append(first[1:], len(agent)) - 1
    own = agent[first] == who
    return list(zip(time_ns[first[own]].tolist(), time_ns[last[own]].tolist(), strict=True))


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    values.flags.writeable = False
    return values
