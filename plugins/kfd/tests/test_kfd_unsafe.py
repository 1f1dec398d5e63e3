"""Quirks that end the model where they bite: what it says there."""

import re

import pytest
from gpusvm.errors import LockdepError, ModelError
from gpusvm.mm.api import MADV_DONTNEED
from gpusvm.testing import Bench
from gpusvm_kfd.plugin import INFO

PAGE, PMD = 4096, 2 << 20


def broken(spec):
    """Return a bench that is not torn down: after such an end nothing of it can be trusted."""
    return Bench(spec, drivers={"kfd": INFO}, thp="never")


def test_live_slot_a_page_that_a_child_has_is_made_anew():
    b = broken("kfd:quirk.live_slot=as_written")
    addr = b.map(PMD)
    b.gpu_write(addr, 512)
    b.mm.fork()
    b.memory.madvise(b.mm, addr, PMD, MADV_DONTNEED)
    b.kernel.sleep_ns(3_000_000)
    with pytest.raises(ModelError) as caught:
        b.gpu_write(addr)
    assert str(caught.value) == "zone_device_folios_init of pages in use in Zone(0x410000-0x430000, device)"


@pytest.mark.parametrize("quirk", ["as_written", "fixed"])
def test_non_blockable_the_oom_reaper_waits_for_a_range(quirk):
    b = broken(f"kfd:quirk.non_blockable={quirk}")
    addr = b.map(4 * PAGE)
    b.gpu_write(addr)
    (prange,) = b.vm.process.svms.objects
    if quirk == "as_written":
        with pytest.raises(LockdepError) as caught:
            b.memory.oom_reap_task_mm(b.mm)
        assert re.sub(r":\d+", "", str(caught.value)).splitlines()[0] == (
            "sleeping while atomic: task 'main' is taking mutex 'prange->lock' at gpusvm_kfd/svms.py, "
            "atomic since mm/mmu_notifier.py (context 'preempt_disable')"
        )
        return
    with prange.lock:
        done = []
        b.kernel.spawn(lambda: done.append(b.memory.oom_reap_task_mm(b.mm)), name="oom_reaper").join()
    assert done == [False]
    assert b.memory.oom_reap_task_mm(b.mm)
    assert b.where(addr) == "none"
