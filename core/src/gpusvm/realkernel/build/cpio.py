"""Write an initramfs: a gzipped cpio archive in the format "newc" (Documentation/driver-api/early-userspace)."""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import frozen

__all__ = ["Entry", "device", "directory", "file", "text_file", "write_initramfs"]

_S_IFCHR: Final = 0o020000
_S_IFDIR: Final = 0o040000
_S_IFREG: Final = 0o100000


@frozen
class Entry:
    """Be one name in the archive: `mode` with its type, contents of a file, numbers of a device."""

    name: str
    mode: int
    data: bytes = b""
    major: int = 0
    minor: int = 0


def directory(name: str) -> Entry:
    """Return an empty directory."""
    return Entry(name, _S_IFDIR | 0o755)


def file(name: str, source: Path) -> Entry:
    """Return an executable file with the contents of another."""
    return Entry(name, _S_IFREG | 0o755, source.read_bytes())


def text_file(name: str, text: str) -> Entry:
    """Return a file with that text."""
    return Entry(name, _S_IFREG | 0o644, text.encode())


def device(name: str, major: int, minor: int) -> Entry:
    """Return a character device."""
    return Entry(name, _S_IFCHR | 0o600, b"", major, minor)


def write_initramfs(path: Path, entries: Iterable[Entry]) -> None:
    """Write the archive; the same entries, the same bytes."""
    parts = [_encoded(number, entry) for number, entry in enumerate(entries, 1)]
    parts.append(_encoded(0, Entry("TRAILER!!!", 0)))
    pending = path.with_suffix(".pending")
    pending.write_bytes(gzip.compress(b"".join(parts), 6, mtime=0))
    pending.replace(path)


def _encoded(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if entry.mode & _S_IFDIR else 1
    words = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, entry.major, entry.minor, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % word for word in words) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
