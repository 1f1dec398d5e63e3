"""Each check of the ops of drm_gpusvm and drm_pagemap can fail: with a driver, or a core, that breaks its rule it does,
and without it passes.

A new check of `ops.*` needs a line here, and what breaks its rule in gpusvm.conformance.mutants.ops.
"""

import pytest
from gpusvm.conformance.caught import trial
from gpusvm.conformance.mutants import OPS_BROKEN
from gpusvm.conformance.suite.catalogue import catalogue

FAILS = {
    "pages-in-use": (
        "ops.populate-devmem-pfn.named.small",
        "ops.populate-devmem-pfn.named.huge",
    ),
    "other-pages": ("ops.populate-devmem-pfn.same-again",),
    "copies-elsewhere": (
        "ops.copy-to-devmem.done.small",
        "ops.copy-to-devmem.done.huge",
        "ops.copy-to-devmem.done.every-other",
    ),
    "brings-nothing": (
        "ops.copy-to-ram.done.cpu-fault-small",
        "ops.copy-to-ram.done.cpu-fault-huge",
        "ops.copy-to-ram.done.eviction-small",
        "ops.copy-to-ram.done.eviction-huge",
    ),
    "release-sleeps": (
        "ops.devmem-release.atomic.munmap",
        "ops.devmem-release.atomic.cpu-fault",
    ),
    "one-address": (
        "ops.device-map.rows.small",
        "ops.device-map.rows.huge",
        "ops.device-map.mixture",
        "ops.device-map.peer",
    ),
    "populate-returns": ("ops.populate-mm.called",),
    "needs-a-file": ("ops.populate-mm.no-mirror",),
    "refuses-faults": (
        "ops.error.populate-mm.ebusy-once",
        "ops.error.populate-mm.ebusy-always",
        "ops.error.populate-mm.enomem-once",
        "ops.error.populate-mm.enomem-always",
        "ops.error.populate-mm.enodev-once",
        "ops.error.populate-mm.enodev-always",
        "ops.error.populate-mm.efault-once",
        "ops.error.populate-mm.efault-always",
        "ops.error.populate-mm.einval-once",
        "ops.error.populate-mm.einval-always",
        "ops.error.populate-mm.enoent-once",
        "ops.error.populate-mm.enoent-always",
        "ops.error.populate-mm.eio-once",
        "ops.error.populate-mm.eio-always",
        "ops.error.populate-mm.enospc-once",
        "ops.error.populate-mm.enospc-always",
        "ops.error.populate-mm.eopnotsupp-once",
        "ops.error.populate-mm.eopnotsupp-always",
        "ops.error.fault.populate-devmem-pfn-once",
        "ops.error.fault.populate-devmem-pfn-always",
        "ops.error.fault.copy-to-devmem-once",
        "ops.error.fault.copy-to-devmem-always",
    ),
    "own-errno": (
        "ops.error.request.ebusy",
        "ops.error.request.enomem",
        "ops.error.request.enodev",
        "ops.error.request.efault",
        "ops.error.request.einval",
        "ops.error.request.enoent",
        "ops.error.request.eio",
        "ops.error.request.enospc",
        "ops.error.request.eopnotsupp",
    ),
    "removes-in-notifier": (
        "ops.invalidate.unmaps.munmap",
        "ops.invalidate.unmaps.munmap-page",
        "ops.invalidate.unmaps.mprotect",
        "ops.invalidate.unmaps.dontneed",
    ),
    "keeps-mapping": ("ops.get-pages.valid-stay",),
    "marks-wrongly": (
        "ops.invalidate.set-unmapped.munmap",
        "ops.invalidate.set-unmapped.munmap-page",
        "ops.invalidate.set-unmapped.mprotect",
        "ops.invalidate.set-unmapped.dontneed",
    ),
    "whole-window": ("ops.invalidate.no-range",),
    "no-collector": ("ops.range.collected",),
    "no-driver-lock": ("ops.range.locked",),
    "unplug-unseen": ("ops.populate-mm.unplugged",),
    "no-owner-named": ("ops.migrate-setup.to-device",),
    "home-sigbus": (
        "ops.migrate-to-ram.answered.small",
        "ops.migrate-to-ram.answered.huge",
        "ops.migrate-setup.home",
    ),
    "asks-twice": (
        "ops.populate-devmem-pfn.asked.small",
        "ops.populate-devmem-pfn.asked.huge",
        "ops.populate-devmem-pfn.asked.every-other",
    ),
    "backwards": (
        "ops.copy-to-devmem.rows.small",
        "ops.copy-to-devmem.rows.every-other",
        "ops.copy-to-devmem.holes",
    ),
    "unlocked-copy": (
        "ops.copy-to-devmem.meanwhile.small",
        "ops.copy-to-devmem.meanwhile.huge",
        "ops.copy-to-devmem.meanwhile.every-other",
    ),
    "left-mapped": (
        "ops.copy-to-devmem.mapped.small",
        "ops.copy-to-devmem.mapped.huge",
        "ops.copy-to-devmem.mapped.every-other",
    ),
    "no-fence": ("ops.copy-to-devmem.fence",),
    "one-attempt": (
        "ops.error.evict.populate-devmem-pfn-1",
        "ops.error.evict.populate-devmem-pfn-2",
        "ops.error.evict.populate-devmem-pfn-3",
        "ops.error.evict.copy-to-ram-1",
        "ops.error.evict.copy-to-ram-2",
        "ops.error.evict.copy-to-ram-3",
        "ops.error.evict.locked-page",
    ),
    "no-sigbus": (
        "ops.error.copy-to-ram.cpu-small-after",
        "ops.error.copy-to-ram.cpu-huge-after",
        "ops.error.copy-to-ram.cpu-small-before",
        "ops.error.copy-to-ram.cpu-huge-before",
    ),
    "any-allocation": ("ops.copy-to-ram.own-allocation",),
    "released-twice": ("ops.devmem-release.not-yet",),
    "zdd-leaks": (
        "ops.devmem-release.last-page.cpu-fault-small",
        "ops.devmem-release.last-page.cpu-fault-huge",
        "ops.devmem-release.last-page.eviction-small",
        "ops.devmem-release.last-page.eviction-huge",
        "ops.devmem-release.last-page.munmap-small",
        "ops.devmem-release.last-page.munmap-huge",
        "ops.devmem-release.last-page.dontneed-small",
        "ops.devmem-release.last-page.dontneed-huge",
        "ops.devmem-release.last-page.exit-small",
        "ops.devmem-release.last-page.exit-huge",
        "ops.zdd.references.small",
        "ops.zdd.references.huge",
    ),
    "no-timeslice": ("ops.populate-mm.timeslice",),
    "no-errno": (
        "ops.error.copy-to-devmem.small-after",
        "ops.error.copy-to-devmem.huge-after",
        "ops.error.copy-to-devmem.every-other-after",
        "ops.populate-mm.not-begun.shared-file",
        "ops.populate-mm.not-begun.no-area",
        "ops.populate-mm.not-begun.beyond-its-area",
        "ops.populate-mm.not-begun.in-two-areas",
        "ops.populate-mm.held-pages",
        "ops.error.populate-devmem-pfn.small-before",
        "ops.error.populate-devmem-pfn.small-after",
        "ops.error.populate-devmem-pfn.huge-before",
        "ops.error.populate-devmem-pfn.huge-after",
        "ops.error.populate-devmem-pfn.every-other-before",
        "ops.error.populate-devmem-pfn.every-other-after",
        "ops.error.copy-to-devmem.small-before",
        "ops.error.copy-to-devmem.huge-before",
        "ops.error.copy-to-devmem.every-other-before",
        "ops.error.peer.device-map",
        "ops.error.peer.copy-to-ram",
        "ops.error.peer.populate-devmem-pfn",
    ),
    "find-errno-changed": (
        "ops.range-find.refused.outside",
        "ops.range-find.refused.no-area",
        "ops.range-find.refused.read-only",
        "ops.range-find.refused.registers",
        "ops.range-find.mm-gone",
    ),
    "waits-anyway": (
        "ops.invalidate.called.munmap",
        "ops.invalidate.called.munmap-page",
        "ops.invalidate.called.mprotect",
        "ops.invalidate.called.dontneed",
        "ops.invalidate.non-blockable",
    ),
    "smallest-chunks": (
        "ops.range-find.no-chunk-fits",
        "ops.range-find.size.whole",
        "ops.range-find.size.beside",
        "ops.range-find.pages-present",
    ),
    "largest-chunks": (
        "ops.range-find.size.half",
        "ops.range-find.size.unaligned",
        "ops.range-find.beside-another",
    ),
    "migrates-the-rest": (
        "ops.range-find.migrate-devmem.small",
        "ops.range-find.migrate-devmem.huge",
        "ops.range-find.migrate-devmem.shared",
        "ops.range-find.migrate-devmem.file",
        "ops.range-find.migrate-devmem.hugetlb",
    ),
    "notifier-stays": (
        "ops.range.window",
        "ops.range.end.close",
        "ops.range.end.exit",
    ),
    "allows-mixtures": (
        "ops.get-pages.mixture.device-system",
        "ops.get-pages.mixture.system-device",
        "ops.get-pages.mixture.two-allocations",
        "ops.get-pages.mixture.device-only-half",
        "ops.get-pages.two-pagemaps",
    ),
    "allows-no-mixture": (
        "ops.get-pages.mixture.device-system-allowed",
        "ops.get-pages.mixture.system-device-allowed",
        "ops.get-pages.mixture.two-allocations-allowed",
    ),
    "backwards-rows": (
        "ops.device-map.read-only",
        "ops.get-pages.mixture.device-only",
    ),
    "get-errno-changed": (
        "ops.error.device-map.once",
        "ops.error.device-map.always",
        "ops.get-pages.mixture.device-only-system",
        "ops.get-pages.changed.unmapped-and-there-again",
        "ops.get-pages.changed.unmapped",
        "ops.get-pages.changed.no-access",
        "ops.get-pages.changed.read-only",
        "ops.get-pages.busy",
    ),
    "evict-errno-changed": (
        "ops.range-evict.mm-gone",
        "ops.range-evict.busy",
    ),
    "evict-nothing": ("ops.range-evict.home",),
    "scan-wrong": (
        "ops.scan-mm.unpopulated",
        "ops.scan-mm.system",
        "ops.scan-mm.equal",
        "ops.scan-mm.equal-two",
        "ops.scan-mm.mixed",
        "ops.scan-mm.no-owner",
        "ops.scan-mm.other",
        "ops.scan-mm.mixed-device",
    ),
    "anybodys-pages": ("ops.get-pages.foreign-owner",),
    "others-pages": ("ops.owner.dual",),
    "direction-in": ("ops.copy-to-devmem.rows.huge",),
    "direction-out": (
        "ops.copy-to-ram.rows.eviction-small",
        "ops.copy-to-ram.rows.eviction-huge",
        "ops.copy-to-ram.rows.cpu-fault-small",
        "ops.copy-to-ram.rows.cpu-fault-huge",
    ),
    "counts-nothing": ("ops.populate-mm.whole-hole",),
    "refuses-there": ("ops.populate-mm.not-begun.there-already",),
    "one-round": ("ops.error.device-map.fault",),
    "all-of-it": ("ops.copy-to-ram.within-area",),
    "no-order-fallback": ("ops.copy-to-ram.order-fallback",),
    "always-writes": ("ops.get-pages.read-only",),
    "unmaps-nothing": (
        "ops.device-unmap.paired.munmap",
        "ops.device-unmap.paired.mprotect",
        "ops.device-unmap.paired.dontneed",
        "ops.device-unmap.paired.cpu-fault",
        "ops.device-unmap.paired.close",
    ),
    "peer-maps-for-itself": ("ops.copy-to-ram.peer",),
    "owners-apart": ("ops.owner.dual-p2p",),
    "cache-makes-new": ("ops.cache.one",),
    "cache-keeps-nothing": (
        "ops.cache.inactive",
        "ops.cache.revived",
        "ops.cache.removed",
    ),
    "shrinker-keeps": ("ops.cache.shrunk",),
    "pagemap-unheld": ("ops.cache.pages-keep",),
    "destroys-twice": (
        "ops.cache.unplugged",
        "ops.destroy.last",
    ),
    "mm-unchecked": ("ops.populate-mm.mm-gone",),
}
CHECKS = {check.id: check for check in catalogue() if check.id.startswith("ops.")}


def test_every_check_of_the_ops_is_seen_to_fail_once():
    seen = [name for names in FAILS.values() for name in names]
    assert sorted(seen) == sorted(CHECKS)


def test_whatever_breaks_a_rule_of_the_ops_is_of_use():
    assert list(FAILS) == list(OPS_BROKEN)


@pytest.mark.parametrize("broken", FAILS)
def test_a_check_fails_with_what_breaks_its_rule_and_passes_without(broken):
    names = FAILS[broken]
    found, plain = trial(broken, OPS_BROKEN[broken].driver, [CHECKS[name] for name in names], every=True)
    assert (found.failed, plain.passed) == (names, names)
