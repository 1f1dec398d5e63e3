"""Name places in files by their packages, which is the same wherever those are installed."""

from functools import cache
from pathlib import Path

__all__ = ["place"]


def place(filename: str, line: int | None) -> str:
    """Return ``package/module.py:LINE``; of a file that lies in no package, its name."""
    return f"{_file(filename)}:{line}"


@cache  # hundreds of checks lie in a few dozen files
def _file(filename: str) -> str:
    path = Path(filename)
    parts = [path.name]
    while (path.parent / "__init__.py").is_file():
        path = path.parent
        parts.insert(0, path.name)
    return "/".join(parts)
