"""The link between a GPU and system memory: two directions, each busy until the transfers before are through."""

from typing import Final, Protocol

from gpusvm.kernel import Kernel

__all__ = ["D2H", "H2D", "Link", "Power"]

H2D: Final = "h2d"
D2H: Final = "d2h"


class Power(Protocol):
    """Say whether a device has power (`gpusvm.drm.RuntimePm`)."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def is_out(self) -> bool:
        """Tell whether nothing on the device runs: it is suspended, and nobody is about to wake it."""
        ...


class Link:
    """Share one full-duplex link among copy engines and remote accesses.

    `occupy` reserves a direction for some ns behind what is already reserved and returns when it will be through;
    nobody sleeps here. `power` is the device's at its far end, once that is there and if it can sleep.
    """

    def __init__(self, kernel: Kernel, name: str = "link") -> None:
        self.kernel = kernel
        self.name = name
        self.power: Power | None = None
        self._busy_until_ns = {H2D: 0, D2H: 0}

    def occupy(self, direction: str, ns: int) -> int:
        """Reserve `direction` ("h2d" or "d2h") for `ns`, from now or when it is free; the time of the end in ns."""
        return self.occupy_from(direction, self.kernel.now_ns, ns)

    def occupy_from(self, direction: str, start_ns: int, ns: int) -> int:
        """Do so from `start_ns` on."""
        end = max(start_ns, self._busy_until_ns[direction]) + ns
        self._busy_until_ns[direction] = end
        return end
