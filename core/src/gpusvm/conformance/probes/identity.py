"""S38 to S45: whose pages are whose, and what a driver may know about them."""

import random
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Final

import numpy as np

from gpusvm.check import Checker
from gpusvm.conformance.probes.probe import Lab, NotApplicableError, applies, probe
from gpusvm.conformance.scene import (
    ELSEWHERE,
    PAGE,
    PMD,
    PMD_PAGES,
    able_to_do_atomics,
    able_to_populate,
    both,
    on_device,
    populated,
    told,
    written,
)
from gpusvm.errors import CpuSignal, ModelError
from gpusvm.mm import Geometry
from gpusvm.mm.api import HMM_PFN_VALID, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE, HmmRange, MmuNotifierRange

_MIB: Final = 1 << 20


class _Deaf:
    """Watch an address range without caring what happens to it."""

    def invalidate(self, sub: object, range_: MmuNotifierRange, cur_seq: int) -> bool:
        return True


@probe(
    "S38",
    "a page of another owner in a snapshot of the process",
    reference="hmm_vma_handle_pte: pgmap owner",
)
def _foreign_page(lab: Lab) -> str:
    bench, _ = on_device(lab, hardware="dual")  # a device may have no pagemap before
    bench.vm = bench.vms[1]
    addr = populated(bench)
    memory = bench.memory
    sub = memory.mmu_interval_notifier_insert(bench.mm, addr, PMD, _Deaf())
    words = np.zeros(1, np.uint64)
    with bench.mm.mmap_lock.read():
        memory.hmm_range_fault(
            HmmRange(
                notifier=sub,
                start=addr,
                end=addr + PAGE,
                hmm_pfns=words,
                dev_private_owner=bench.driver.dev_pagemaps()[0].owner,
                notifier_seq=memory.mmu_interval_read_begin(sub),
            )
        )
    memory.mmu_interval_notifier_remove(sub)
    if int(words[0]) & HMM_PFN_VALID:
        return "visible: the devices have one owner"
    return "invisible"


@probe(
    "S39",
    "what a device page leads to as long as it is in use, and once it is free",
    reference="Documentation/gpu/rfc/gpusvm.rst; nouveau_dmem_folio_free and dmirror_devmem_free: zone_device_data",
)
def _leads_to(lab: Lab) -> str:
    bench, addr = on_device(lab, thp="never")
    table, memory = bench.mm.page_table, bench.memory
    pfns = [table.entry(addr + i * PAGE).pfn for i in range(PMD_PAGES)]
    before = [memory.zone_device_data(pfn) for pfn in pfns]
    bench.gpu_read(addr, 8)
    bench.mm.fork("child").mmput()
    bench.mm.mprotect(addr, 8 * PAGE, PROT_READ)
    bench.mm.mremap(addr, PMD, PMD, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=ELSEWHERE)
    bench.kernel.settle()
    after = [memory.zone_device_data(pfn) for pfn in pfns]
    if bench.device_pages(ELSEWHERE, PMD_PAGES) != PMD_PAGES:
        raise ModelError("a page left the device, and nobody wanted it")
    stable = all(a is b for a, b in zip(after, before, strict=True))
    bench.mm.munmap(ELSEWHERE, PMD)
    bench.kernel.settle()
    # Whatever the kernel leaves in the field, only what a driver puts there is of use to it.
    free = [memory.zone_device_data(pfn) for pfn in pfns]
    listed = all(each is not None and each is not old for each, old in zip(free, after, strict=True))
    return f"{'always the same' if stable else 'something else later'}, then {'a list' if listed else 'nothing'}"


@probe(
    "S40",
    "device memory whose mapping is moved to another address",
    reference="Documentation/gpu/rfc/gpusvm.rst: no physical to virtual back pointer",
)
def _moved_mapping(lab: Lab) -> str:
    bench, addr = on_device(lab, thp="never")
    to = ELSEWHERE
    bench.mm.mremap(addr, PMD, PMD, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=to)
    kept = bench.device_pages(to, PMD_PAGES)
    try:
        bench.cpu_read(to, PMD_PAGES)  # checked against what was written
    except CpuSignal as signal:
        return f"lost: a CPU that touches it gets {str(signal).split(maxsplit=1)[0]}"
    home = PMD_PAGES - bench.device_pages(to, PMD_PAGES)
    if kept != PMD_PAGES:
        return f"{kept} of {PMD_PAGES} pages stay on the device"
    return "found at the new address" if home == PMD_PAGES else f"{home} of {PMD_PAGES} pages come home"


