"""What drm_pagemap_migrate_to_devmem and drm_pagemap_evict_to_ram are refused, one errno after the other.

Whatever it is, the allocation is released, and every page stays where it was.
"""

from errno import EBUSY, EFAULT, ENOMEM, EOPNOTSUPP

import pytest
from gpusvm.drm import Devmem, DrmQuirks, MigrateDetails, evict_to_ram, migrate_to_devmem
from gpusvm.errors import KernelError

PAGE = 4096
FIRST, N = 0x100, 16


def migrate(m, *, device=0, first=FIRST, n=N):
    """Migrate pages without a driver's populate_mm around it; the Devmem."""
    device = m.devices[device]
    allocation = device.alloc(n)
    allocation.devmem = devmem = Devmem(device.drm, m.mm, device, device.dpagemap, n * PAGE, container=allocation)
    with m.mm.mmap_lock.read():
        migrate_to_devmem(devmem, m.mm, first * PAGE, (first + n) * PAGE, MigrateDetails())
    return devmem


def refused(m, call, *args, **kwargs):
    """Return how it is refused."""
    with pytest.raises(KernelError) as caught:
        call(*args, **kwargs)
    return caught.value.errno, str(caught.value)


@pytest.fixture
def written(machine):
    def make(**kwargs):
        m = machine(**kwargs)
        m.mmap(FIRST, N)
        m.write(FIRST, N)
        return m

    return make


def pin(m, pages):
    file = m.files[0]
    file.fault(FIRST * PAGE, migrate=False)
    pfns = [int(file.find(FIRST * PAGE).pages.dma_addr.pfns[page]) for page in pages]
    for pfn in pfns:
        m.memory.folio_get(pfn)
    return pfns


def unpin(m, pfns):
    for pfn in pfns:
        m.memory.folio_put(pfn)


# --- migrate_to_devmem


@pytest.mark.parametrize("op", ["populate_devmem_pfn", "copy_to_devmem", "copy_to_ram"])
def test_each_op_is_required(written, op):
    m = written()
    setattr(m.devices[0], op, None)
    assert refused(m, migrate, m) == (EOPNOTSUPP, f"-EOPNOTSUPP: devmem ops lack {op}")
    delattr(m.devices[0], op)
    assert (m.devices[0].allocated, m.devices[0].released) == (1, 1)
    m.read(FIRST, N)


def test_memory_that_is_not_anonymous_stays(written, monkeypatch):
    m = written()
    vma = m.mm.find_vma(FIRST * PAGE)
    monkeypatch.setattr(type(vma), "is_anonymous", property(lambda _: False))
    assert refused(m, migrate, m) == (EBUSY, "-EBUSY: the VMA at 0x100000 is not anonymous")
    monkeypatch.undo()
    assert (m.devices[0].allocated, m.devices[0].released) == (1, 1)
    m.read(FIRST, N)


def test_nothing_collected_is_ebusy(written):
    m = written()
    pinned = pin(m, range(N))
    assert refused(m, migrate, m) == (EBUSY, "-EBUSY: nothing to migrate in [0x100000, 0x110000)")
    unpin(m, pinned)
    assert (m.devices[0].allocated, m.devices[0].released) == (1, 1)
    m.read(FIRST, N)


def test_what_is_there_in_part_is_ebusy(written):
    m = written()
    kept = migrate(m, n=N // 2)
    assert refused(m, migrate, m) == (EBUSY, "-EBUSY: 8 of 16 pages are there already: fragmentation")
    assert (m.devices[0].allocated, m.devices[0].released, kept.detached.done) == (2, 1, False)
    m.read(FIRST, N)


def test_a_page_that_is_lost_to_a_race_is_ebusy(written):
    m = written()
    device = m.devices[0]
    real = device.copy_to_devmem
    taken = []

    def copy_to_devmem(device_pfns, addrs, fence):
        real(device_pfns, addrs, fence)
        taken.append(int(addrs.pfns[3]))
        m.memory.folio_get(taken[0])

    device.copy_to_devmem = copy_to_devmem
    assert refused(m, migrate, m) == (EBUSY, "-EBUSY: raced while finalizing: 15 of 16 pages moved")
    del device.copy_to_devmem
    unpin(m, taken)
    assert (device.allocated, device.released) == (1, 0)  # fifteen pages are there
    m.read(FIRST, N)
    assert device.released == 1


def test_a_peer_that_does_not_reach_the_new_pages_is_efault(written):
    m = written(devices=2)
    migrate(m)

    def device_map(*args):
        raise KernelError(EFAULT, "no path")

    m.devices[1].device_map = device_map
    assert refused(m, migrate, m, device=1) == (EFAULT, "-EFAULT: no path")
    del m.devices[1].device_map
    assert [device.released for device in m.devices] == [0, 1]
    m.read(FIRST, N)


# --- evict_to_ram


@pytest.mark.parametrize(
    ("variant", "errno", "message"),
    [
        ("as_written", EFAULT, "-EFAULT: the mm is gone"),
        ("fixed", EBUSY, "-EBUSY: the mm is being torn down, and takes its pages with it"),
    ],
)
def test_a_dying_mm_cannot_be_evicted_from(written, monkeypatch, variant, errno, message):
    m = written()
    devmem = migrate(m)
    m.devices[0].dpagemap.quirks = DrmQuirks(evict_dying=variant)
    monkeypatch.setattr(type(m.mm), "mmget_not_zero", lambda _: False)
    assert refused(m, evict_to_ram, devmem) == (errno, message)
    monkeypatch.undo()
    assert m.devices[0].in_use == N
    m.read(FIRST, N)


@pytest.mark.parametrize(
    ("variant", "told"), [("as_written", "-EBUSY: device pages are left after 3 attempts"), ("fixed", None)]
)
def test_what_a_migration_without_a_zdd_left_behind_is_busy_as_written(written, variant, told):
    m = written()
    m.devices[0].dpagemap.quirks = DrmQuirks(not_detached=variant)
    m.kernel.arm("pagemap.zdd")
    left = []
    plain = m.devices[0].devmem_release
    m.devices[0].devmem_release = lambda devmem: (left.append(devmem), plain(devmem))
    assert refused(m, migrate, m)[0] == ENOMEM
    assert m.devices[0].in_use == 0
    if told is None:
        evict_to_ram(left[0])
    else:
        assert refused(m, evict_to_ram, left[0]) == (EBUSY, told)


def test_the_error_of_the_third_attempt_is_told(written):
    m = written()
    devmem = migrate(m)
    device = m.devices[0]
    real = device.populate_devmem_pfn
    attempts = []

    def populate_devmem_pfn(devmem, npages):
        attempts.append(npages)
        raise KernelError(ENOMEM, f"attempt {len(attempts)}")

    device.populate_devmem_pfn = populate_devmem_pfn
    assert refused(m, evict_to_ram, devmem) == (ENOMEM, "-ENOMEM: attempt 3")
    assert attempts == [N] * 3
    device.populate_devmem_pfn = real
    evict_to_ram(devmem)
    assert device.in_use == 0


def test_without_memory_for_the_pages_eviction_is_enomem(written):
    m = written()
    devmem = migrate(m)
    m.kernel.arm("alloc.pages", times=3)
    assert refused(m, evict_to_ram, devmem)[0] == ENOMEM
    assert m.kernel.injector.armed == []
    evict_to_ram(devmem)
    assert m.devices[0].in_use == 0
    m.read(FIRST, N)
