"""Have large arrays of zeros of which little is ever touched, so that only that takes memory and time.

`np.zeros` does not do for these: NumPy asks the system for huge pages for what is large, so that one element that is
touched commits 2 MiB, and what malloc has in hand it clears byte by byte. A machine of 16 GiB has two dozen of them.
"""

import mmap
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["zeros"]

_LARGE: Final = 1 << 20
_PRIVATE: Final[int | None] = getattr(mmap, "MAP_PRIVATE", None)


def zeros(nr: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Return `nr` zeros; a page of them is there once it is touched, and no sooner. A forked process has its own."""
    size = nr * np.dtype(dtype).itemsize
    if size < _LARGE or _PRIVATE is None:
        return np.zeros(nr, dtype)
    return np.frombuffer(mmap.mmap(-1, size, flags=_PRIVATE | mmap.MAP_ANONYMOUS), dtype)
