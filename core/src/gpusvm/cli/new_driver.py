"""gpusvm new-driver: begin a driver plugin of one's own."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gpusvm.errors import InputError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["new_driver"]

_NAME: Final = re.compile(r"[a-z][a-z0-9-]*\Z")
_SUFFIX: Final = ".in"  # so that no tool takes the templates for modules, tests or projects of this one


def new_driver(name: str, /, *, dir: Path | None = None) -> int:  # the option's name
    """Write a driver plugin: a distribution of its own, with the smallest complete driver and its tests.

    Parameters
    ----------
    name
        Name of the driver: lower-case letters, digits and "-", beginning with a letter.
    dir
        New or empty directory to write to; gpusvm-NAME if not given.
    """
    from gpusvm.plugins import survey_drivers

    if not _NAME.match(name):
        raise InputError(
            f"new-driver: expected lower-case letters, digits and '-', beginning with a letter, got the name {name!r}"
        )
    taken = survey_drivers().drivers
    if name in taken:
        raise InputError(f"new-driver: {taken.find(name).origin} has a driver {name!r} already; choose another name")
    target = Path(f"gpusvm-{name}") if dir is None else dir
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: expected a new or empty directory; name another one with --dir DIR")
    try:
        write_driver(name, target)
    except OSError as exc:
        raise InputError(f"{target}: cannot be written: {exc.strerror or exc}") from None
    print(f"Written to {target}. To try it, in this environment:")
    print(f"    pip install --no-deps --editable {target}")
    print(f"    gpusvm conform --driver {name}")
    print(f"    pytest {target}")
    print("pip may be `uv pip`. TODOs in the code lead on; docs/tutorial/your-first-driver.md goes through them.")
    return 0


def write_driver(name: str, target: Path) -> None:
    """Write the distribution of the driver `name` into the directory `target`, whole or not at all."""
    import shutil
    import tempfile
    from importlib import resources

    target.parent.mkdir(parents=True, exist_ok=True)
    pending = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _copy(resources.files("gpusvm").joinpath("templates", "driver"), pending, name)
        pending.chmod(0o755)  # mkdtemp lets nobody else in
        pending.replace(target)
    except BaseException:
        shutil.rmtree(pending)
        raise


def _copy(source: "Traversable", target: Path, name: str) -> None:
    for entry in source.iterdir():
        if entry.is_dir():
            folder = target / _named(entry.name, name)
            folder.mkdir()
            _copy(entry, folder, name)
        elif entry.name.endswith(_SUFFIX):
            path = target / _named(entry.name.removesuffix(_SUFFIX), name)
            path.write_text(_named(entry.read_text("utf-8"), name), encoding="utf-8")


def _named(text: str, name: str) -> str:
    """Put the name where the template says acme: as a class's, in an identifier or file, as the driver's own."""
    module = name.replace("-", "_")
    forms = {
        "Acme": "".join(part.capitalize() for part in name.split("-")),
        "gpusvm_acme": f"gpusvm_{module}",
        "_acme": f"_{module}",
        "acme_": f"{module}_",
        "acme": name,
    }
    return re.sub("|".join(forms), lambda found: forms[found[0]], text)
