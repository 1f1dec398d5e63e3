"""kernel/module/main.c, as of Linux 7.3.4: the code of a driver, which stays as long as anybody holds it."""

from __future__ import annotations

from errno import EAGAIN, EBUSY
from typing import TYPE_CHECKING, Literal

from gpusvm.errors import KernelError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpusvm.kernel.core import Kernel

__all__ = ["Module"]


class Module:
    """Be one module (struct module), loaded as long as it is "live".

    Whoever may call into it later holds it: every open file (fops_get), every active drm_pagemap. References are in the
    ledger as "module", each under its holder. `exit` is what the module does at its end; None: it has no such function
    and stays.
    """

    __slots__ = ("_exit", "_kernel", "name", "refcount", "state")

    def __init__(self, kernel: Kernel, name: str, *, exit: Callable[[], object] | None = None) -> None:
        self.name = name
        self.state: Literal["live", "going", "gone"] = "live"
        self.refcount = 0  # module_refcount: without the one that the kernel keeps for being loaded
        self._exit = exit
        self._kernel = kernel

    def __repr__(self) -> str:
        return f"<Module {self.name!r}>"

    def try_get(self, holder: object) -> bool:
        """Hold the module; False once its end has begun (try_module_get)."""
        self._kernel.touch((self, "refcnt"))
        if self.state != "live":
            return False
        self.refcount += 1
        self._kernel.ledger.get("module", holder)
        return True

    def put(self, holder: object) -> None:
        """Let go of it (module_put). LedgerError, in a checked kernel, for whoever does not hold it."""
        self._kernel.touch((self, "refcnt"))
        self._kernel.ledger.put("module", holder)
        self.refcount -= 1

    def unload(self) -> None:
        """Remove the module (delete_module, not forced, as rmmod calls it).

        EAGAIN, which is EWOULDBLOCK, while anybody holds it. EBUSY if its end has begun, or it has no exit function.
        """
        self._kernel.touch((self, "refcnt"))
        if self.state != "live":
            raise KernelError(EBUSY, f"{self.name} is going")
        if self._exit is None:
            raise KernelError(EBUSY, f"{self.name} has no exit function")
        if self.refcount:
            raise KernelError(EAGAIN, f"{self.name} is in use, {self.refcount} references")
        self.state = "going"
        try:
            self._exit()
        except KernelError as error:  # an exit function returns nothing
            raise ModelError(f"the exit function of {self.name} failed: {error}") from error
        self.state = "gone"
        self._kernel.free(self)
