"""Unpack, configure and build a small kernel, with modules of our own against it."""

import re
import subprocess
import tarfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import IO, Final

from gpusvm.errors import InputError
from gpusvm.realkernel.build.tools import run_tool, tail_of

__all__ = ["CONFIG", "build_image", "configure", "kernel_version", "unpack"]

CONFIG: Final = resources.files("gpusvm.realkernel").joinpath("guest", "kernel.config")
"""What is switched on, beyond the smallest configuration that there is (`make tinyconfig`)."""

_KCONFIG: Final = "drivers/gpu/drm/Kconfig"
_HIDDEN: Final = "config DRM_GPUSVM\n\ttristate\n"
_VISIBLE: Final = 'config DRM_GPUSVM\n\ttristate "GPU SVM helpers, for modules that are not in this tree"\n'

# Lines that `make` prints for one thing made: CC, LD, AR, ...
_MADE: Final = re.compile(rb"^  [A-Z][A-Z0-9_]*(?: \[M\])? +\S", re.MULTILINE)
_LINES_OF_A_BUILD: Final = 1_950
"""So many such lines a whole build prints, to say how far it is; counted once, with the configuration as it is."""


def unpack(archive: Path, target: Path, *, log: IO[bytes]) -> None:
    """Unpack the source: a package linux-source-*, or a tar archive. The folder is there whole or not at all."""
    pending = target.with_suffix(".pending")
    run_tool(["rm", "-rf", str(pending), str(target)], log=log)
    pending.mkdir(parents=True)
    if archive.suffix == ".deb":
        run_tool(["dpkg-deb", "-x", str(archive), str(pending / "package")], log=log)
        found = sorted((pending / "package" / "usr" / "src").glob("linux-source-*.tar.*"))
        if len(found) != 1:
            raise InputError(
                f"{archive}: expected a package with one usr/src/linux-source-*.tar.xz, found {len(found)}"
            )
        archive = found[0]
    (pending / "tree").mkdir()
    try:
        run_tool(["tar", "-xf", str(archive), "-C", str(pending / "tree"), "--strip-components=1"], log=log)
    except (tarfile.TarError, InputError) as exc:
        raise InputError(f"{archive}: cannot be unpacked as the source of a kernel: {exc}") from None
    tree = pending / "tree"
    kernel_version(tree)
    _show_gpusvm(tree)
    tree.replace(target)
    run_tool(["rm", "-rf", str(pending)], log=log)


def _show_gpusvm(tree: Path) -> None:
    """Let DRM_GPUSVM be chosen by itself: as it is, only a driver that uses it can select it."""
    kconfig = tree / _KCONFIG
    text = kconfig.read_text("utf-8") if kconfig.is_file() else ""
    if text.count(_HIDDEN) != 1:
        raise InputError(f"{tree}: expected a kernel with drm_gpusvm, 6.15 or newer: no DRM_GPUSVM in {_KCONFIG}")
    kconfig.write_text(text.replace(_HIDDEN, _VISIBLE), "utf-8")


def kernel_version(tree: Path) -> str:
    """Return the version of a source tree, such as 7.3.4. InputError if it is none."""
    makefile = tree / "Makefile"
    text = makefile.read_text("utf-8") if makefile.is_file() else ""
    numbers = [re.search(rf"^{name} = (\d+)$", text, re.MULTILINE) for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    if None in numbers:
        raise InputError(f"{tree}: expected the source of a kernel, found no version in its Makefile")
    return ".".join(each[1] for each in numbers if each is not None)


def configure(tree: Path, objects: Path, *, log: IO[bytes]) -> None:
    """Write ``.config``: the smallest one and what `CONFIG` switches on. InputError if a wish of it was not granted."""
    objects.mkdir(parents=True, exist_ok=True)
    run_tool(["make", "-C", str(tree), f"O={objects}", "tinyconfig"], log=log)
    config = objects / ".config"
    wishes = CONFIG.read_text("utf-8")
    config.write_text(config.read_text("utf-8") + wishes, "utf-8")
    run_tool(["make", "-C", str(tree), f"O={objects}", "olddefconfig"], log=log)
    granted = set(config.read_text("utf-8").splitlines())
    refused = [line for line in wishes.splitlines() if line.startswith("CONFIG_") and line not in granted]
    refused = [line for line in refused if not (line.endswith("=n") and f"# {line[:-2]} is not set" in granted)]
    refused = [
        line for line in refused if not (line.endswith("=n") and not any(g.startswith(line[:-1]) for g in granted))
    ]
    if refused:
        raise InputError(f"the kernel's configuration does not take {', '.join(refused)}")


def build_image(tree: Path, objects: Path, *, jobs: int, log: IO[bytes], advance: Callable[[int, int], None]) -> Path:
    """Build the image and what modules need; return it. `advance` hears how many things are made, of how many."""
    command = ["make", "-C", str(tree), f"O={objects}", f"-j{jobs}", "bzImage", "modules"]
    log.write(f"$ {' '.join(command)}\n".encode())
    log.flush()
    begun = log.tell()
    made = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as make:  # noqa: S603  # our own command
        assert make.stdout is not None
        for line in make.stdout:
            log.write(line)
            if _MADE.match(line):
                made += 1
                advance(made, max(made, _LINES_OF_A_BUILD))
    log.flush()
    if make.returncode:
        raise InputError(
            f"make failed with {make.returncode}; the end of {log.name}:\n{tail_of(Path(log.name), begun)}"
        )
    return objects / "arch" / "x86" / "boot" / "bzImage"


def build_modules(folder: Path, objects: Path, *, log: IO[bytes]) -> None:
    """Build the modules of a folder that has a Kbuild file."""
    run_tool(["make", "-C", str(objects), f"M={folder}", "modules"], log=log)