@probe(
    "S41",
    "pagemaps as device memory grows to 300 MiB",
    reference="xe_pagemap_create; nouveau_dmem_chunk_alloc; dmirror_allocate_chunk",
    capability="device_memory",
    shows=applies,
)
def _pagemaps(lab: Lab) -> str:
    bench, _ = on_device(lab, vram_bytes=1024 * _MIB)
    before = len(bench.driver.dev_pagemaps())
    rest = bench.map(300 * _MIB)
    bench.cpu_write(rest, 300 * _MIB // PAGE)
    bench.vm.populate(rest, rest + 300 * _MIB)
    more = len(bench.driver.dev_pagemaps()) - before
    return f"{more} more" if more else "as many as before"


@probe(
    "S42",
    "owners of the pages of two devices",
    reference="drm_pagemap_acquire_owner; nouveau_dmem_chunk_alloc; dmirror_allocate_chunk: pagemap.owner",
    capability="multi_device_p2p",
    shows=lambda seen: "one" in seen if applies(seen) else None,
)
def _owners(lab: Lab) -> str:
    found = [{1: "one", 2: "two"}[len(set(_groups(lab, hardware, (0, 1))))] for hardware in ("dual", "dual-p2p")]
    return both(found, "{} without a path, {} with one")


@probe(
    "S43",
    "who shares an owner, of three devices in a row of which the outer ones have no path to each other",
    reference="drm_pagemap_acquire_owner: the first group all of whose members can be reached",
)
def _order_of_joining(lab: Lab) -> str:
    found = {order: _groups(lab, "triple-p2p", order) for order in permutations(range(3))}
    outer = {order: [each for each in order if each != 1] for order in found}
    if all(len(set(owners)) == len(owners) for owners in found.values()):
        return "nobody"
    if all(len(set(owners)) == 1 for owners in found.values()):
        return "all"
    if all(owners[1] == owners[outer[order][0]] != owners[outer[order][1]] for order, owners in found.items()):
        return "the middle one and the outer one that came first"
    return "; ".join(f"{order}: {owners}" for order, owners in found.items())


def _groups(lab: Lab, hardware: str, order: Sequence[int]) -> list[int]:
    """Let devices come into use in an order; for each a number that is alike for those with one owner."""
    bench = lab.bench(hardware=hardware, opened=order)
    for index in order:
        bench.vm = bench.vms[index]
        populated(bench)
    return [id(driver.dev_pagemaps()[0].owner) for driver in bench.machine.drivers]


@probe(
    "S44",
    "TLB flush of an invalidation that cuts several mappings",
    reference="xe_svm_range_notifier_event_begin; normalize_invalidation_range",
)
def _flush_covers(lab: Lab) -> str:
    cuts = 0
    for seed in range(8):
        bench = lab.bench(thp="never")
        rng = random.Random(seed)  # noqa: S311 - to be the same every time
        addr = written(bench, 3 * PMD_PAGES)
        for page in range(0, 3 * PMD_PAGES, 256):
            bench.gpu_read(addr + page * PAGE)
        vpn = addr // PAGE
        before = bench.vm.page_table.perms(vpn, vpn + 3 * PMD_PAGES) != 0
        first = rng.randrange(3 * PMD_PAGES - 1)
        pages = rng.randrange(1, 3 * PMD_PAGES - first)
        with told(bench, "tlb_invalidate") as flushes:
            bench.mm.munmap(addr + first * PAGE, pages * PAGE)
        after = bench.vm.page_table.perms(vpn, vpn + 3 * PMD_PAGES) != 0
        lost = np.flatnonzero(before & ~after) + vpn
        if not flushes and len(lost):
            return "there is no TLB"
        for page in lost.tolist():
            # An empty one stands for everything.
            if not any(start == end or start <= page * PAGE < end for _, start, end in flushes):
                return "misses one of them"
        cuts += bool(len(lost))
    return "covers all of them" if cuts else "nothing was cut"


@probe(
    "S45",
    "what reads find after random accesses, migrations, evictions, unmaps and sleep",
    reference="all: I-DATA",
)
def _integrity(lab: Lab) -> str:
    can_populate, can_do_atomics = _can(able_to_populate, lab), _can(able_to_do_atomics, lab)
    spoilt: set[str] = set()
    for seed in range(3):
        bench = lab.bench(geometry=Geometry(pmd_order=4), vram_bytes=256 * PAGE, thp=("always", "never")[seed % 2])
        checker = Checker.of(bench.memory)  # one place is authoritative, and no mapping leads to what was freed
        rng = random.Random(seed)  # noqa: S311 - to be the same every time
        evict = getattr(bench.driver, "evict", None)
        pages = 24
        addr = bench.map(pages * PAGE)
        for _ in range(60):
            first = rng.randrange(pages)
            count = rng.randrange(1, min(8, pages - first) + 1)
            at = addr + first * PAGE
            match rng.randrange(10):
                case 0 | 1:
                    bench.cpu_write(at, count)
                case 2:
                    bench.cpu_read(at, count)
                case 3:
                    bench.gpu_read(at, count)
                case 4:
                    bench.gpu_write(at, count)
                case 5 if can_populate:
                    bench.vm.populate(at, at + count * PAGE)
                case 6 if can_do_atomics:
                    bench.gpu_atomic(at, count)
                case 7 if evict is not None:
                    evict()
                case 8:
                    bench.mm.munmap(at, count * PAGE)
                    bench.mm.mmap(at, count * PAGE, PROT_READ | PROT_WRITE)
                case 9:
                    bench.machine.sleep(1)
        bench.cpu_read(addr, pages)
        bench.kernel.settle()
        checker.check_quiescent()
        contents = bench.memory.contents
        if contents.mismatch_count:
            raise ModelError(f"seed {seed}: {contents.mismatches[0]}")
        spoilt |= set(contents.known)
    return f"what was written before, by {', '.join(sorted(spoilt))}" if spoilt else "always what was written last"


def _can(do: Callable[[Lab], object], lab: Lab) -> bool:
    try:
        do(lab)
    except NotApplicableError:
        return False
    return True
