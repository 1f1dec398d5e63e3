"""Look for the programs and headers that a build needs, all at once, and say which packages bring them."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from gpusvm.errors import InputError

__all__ = ["RUN_TOOLS", "check_tools", "run_tool"]

BUILD_TOOLS: Final = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "tar": "tar",
}
RUN_TOOLS: Final = {"qemu-system-x86_64": "qemu-system-x86"}

# The kernel's own host programs (objtool) are linked with it, on x86-64 always.
_HEADERS: Final = {"libelf.h": "libelf-dev"}
_LAST_LINES: Final = 12


def check_tools(*, build: bool) -> None:
    """Raise InputError that names every missing program with its Debian package; nothing if all are there."""
    missing = {
        tool: package
        for tool, package in {**(BUILD_TOOLS if build else {}), **RUN_TOOLS}.items()
        if shutil.which(tool) is None
    }
    if build:
        missing |= {header: package for header, package in _HEADERS.items() if not _has_header(header)}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise InputError(f"missing: {', '.join(sorted(missing))}; on Debian: apt-get install {packages}")


def _has_header(name: str) -> bool:
    if shutil.which("gcc") is None:
        return False
    found = subprocess.run(  # noqa: S603  # a fixed command
        ["gcc", "-E", "-include", name, "-x", "c", "/dev/null"],  # noqa: S607  # the machine's compiler, as make finds it
        capture_output=True,
        check=False,
    )
    return found.returncode == 0


def run_tool(command: Sequence[str], *, log: IO[bytes], cwd: Path | None = None) -> None:
    """Run a command; its output goes to `log`. InputError with the last lines of it if it fails."""
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    begun = log.tell()
    done = subprocess.run(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, check=False)  # noqa: S603  # our own commands
    if done.returncode:
        raise InputError(
            f"{command[0]} failed with {done.returncode}; the end of {log.name}:\n{tail_of(Path(log.name), begun)}"
        )


def tail_of(path: Path, begun: int) -> str:
    """Return the last lines that stand in a file from an offset on, each indented."""
    with path.open("rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])
