"""Mutants of nouveau, and of the window that it shares with others, each by its own trigger."""

from errno import EBUSY

import pytest
from gpusvm.conformance.mutants import load
from gpusvm.errors import CpuSignal, ModelError
from gpusvm.mm import Geometry
from gpusvm.mm.api import PROT_READ, PROT_WRITE
from gpusvm.mm.page import POISON_FREED
from gpusvm.testing import Bench
from gpusvm_nouveau.info import INFO

PAGE = 4096


def _bench():
    return Bench(
        "nouveau:chunk_bytes=2M,hmm_timeout_ms=1", drivers={"nouveau": INFO}, vram_bytes=4 << 20,
        geometry=Geometry(pmd_order=2), mode="explored", quirks="fixed", thp="never",
    )  # fmt: skip


def _on_device():
    b = _bench()
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    assert b.vm.populate(addr, addr + 4 * PAGE) == 4 * PAGE
    return b, addr


def test_nv_01_a_failed_copy_gives_the_process_what_the_page_held_before():
    b, addr = _on_device()
    b.kernel.arm("dma.map")
    with pytest.raises(CpuSignal, match="SIGBUS"):
        b.cpu_read(addr)
    b.cpu_read(addr, 4)
    b.close()
    with load("NV-01").active():
        b, addr = _on_device()
        b.kernel.arm("dma.map")
        b.cpu_read(addr)
        b.kernel.close()
    assert [each.found for each in b.memory.contents.mismatches] == [POISON_FREED]


def test_nv_06_the_device_goes_under_the_pages_of_a_process():
    b, addr = _on_device()
    b.driver.shutdown()
    b.cpu_read(addr, 4)
    b.kernel.close()
    with load("NV-06").active():
        b, addr = _on_device()
        with pytest.raises(ModelError) as raised:
            b.driver.shutdown()
        b.kernel.close()
    assert str(raised.value).startswith(
        "deadlock: nothing can run\n  task 'main' waits for completion 'dev_pagemap done'\n"
    )


def _disturbed(monkeypatch):
    """Fault while another changes the page once, after it has been read."""
    b = _bench()
    addr = b.map(PAGE)
    b.cpu_write(addr)
    walk = b.memory.hmm_range_fault
    begun = b.kernel.now_ns
    walks = []

    def change(hmm_range):
        walk(hmm_range)
        walks.append(hmm_range.notifier_seq)
        if len(walks) == 1:
            b.mm.mmap_lock.up_read()
            b.mm.mprotect(addr, PAGE, PROT_READ)
            b.mm.mprotect(addr, PAGE, PROT_READ | PROT_WRITE)
            b.mm.mmap_lock.down_read()

    with monkeypatch.context() as patch:
        patch.setattr(b.memory, "hmm_range_fault", change)
        answer = b.fault(addr)
    return b, answer, len(walks), b.kernel.now_ns - begun


def test_kf_05_a_sequence_that_is_read_once_is_stale_for_ever(monkeypatch):
    b, answer, walks, _ = _disturbed(monkeypatch)
    assert (answer.errno, walks) == (0, 2)
    b.close()
    with load("KF-05").active():
        b, answer, walks, ns = _disturbed(monkeypatch)
        b.kernel.close()
    assert answer.errno == EBUSY
    assert walks == 1
    assert ns > 1_000_000
