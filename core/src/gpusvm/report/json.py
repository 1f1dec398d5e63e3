"""Print JSON, alone on standard output."""

import json
from typing import IO, Any

__all__ = ["print_json"]


def print_json(document: Any, *, file: IO[str] | None = None) -> None:
    """Print a document as JSON, by default on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False), file=file)
