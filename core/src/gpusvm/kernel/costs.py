"""Hold what each charged event costs, as plain attributes for the hot path.

`gpusvm.run.costs` reads these from a cost profile, where every number has its source.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from attrs import fields, frozen

__all__ = ["CopyCost", "Costs"]


class CopyCost(NamedTuple):
    """Say what a copy costs: ``base_ns + per_piece_ns * pieces + ns_per_byte * bytes``."""

    base_ns: int
    per_piece_ns: int
    ns_per_byte: float


@frozen(kw_only=True)
class Costs:
    """List the cost of each event: int fields are ns an event, float fields ns a byte.

    `copies` is keyed by (engine shape, direction), for instance ``("gather", "h2d")``. `assumed` names the events whose
    cost nobody measured or published, so that a run can say how much of its time rests on them; copies are named there
    like ``copy_gather_h2d``.
    """

    # CPU faults
    cpu_fault: int  # on a device-private entry: trap, walk, finding the pagemap; the migration is charged apart
    cpu_minor_fault_4k: int  # first touch of anonymous memory, with allocating and clearing the folio, or a zero page
    cpu_minor_fault_2m: int
    # GPU faults on their way to the handler and back
    gpu_fault_delivery: int  # from the miss to the handler
    fault_buffer_entry: int  # reading and decoding one entry
    gpu_replay: int  # acknowledging a fault, or replaying a batch
    # drm_gpusvm
    range_lookup: int
    range_insert: int
    notifier_callback: int
    get_pages_base: int  # hmm_range_fault and mapping the result
    get_pages_per_entry: int  # one entry is one folio of the range
    # migration: everything but the copy, which waits for its engine (`copy_ns`)
    migrate_setup_base: int
    migrate_setup_per_folio: int
    migrate_pages_per_folio: int
    migrate_finalize_base: int
    migrate_finalize_per_folio: int
    dma_map_per_folio: int
    bo_alloc: int
    page_index_load: int  # a load of a lookup in an index outside of the pages; the next one depends on it
    bo_clear_base: int
    bo_clear_per_byte: float
    # page tables and TLBs
    bind_base: int
    bind_per_pte: int  # one leaf entry, whatever it spans
    tlb_invalidate: int
    zap_per_page: int  # one entry of a CPU's page table, whatever it spans, and freeing its folio
    protect_per_page: int  # one such entry
    # runtime PM
    pm_resume_d3hot: int
    pm_resume_d3cold: int
    pm_suspend: int
    # the CPU's own copies, for each block of memory
    cpu_copy_base: int
    cpu_copy_per_byte: float
    # GPU accesses to memory that stays where it is
    remote_access_latency: int
    remote_ns_per_byte: float
    remote_bytes_per_row: int  # bytes, not ns: what a row of a trace is taken to move
    copies: Mapping[tuple[str, str], CopyCost]
    assumed: frozenset[str]

    @cached_property
    def table(self) -> dict[str, int]:
        """Return event -> ns of every event with a cost of its own, for `Kernel.charge`."""
        return {field.name: cost for field in fields(Costs) if type(cost := getattr(self, field.name)) is int}

    def copy_ns(self, shape: str, direction: str, nbytes: int, pieces: int) -> int:
        """Return the ns of one synchronous copy of `nbytes` in `pieces`, submission and completion included.

        `shape` is ``gather`` or ``per_piece``, `direction` ``h2d``, ``d2h`` or ``d2d``; nothing to copy costs nothing.
        """
        if not nbytes:
            return 0
        base_ns, per_piece_ns, ns_per_byte = self.copies[shape, direction]
        return base_ns + per_piece_ns * pieces + round(ns_per_byte * nbytes)

    def bo_clear_ns(self, nbytes: int) -> int:
        """Return the ns of clearing `nbytes` of device memory by a GPU engine."""
        return self.bo_clear_base + round(self.bo_clear_per_byte * nbytes)

    def remote_ns(self, nbytes: int) -> int:
        """Return the ns that `nbytes` of GPU accesses to system memory occupy the link."""
        return round(self.remote_ns_per_byte * nbytes)
