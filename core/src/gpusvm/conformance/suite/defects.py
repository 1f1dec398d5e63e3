"""Hold what is wrong with the suite itself, apart from what is wrong with a driver."""

from collections.abc import Mapping
from typing import Final

__all__ = ["DEFECTS"]

DEFECTS: Final[Mapping[str, str]] = {}
"""Checks that are known to judge wrongly, by id, each with the reason and where it is discussed: no driver is held to
them, and they are `not-run`.
"""
