"""What-if knobs of dmirror whose effect is not shown beside what they tune."""

import errno

import attrs
import numpy as np
import pytest
from gpusvm.driver import ACCESS_READ
from gpusvm.driver.spec import read_spec
from gpusvm.errors import KernelError
from gpusvm.machine import Machine, load_topology
from gpusvm.mm.api import MADV_DONTNEED
from gpusvm.plugins import LoadedDriver, Registry
from gpusvm_dmirror.info import INFO
from gpusvm_dmirror.uapi import HMM_DMIRROR_SNAPSHOT, HmmDmirrorCmd

PAGE, MS = 4096, 1_000_000


@pytest.fixture
def disturbed(bench, monkeypatch):
    """Return a bench and an address whose page is dropped 300 ms after each attempt to read it has begun."""

    def make(ms):
        b = bench(f"dmirror:hmm_timeout_ms={ms}", thp="never")
        addr = b.map(4 * PAGE)
        b.cpu_write(addr, 4)
        begun = []
        plain = type(b.memory).mmu_interval_read_begin

        def read_begin(memory, sub):
            seq = plain(memory, sub)
            begun.append(memory.kernel.now_ns)
            memory.kernel.sleep_ns(300 * MS)
            b.mm.madvise(addr, PAGE, MADV_DONTNEED)
            return seq

        monkeypatch.setattr(type(b.memory), "mmu_interval_read_begin", read_begin)
        return b, addr, begun

    return make


TIMES = [(1, 1), (1000, 4), (1600, 6)]


@pytest.mark.parametrize(("ms", "attempts"), TIMES)
def test_a_fault_is_tried_for_as_long_as_it_is_told(disturbed, ms, attempts):
    b, addr, begun = disturbed(ms)
    assert b.fault(addr, ACCESS_READ).errno == errno.EBUSY
    assert len(begun) == attempts


@pytest.mark.parametrize(("ms", "attempts"), TIMES)
def test_so_is_a_snapshot(disturbed, ms, attempts):
    b, addr, begun = disturbed(ms)
    with pytest.raises(KernelError) as caught:
        b.vm.ioctl(HMM_DMIRROR_SNAPSHOT, HmmDmirrorCmd(addr=addr, npages=4, ptr=np.zeros(4, np.uint8)))
    assert str(caught.value) == f"-EBUSY: invalidated for {ms} ms"
    assert len(begun) == attempts


@pytest.mark.parametrize(("spm", "coherent"), [("none", []), ("both", [2, 3])])
def test_memory_of_their_own_makes_the_third_and_fourth_device_coherent(spm, coherent):
    single = load_topology("single")
    topology = attrs.evolve(single, device=tuple(attrs.evolve(single.device[0], name=f"gpu{i}") for i in range(4)))
    spec = read_spec(f"dmirror:spm={spm}", Registry.of_loaded([LoadedDriver(info=INFO)]))
    machine = Machine.boot(topology, [spec] * 4, vram_bytes=1 << 28)
    assert [i for i, driver in enumerate(machine.drivers) if driver.coherent] == coherent
    machine.teardown()


@pytest.mark.parametrize(("way", "through"), [("zone_device_data", {"zone_device_data"}), ("chunk", {"page_pgmap"})])
def test_a_page_leads_to_what_is_behind_it_by_its_word_or_through_its_pagemap(bench, monkeypatch, way, through):
    b = bench(f"dmirror:page_to_bo={way}", thp="never")
    addr = b.map(4 * PAGE)
    b.cpu_write(addr, 4)
    b.vm.populate(addr, addr + 4 * PAGE)
    pfn = b.mm.page_table.entry(addr).pfn
    asked = set()

    def noted(name, plain):
        return lambda memory, pfn: asked.add(name) or plain(memory, pfn)

    for name in ("zone_device_data", "page_pgmap"):
        monkeypatch.setattr(type(b.memory), name, noted(name, getattr(type(b.memory), name)))
    assert b.driver.table_of(pfn).of(pfn) < b.memory.pages.ram_pages
    assert asked == through
    monkeypatch.undo()
    b.cpu_read(addr, 4)
