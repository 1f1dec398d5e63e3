"""Give checks small machines: a block of 16 pages, 2,048 pages of RAM, 256 of VRAM, so that one boots in a millisecond.

What a rule says of a block holds for one of 16 pages as for one of 512.
"""

from typing import TYPE_CHECKING, Any, Final

from gpusvm.mm import Geometry

if TYPE_CHECKING:
    from gpusvm.conformance.suite import Lab
    from gpusvm.testing import Bench

__all__ = ["BLOCK", "BLOCK_PAGES", "PAGE", "RAM_PAGES", "VRAM_PAGES", "small"]

PAGE: Final = 4096
BLOCK_PAGES: Final = 16
BLOCK: Final = BLOCK_PAGES * PAGE
RAM_PAGES: Final = 2048
VRAM_PAGES: Final = 256

_FAULTS_MAX: Final = 50_000
_RESTARTS_MAX: Final = VRAM_PAGES
_GEOMETRY: Final = Geometry(pmd_order=4)


def small(
    lab: "Lab",
    *,
    vram_pages: int = VRAM_PAGES,
    ram_pages: int = RAM_PAGES,
    thp: str = "madvise",
    **options: Any,
) -> "Bench":
    """Boot a small machine with the driver that is asked; huge pages are what is advised (`thp`).

    A CPU that faults on one page without an end is a LivelockError, after more faults than fit into a timeslice; a
    fault of the GPU that has begun again as often as the device has pages has no end either.
    """
    vram, ram = vram_pages * PAGE, ram_pages * PAGE
    bench = lab.bench(geometry=_GEOMETRY, vram_bytes=vram, ram_bytes=ram, thp=thp, **options)
    bench.memory.cpu_faults_max = _FAULTS_MAX
    bench.kernel.restarts_max = _RESTARTS_MAX
    return bench
