"""Let Python look for garbage seldom while executions run: most of what it would walk lives as long as the machine."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["seldom_collected"]

# An execution leaves some hundred objects in cycles behind, what lockdep has learned above all.
_THRESHOLDS: Final = (20_000, 20, 100)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Collect seldom within, and of what there is before nothing; afterwards all is as it was."""
    before = gc.get_threshold()
    if gc.get_freeze_count():  # somebody else has set this up
        yield
        return
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
