"""Count what a run reports, in plain integers."""

import attrs


@attrs.define(kw_only=True)
class Stats:
    """Be the counters of one run; whoever does a thing counts it. Units are in the names; the rest are events.

    What migrates is counted by the mm alone, where a folio has a new place for good (mm/migrate_device.py).
    """

    gpu_faults: int = 0
    cpu_faults: int = 0
    cpu_minor_faults: int = 0
    migrated_to_device_bytes: int = 0
    migrated_to_ram_bytes: int = 0
    remote_bytes: int = 0
    remote_ns: int = 0
    evictions: int = 0
    retries: int = 0
    notifier_events: int = 0
    tlb_invalidations: int = 0
    copies: int = 0
    page_lookups: int = 0  # in an index outside of the pages
    page_lookup_loads: int = 0
