"""Find the traces that come with gpusvm.

They were captured on one NVIDIA H100; traces/README.md beside them says how.
"""

from importlib import resources
from pathlib import Path

from gpusvm.errors import InputError, nearest
from gpusvm.workload.trace import Trace

__all__ = ["DEFAULT_WORKLOADS", "bundled", "load"]

_SUFFIX = ".parquet"

# Streaming by huge pages, irregular with atomics, CPU and GPU in turn, hundreds of small kernels.
DEFAULT_WORKLOADS = ("triad", "bfs", "pingpong", "llm-decode")


def bundled() -> tuple[str, ...]:
    """List the names of the bundled traces, sorted."""
    files = resources.files("gpusvm.workload").joinpath("traces").iterdir()
    return tuple(sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX)))


def load(name_or_path: str | Path) -> Trace:
    """Read a bundled trace by its name, or any trace by the path of its file.

    What ends in ``.parquet``, has a directory in it or exists is a path; the rest is a name. Raises InputError as
    `read_trace` does, and for an unknown name with the nearest valid one.
    """
    from gpusvm.workload.parquet import read_trace

    if name_or_path in bundled():
        with resources.as_file(
            resources.files("gpusvm.workload").joinpath("traces", f"{name_or_path}{_SUFFIX}")
        ) as path:
            return read_trace(path)
    path = Path(name_or_path)
    if path.suffix == _SUFFIX or len(path.parts) > 1 or path.exists():
        return read_trace(path)
    near = nearest(str(name_or_path), bundled())
    raise InputError(f"unknown workload {str(name_or_path)!r}, {near} (or the path of a {_SUFFIX} file)")
