"""drm/ runs on another mm, one without page tables: a live one has to fit later."""

import ast
from pathlib import Path

import gpusvm.drm
from gpusvm.mm.api import MMU_NOTIFY_CLEAR, MMU_NOTIFY_MIGRATE

A = 0x10000000  # page 0x10000


def text(stages):
    return " ".join(stages)


def test_drm_imports_nothing_of_the_mm_but_its_api():
    for path in Path(gpusvm.drm.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gpusvm."):
                assert (
                    node.module.split(".")[1] in {"drm", "kernel", "signatures", "errors"}
                    or node.module == "gpusvm.mm.api"
                ), path


def test_a_fault_migrates_a_range_and_a_cpu_touch_brings_it_home(trivial):
    machine = trivial()
    device, file, mm = machine.devices[0], machine.files[0], machine.mm
    mm.mmap(A, 32)
    machine.memory.write(mm, A, range(1, 33))
    assert text(file.fault(A + 0x3000)) == "rng(10000,10010,mig) pop(0) get(0) map(rw,00*16)"
    assert device.in_use == 16
    assert device.copies == [("to_devmem", 16, 16)]
    assert machine.memory.page(file.mapped_pfn(A + 0x5000)).token == 6
    assert machine.memory.read(mm, A + 0x5000, 1) == [6]
    assert device.in_use == 0
    assert (device.allocated, device.released) == (1, 1)
    assert device.copies[1:] == [("to_ram", 16, 16)]
    assert machine.memory.read(mm, A, 32) == list(range(1, 33))
    assert file.map_text(file.find(A)) == "map(none)"
    file.close()
    machine.files = []
    assert machine.kernel.ledger.entries() == [
        ("drm_dev", "'driver'", 1),
        ("drm_dev", "'drm_pagemap'", 1),
        ("dpagemap", "'driver'", 1),
    ]


def test_holes_read_as_zero(trivial):
    machine = trivial()
    file, mm = machine.files[0], machine.mm
    mm.mmap(A, 16)
    machine.memory.write(mm, A + 0x2000, [5, 6])
    assert text(file.fault(A)) == "rng(10000,10010,mig) pop(0) get(0) map(rw,00*16)"
    assert machine.memory.read(mm, A, 5) == [0, 0, 5, 6, 0]


def test_eviction_goes_by_the_pages_and_needs_no_vma(trivial):
    machine = trivial()
    device, file, mm = machine.devices[0], machine.files[0], machine.mm
    mm.mmap(A, 16)
    machine.memory.write(mm, A, range(16))
    file.fault(A)
    machine.memory.events.clear()
    device.evict()
    assert device.in_use == 0
    assert machine.memory.events == [(MMU_NOTIFY_CLEAR, 0x10000 + i, 0x10001 + i) for i in range(16)]
    assert machine.memory.read(mm, A, 16) == list(range(16))


def test_a_peer_of_the_same_owner_gets_the_pages_pushed(trivial):
    machine = trivial(devices=2)
    (a, b), (file_a, file_b), mm = machine.devices, machine.files, machine.mm
    mm.mmap(A, 16)
    machine.memory.write(mm, A, range(16))
    file_a.fault(A)
    assert text(file_b.fault(A, migrate=False)) == "rng(10000,10010,mig) get(0) map(rw,00*16)"
    assert file_b.find(A).pages.dpagemap is a.dpagemap
    machine.memory.events.clear()
    assert text(file_b.fault(A)) == "rng(10000,10010,mig) pop(0) get(0) map(rw,10*16)"
    assert [event for event, *_ in machine.memory.events] == [MMU_NOTIFY_MIGRATE]
    assert (a.in_use, b.in_use) == (0, 16)
    assert a.copies[1:] == [("to_ram", 16, 16)]
    assert b.copies == []
    assert (a.maps, b.maps) == (0, 16)
    assert machine.memory.read(mm, A, 16) == list(range(16))


def test_a_stranger_sends_the_pages_home_first(trivial):
    machine = trivial(devices=2, same_owner=False)
    (a, b), (file_a, file_b), mm = machine.devices, machine.files, machine.mm
    mm.mmap(A, 16)
    machine.memory.write(mm, A, range(16))
    file_a.fault(A)
    assert file_b.populate(A, 16) == -16
    assert (a.in_use, b.in_use) == (16, 0)
    assert text(file_b.fault(A, migrate=False)) == "rng(10000,10010,mig) get(0) map(rw,s0*16)"
    assert a.in_use == 0


def test_a_failed_copy_leaves_everything_where_it_was(trivial):
    machine = trivial()
    device, file, mm = machine.devices[0], machine.files[0], machine.mm
    mm.mmap(A, 16)
    machine.memory.write(mm, A, range(16))
    device.fail["to_devmem"] = 1
    assert text(file.fault(A)) == "rng(10000,10010,mig) pop(-5) get(0) map(rw,s0*16)"
    assert device.in_use == 0
    device.fail["pfn"] = 1
    assert file.populate(A, 16) == -12
    assert (device.allocated, device.released) == (2, 2)
    assert machine.memory.read(mm, A, 16) == list(range(16))
    assert all(not page.locked for page in machine.memory.pages)


def test_partial_munmap_leaves_the_pages_behind_the_hole_on_the_device(trivial):
    machine = trivial()
    device, file, mm = machine.devices[0], machine.files[0], machine.mm
    mm.mmap(A, 16)
    machine.memory.write(mm, A, range(16))
    file.fault(A)
    mm.munmap(A + 0x4000, 2)
    assert file.find(A).unmapped
    assert text(file.fault(A, migrate=False)) == "rng(10000,10001,mig) get(0) map(rw,s0*1)"
    assert device.in_use == 16
    assert machine.memory.read(mm, A + 0x6000, 1) == [6]
    assert device.in_use == 0
