"""Name places in files by their packages, which is the same wherever those are installed."""

from pathlib import Path

__all__ = ["place"]


def place(filename: str, line: int | None) -> str:
    """Return ``package/module.py:LINE``; of a file that lies in no package, its name."""
    path = Path(filename)
    parts = [path.name]
    while (path.parent / "__init__.py").is_file():
        path = path.parent
        parts.insert(0, path.name)
    return f"{'/'.join(parts)}:{line}"
