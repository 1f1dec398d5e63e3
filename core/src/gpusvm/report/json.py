"""Print JSON, alone on standard output."""

import json
from typing import Any

__all__ = ["print_json"]


def print_json(document: Any) -> None:
    """Print a document as JSON on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False))
