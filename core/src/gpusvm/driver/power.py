"""Be the runtime-PM policy of drivers that have none, and the base of one that changes another."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gpusvm.driver.protocols import RuntimePmPolicy

__all__ = ["AlwaysAwake", "ChangedPm"]

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


class ChangedPm:
    """Do what a driver's own policy does, in whatever a subclass leaves alone: the base of a user's policy."""

    def __init__(self, shipped: "RuntimePmPolicy") -> None:
        self.shipped = shipped

    def populate(self) -> AbstractContextManager[None]:
        return self.shipped.populate()

    def pages_present(self, bo: Any) -> None:
        self.shipped.pages_present(bo)

    def pages_gone(self, bo: Any) -> None:
        self.shipped.pages_gone(bo)

    def ioctl(self) -> AbstractContextManager[None]:
        return self.shipped.ioctl()

    def fault(self) -> AbstractContextManager[None]:
        return self.shipped.fault()

    def prepare(self) -> None:
        self.shipped.prepare()

    def suspend(self) -> None:
        self.shipped.suspend()

    def resume(self) -> None:
        self.shipped.resume()

    def complete(self) -> None:
        self.shipped.complete()
