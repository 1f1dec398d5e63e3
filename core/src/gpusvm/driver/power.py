"""Be the runtime-PM policy of drivers that have none."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

__all__ = ["AlwaysAwake"]

_NOTHING: Final = nullcontext()


class AlwaysAwake:
    """Do nothing at all: there is no hardware that could sleep (`RuntimePmPolicy`)."""

    def populate(self) -> AbstractContextManager[None]:
        return _NOTHING

    def pages_present(self, bo: Any) -> None: ...

    def pages_gone(self, bo: Any) -> None: ...

    def ioctl(self) -> AbstractContextManager[None]:
        return _NOTHING

    def fault(self) -> AbstractContextManager[None]:
        return _NOTHING

    def prepare(self) -> None: ...

    def suspend(self) -> None: ...

    def resume(self) -> None: ...

    def complete(self) -> None: ...
