"""Get Debian packages by name through the machine's own package sources, from its own release or a newer one.

An apt of its own is used, with its lists and its cache in the shop: nothing of the machine changes, and it needs no
rights. A package that was got once is kept, with its version and its hash, since archives move on.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from attrs import frozen

from gpusvm.errors import InputError
from gpusvm.realkernel.build.shop import Shop, sha256_of
from gpusvm.realkernel.build.tools import run_tool

__all__ = ["Package", "get_package"]

_APT: Final = Path("/etc/apt")
_OS_RELEASE: Final = Path("/etc/os-release")
_NOTED: Final = "packages.json"
_RELEASES: Final = ("bookworm", "trixie", "forky", "sid")
"""Debian's releases, the oldest first."""


@frozen
class Package:
    """Be one package that is in the shop."""

    name: str
    version: str
    path: Path
    sha256: str


@frozen
class _Source:
    """Be one archive that the machine gets packages from, without the suite: uri, options in brackets, components."""

    uri: str
    options: str
    components: str

    def line(self, suite: str) -> str:
        return f"deb {self.options}{' ' if self.options else ''}{self.uri} {suite} {self.components}"


def get_package(name: str, shop: Shop, *, log: IO[bytes]) -> Package:
    """Return a package, got from the first release that has it, the machine's own first.

    InputError where no source of the machine has it in any release, and for a kept package whose bytes have changed.
    """
    noted = _read_noted(shop)
    if name in noted:
        package = _kept(name, noted[name], shop)
        if package is not None:
            return package
    tried = []
    for suite, sources in _suites():
        if _got(name, suite, sources, shop, log):
            (path,) = shop.packages.glob(f"{name}_*.deb")
            package = Package(name, _version(path), path, sha256_of(path))
            noted[name] = {"version": package.version, "file": path.name, "sha256": package.sha256, "suite": suite}
            (shop.packages / _NOTED).write_text(json.dumps(noted, indent=2) + "\n", "utf-8")
            return package
        tried.append(suite)
    raise InputError(
        f"package {name} is in none of {', '.join(tried)} of this machine's package sources; get it elsewhere, and "
        "name the kernel's source with --kernel PATH"
    )


def _kept(name: str, entry: dict[str, str], shop: Shop) -> Package | None:
    path = shop.packages / entry["file"]
    if not path.is_file():
        return None
    if sha256_of(path) != entry["sha256"]:
        raise InputError(f"{path}: its bytes are not those that were got; delete it, and build again")
    return Package(name, entry["version"], path, entry["sha256"])


def _read_noted(shop: Shop) -> dict[str, Any]:
    path = shop.packages / _NOTED
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _got(name: str, suite: str, sources: list[_Source], shop: Shop, log: IO[bytes]) -> bool:
    """Try one suite; False where it does not exist or has no such package."""
    root = shop.root / "apt" / suite
    for folder in ("lists/partial", "cache/archives/partial", "state"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    listed = root / "sources.list"
    listed.write_text("".join(f"{source.line(suite)}\n" for source in sources), "utf-8")
    apt = [
        "apt-get",
        "-q",
        f"-oDir::Etc::sourcelist={listed}",
        "-oDir::Etc::sourceparts=-",
        f"-oDir::State={root / 'state'}",
        f"-oDir::State::lists={root / 'lists'}",
        "-oDir::State::status=/var/lib/dpkg/status",
        f"-oDir::Cache={root / 'cache'}",
        "-oAPT::Sandbox::User=root",  # the folders belong to whoever builds
        "-oAPT::Get::List-Cleanup=0",
    ]
    try:
        run_tool([*apt, "update"], log=log)
        run_tool([*apt, "download", name], log=log, cwd=shop.packages)
    except InputError:
        return False
    return True


def _version(path: Path) -> str:
    """Read the version out of a file's name, in which apt writes a colon as %3a."""
    return path.name.split("_")[1].replace("%3a", ":")


def _suites() -> Iterator[tuple[str, list[_Source]]]:
    """Yield the machine's release, its backports, and then those of newer releases, each with its archives."""
    release = _codename()
    sources = [source for source, suite in _machine_sources() if suite == release]
    if not sources:
        raise InputError(
            f"{_APT}: expected a package source for {release}, found none; name a source with --kernel PATH"
        )
    newer = _RELEASES[_RELEASES.index(release) :] if release in _RELEASES else (release,)
    for each in newer:
        yield each, sources
        yield f"{each}-backports", sources


def _codename() -> str:
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', _OS_RELEASE.read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise InputError(f"{_OS_RELEASE}: expected VERSION_CODENAME; name the kernel's source with --kernel PATH")
    return found[1]


def _machine_sources() -> Iterator[tuple[_Source, str]]:
    """Yield every archive and suite that apt knows of, in either of its two formats."""
    for path in [_APT / "sources.list", *sorted((_APT / "sources.list.d").glob("*.list"))]:
        if path.is_file():
            yield from _one_line(path.read_text("utf-8"))
    for path in sorted((_APT / "sources.list.d").glob("*.sources")):
        yield from _deb822(path.read_text("utf-8"))


def _one_line(text: str) -> Iterator[tuple[_Source, str]]:
    for found in re.finditer(r"^deb\s+(?:(\[[^\]]*\])\s+)?(\S+)\s+(\S+)\s+(.+)$", text, re.MULTILINE):
        yield _Source(found[2], found[1] or "", found[4].split("#")[0].strip()), found[3]


def _deb822(text: str) -> Iterator[tuple[_Source, str]]:
    for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)):
        fields = dict(re.findall(r"^([A-Za-z-]+):\s*(.+)$", stanza, re.MULTILINE))
        if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes") == "no":
            continue
        key = fields.get("Signed-By", "")
        options = f"[signed-by={key}]" if key.startswith("/") else ""
        for uri in fields.get("URIs", "").split():
            for suite in fields.get("Suites", "").split():
                yield _Source(uri, options, fields.get("Components", "main")), suite
