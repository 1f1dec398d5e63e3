"""Lay out the modules of the guest: lib/test_hmm as it is and repaired, what tells its layout, and svmdev."""

import re
import shutil
import struct
from importlib import resources
from pathlib import Path
from typing import IO, Final

from gpusvm.errors import InputError
from gpusvm.realkernel.build.kernel import build_modules
from gpusvm.realkernel.build.tools import run_tool

__all__ = ["MODULES", "build_all", "module_sources", "probes"]

MODULES: Final = ("test_hmm", "test_hmm_repaired", "svmdev")
"""The modules that a guest can load, by name."""

_GUEST: Final = resources.files("gpusvm.realkernel").joinpath("guest")
_LAYOUT: Final = "layout"
_SECTION: Final = ".gpusvm_layout"

# The one repair: a device page of the device's own stands for the page of RAM behind it, and a page that is not
# writable is no surprise. Each pattern has to be found once.
_REPAIRS: Final = (
    (
        r"(WARN_ON\(!page\);\n)(\n\t\tentry = page;)",
        r"\1" + "\t\tif (is_device_private_page(page)) {\n"
        "\t\t\tstruct folio *of = page_folio(page);\n"
        "\n"
        "\t\t\tpage = (struct page *)folio_zone_device_data(of) + folio_page_idx(of, page);\n"
        "\t\t}\n"
        r"\2",
    ),
    (r"else if \(WARN_ON\((range->default_flags & HMM_PFN_WRITE)\)\)", r"else if (\1)"),
)


def module_sources() -> list[str]:
    """Return our own sources that modules are made from, as text, in a fixed order."""
    return [text for _, text in (*_own("modules"), *_own("modules", "svmdev"))]


def _own(*folder: str) -> list[tuple[str, str]]:
    """Return the name and the text of each of our own files in a folder of the guest."""
    found = sorted((each for each in _GUEST.joinpath(*folder).iterdir() if each.is_file()), key=lambda each: each.name)
    return [(each.name, each.read_text("utf-8")) for each in found]


def build_all(tree: Path, objects: Path, folder: Path, *, log: IO[bytes]) -> dict[str, Path]:
    """Build every module afresh in `folder`; return them by name. InputError where this kernel's sources do not fit."""
    if folder.exists():
        shutil.rmtree(folder)
    text = (tree / "lib" / "test_hmm.c").read_text("utf-8")
    header = (tree / "lib" / "test_hmm_uapi.h").read_text("utf-8")
    dmirror = {"test_hmm_uapi.h": header}
    files = {
        "test_hmm": {**dmirror, "test_hmm.c": text},
        "test_hmm_repaired": {**dmirror, "test_hmm_repaired.c": _repaired(text, tree)},
        _LAYOUT: {**dmirror, "test_hmm.c": text, **dict(_own("modules"))},
        "svmdev": dict(_own("modules", "svmdev")),
    }
    built = {}
    for name, sources in files.items():
        place = folder / name
        place.mkdir(parents=True)
        for file, content in {"Kbuild": f"obj-m := {name}.o\n", **sources}.items():
            (place / file).write_text(content, "utf-8")
        build_modules(place, objects, log=log)
        built[name] = place / f"{name}.ko"
    del built[_LAYOUT]
    return built


def _repaired(text: str, tree: Path) -> str:
    for pattern, by in _REPAIRS:
        text, found = re.subn(pattern, by, text)
        if found != 1:
            raise InputError(f"{tree}/lib/test_hmm.c: expected one place to repair like {pattern!r}, found {found}")
    return text


def probes(folder: Path, *, log: IO[bytes]) -> tuple[str, int]:
    """Return the probe that reports callbacks of dmirror's interval notifiers, and the size of one of its devices.

    What the probe reads lies at offsets of this kernel and this configuration: the module `layout` holds them.
    """
    raw = folder / _LAYOUT / "layout.bin"
    module = folder / _LAYOUT / f"{_LAYOUT}.ko"
    run_tool(["objcopy", "-O", "binary", f"--only-section={_SECTION}", str(module), str(raw)], log=log)
    start, end, event, owner, device, size = struct.unpack("<6q", raw.read_bytes()[:48])
    probe = (
        "p:gpusvm dmirror_interval_invalidate "
        f"start={start:+d}(%si):x64 end={end:+d}(%si):x64 event={event:+d}(%si):s32 "
        f"device={device:+d}(%di):x64 owner={owner:+d}(%si):x64\n"
    )
    return probe, size
