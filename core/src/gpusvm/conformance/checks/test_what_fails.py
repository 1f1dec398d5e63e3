"""Whatever may fail fails once, at each time that a program passes it: nothing is lost, leaked or left half done.

One check for each program of `conformance/injection.toml` that is for all drivers, but for the longest; `fault` goes
behind an IOMMU as well. A bug that shows at one site hides what else a program meets: with quirks fixed (`--quirks
fixed`) the same failures look for what nobody knows of.
"""

from collections.abc import Callable

from gpusvm.conformance.explored import is_of_the_mm
from gpusvm.conformance.injection import programs, sweep
from gpusvm.conformance.suite import Lab, Profile, check
from gpusvm.explore.scenario import Scenario

# drivers/gpu/drm/drm_pagemap.c and mm/: where the unwinding is that each program is about.
_REFS = {
    "fault": "mm/hmm.c:hmm_range_fault",
    "atomic": "mm/rmap.c:make_device_exclusive",
    "populate": "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_migrate_to_devmem",
    "cpu-fault": "drivers/gpu/drm/drm_pagemap.c:__drm_pagemap_migrate_to_ram",
    "evict": "drivers/gpu/drm/drm_pagemap.c:drm_pagemap_evict_to_ram",
    "fork": "mm/memory.c:copy_nonpresent_pte",
    "munmap": "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_remove",
    "mprotect": "mm/mprotect.c:change_protection",
    "mremap": "mm/mremap.c:move_page_tables",
    "unplug": "drivers/gpu/drm/drm_drv.c:drm_dev_unplug",
    "shutdown": "mm/memremap.c:memunmap_pages",
    "open": "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_init",
    "overcommit": "drivers/gpu/drm/ttm/ttm_bo.c:ttm_bo_evict_alloc",
    "refused": "mm/hmm.c:hmm_vma_walk_hole",
}

_TOO_LONG = frozenset({"story"})  # it goes through what the others do, one after the other: ``gpusvm inject`` runs it


def _make(program: Scenario) -> Callable[[Lab], None]:
    def run(lab: Lab) -> None:
        found = sweep(lab.driver, lab.drivers, quirks=lab.quirks, only=[program.name], lists_code=False)
        broke = [each for each in found.findings if not is_of_the_mm(each.invariant)]
        assert found.failures, "nothing of the program can fail: the driver passes no injection site"
        assert not broke, f"{len(broke)} of {sum(found.failures.values())} failures break something; {broke[0]}"

    family = max((name for name in _REFS if program.name.startswith(name)), key=len)
    profile: Profile = (
        "atomics"
        if "atomics" in program.needs
        else "device-memory"
        if {"explicit_populate", "eviction"} & set(program.needs)
        else "core"
    )
    run.__doc__ = f"Each failure is told or mended, and leaves nothing behind, while {program.about}."
    run.__name__ = f"test_{program.name.replace('-', '_')}"
    run.__qualname__ = run.__name__
    return check(f"failure.{program.name}", since="1.0", profile=profile, requires=program.needs, ref=_REFS[family])(
        run
    )


for _program in programs():
    if not _program.drivers and _program.name not in _TOO_LONG:
        _test = _make(_program)
        globals()[_test.__name__] = _test
del _test
