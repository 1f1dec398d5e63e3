"""Know which elements of an array are read and written: the struct pages of a machine, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpusvm.explore.watch_log import LOG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["WatchedArray", "WatchedView"]


class WatchedArray(np.ndarray[Any, Any]):
    """Be an array of one dimension that logs the positions of each access; what is read from it is a plain array."""

    plain: np.ndarray[Any, Any]

    @classmethod
    def of(cls, array: np.ndarray[Any, Any]) -> WatchedArray:
        watched = array.view(cls)
        watched.plain = array
        return watched

    def __array_finalize__(self, other: Any) -> None:
        if isinstance(other, WatchedArray):
            self.plain = other.plain

    def _read(self, index: Any) -> None:
        if LOG.on:
            LOG.reads.update(self._keys(index))

    def _written(self, index: Any) -> None:
        if LOG.on:
            LOG.writes.update(self._keys(index))

    def _keys(self, index: Any) -> Iterable[tuple[int, int]]:
        me = id(self)
        if isinstance(index, int | np.integer):
            return ((me, int(index)),)
        if isinstance(index, slice):
            where: Iterable[int] = range(*index.indices(len(self)))
        else:
            chosen = np.asarray(index)
            where = np.flatnonzero(chosen).tolist() if chosen.dtype == bool else chosen.ravel().tolist()
        return [(me, i) for i in where]

    def __getitem__(self, index: Any) -> Any:
        if LOG.on:
            self._read(index)
        return np.ndarray.__getitem__(self.plain, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._written(index)
        np.ndarray.__setitem__(self.plain, index, value)

    def __iter__(self) -> Iterator[Any]:
        self._read(slice(None))
        return iter(self.plain)

    def take(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        self._read(indices)
        return self.plain.take(indices, *args, **kwargs)

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        self._read(slice(None))
        return self.plain.copy(*args, **kwargs)

    def tolist(self) -> Any:
        self._read(slice(None))
        return self.plain.tolist()

    def nonzero(self) -> Any:
        self._read(slice(None))
        return self.plain.nonzero()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = []
        for each in inputs:
            if isinstance(each, WatchedArray):
                each._read(slice(None))
            plain.append(each.plain if isinstance(each, WatchedArray) else each)
        if "out" in kwargs:
            for each in kwargs["out"]:
                if isinstance(each, WatchedArray):
                    each._written(slice(None))
            kwargs["out"] = tuple(each.plain if isinstance(each, WatchedArray) else each for each in kwargs["out"])
        return getattr(ufunc, method)(*plain, **kwargs)


class WatchedView:
    """Be the memoryview of a `WatchedArray`."""

    __slots__ = ("array", "view")

    def __init__(self, view: memoryview) -> None:
        self.array: WatchedArray = view.obj  # type: ignore[assignment]  # the only arrays it is made for
        self.view = view

    def __getitem__(self, i: Any) -> Any:
        if LOG.on:
            self.array._read(i)
        return self.view[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        if LOG.on:
            self.array._written(i)
        self.view[i] = value

    def __len__(self) -> int:
        return len(self.view)
