"""A VM that is closed while others use it: nothing of it is used, queued or run afterwards."""

import re

import pytest
from gpusvm.conformance.mutants import load
from gpusvm.drm import migrate_to_devmem
from gpusvm.errors import KernelError, LateWorkError, LockdepError, ModelError
from gpusvm.explore import random_walk
from gpusvm.kernel import Work, is_freed
from gpusvm.mm import Geometry
from gpusvm.testing import Bench
from gpusvm_xe.plugin import INFO
from gpusvm_xe.vm import XeVm

SCHEDULES = 12


def _bench(choices=None):
    return Bench(
        "xe", drivers={"xe": INFO}, vram_bytes=32 << 12, geometry=Geometry(pmd_order=2), mode="explored",
        choices=choices, quirks="fixed", thp="never",
    )  # fmt: skip


def _program(*names):
    def program(choices):
        b = _bench(choices)
        kernel, addr = b.kernel, b.map(4 << 12)
        b.cpu_write(addr, 4)
        b.gpu_write(addr, 4)
        tasks = {"munmap": lambda: b.mm.munmap(addr, 4 << 12), "close": b.vm.close, "fault": lambda: b.fault(addr)}
        running = [kernel.spawn(tasks[name], name=name) for name in names]
        for task in running:
            task.join()
        b.close()

    return program


def _plain(message):
    """Leave line numbers out."""
    return re.sub(r"(\.py):\d+", r"\1", str(message))


@pytest.mark.parametrize("tasks", [("munmap", "close"), ("fault", "close"), ("munmap", "fault", "close")])
def test_a_vm_may_be_closed_at_any_time(tasks):
    assert list(random_walk(_program(*tasks), schedules=SCHEDULES)) == []


def _finds(program, message):
    """Walk until an error with this message is found."""
    walk = random_walk(program, schedules=200)
    return any(_plain(finding.error) == message for finding in walk)


def test_xe_02_a_collector_that_is_flushed_and_not_disabled_outlives_its_vm():
    """Between the flush and the end of the VM a notifier queues the work again."""
    with load("XE-02").active():
        assert _finds(
            _program("munmap", "close"),
            "late work: task 'close' frees XeVm at gpusvm_xe/vm.py, while its work 'xe_svm_garbage_collector' runs in "
            "task 'kworker/xe_page_fault_work_queue:0' (queued by task 'munmap' at gpusvm_xe/garbage.py)",
        )


def _populate(monkeypatch, afterwards):
    """Populate, and do something when the pages have arrived and the object is still locked."""
    b = _bench()
    addr = b.map(4 << 12)
    b.cpu_write(addr, 4)

    def then(devmem, *how):
        moved = migrate_to_devmem(devmem, *how)
        afterwards(b, addr)
        return moved

    with monkeypatch.context() as patch:
        patch.setattr("gpusvm_xe.pagemap.migrate_to_devmem", then)
        b.vm.populate(addr, addr + (4 << 12))
    b.close()


def test_xe_01_the_object_goes_with_its_last_page_while_it_is_locked(monkeypatch):
    def home(b, addr):
        b.kernel.spawn(b.cpu_write, addr, 4, name="cpu").join()
        b.kernel.sleep_ns(1_000_000)  # the worker puts the object

    _populate(monkeypatch, home)
    with load("XE-01").active(), pytest.raises(LockdepError) as raised:
        _populate(monkeypatch, home)
    assert _plain(raised.value) == (
        "held lock freed: task 'kworker/bo_put_async:0' frees Bo at drm/bo.py, while task 'main' holds its "
        "mutex 'dma_resv'"
    )


def test_a_fault_worker_that_holds_no_reference_uses_a_freed_vm(monkeypatch):
    """XE-16's kind: the worker has found the VM, which is closed before the worker is done with it."""
    put = XeVm.put
    monkeypatch.setattr(XeVm, "get", lambda *_: None)
    monkeypatch.setattr(XeVm, "put", lambda self, holder: put(self, holder) if holder == "file" else None)
    assert _finds(
        _program("fault", "close"),
        "held lock freed: task 'close' frees XeVm at gpusvm_xe/vm.py, while task "
        "'kworker/xe_page_fault_work_queue:0' holds its rwsem 'xe_vm_lock'",
    )


def test_the_handle_stays_when_the_vm_is_gone():
    b = _bench()
    addr = b.map(4 << 12)
    b.vm.close()
    assert is_freed(b.vm)
    assert b.vm.closed
    b.vm.close()
    with pytest.raises(KernelError) as caught:
        b.vm.populate(addr, addr + 4096)
    assert str(caught.value) == "-ENOENT: the address space 0 is closed"
    assert b.fault(addr).errno == 22
    b.close()


def test_a_fault_after_the_end_of_the_device_is_late():
    b = _bench()
    addr, source = b.map(4 << 12), b.vm.faults
    b.close()
    fault = type("Fault", (), {"addr": addr, "inst": 0})()
    with pytest.raises(LateWorkError) as caught:
        source.submit([fault])
    assert _plain(caught.value) == (
        f"late work: task 'main' submits a fault on {addr:#x} to queue 0 at driver/source.py, "
        "after the device has stopped its fault workers"
    )


def test_a_work_left_behind_is_found_at_the_end():
    b = _bench()
    b.driver.destroy_wq.queue_delayed(Work(int, "left"), 1 << 40)
    with pytest.raises(ModelError) as caught:
        b.close()
    assert str(caught.value) == "late work: all owners have ended\n  timer 'left' is armed"


def test_closing_unmaps_everything_before_anything_is_removed():
    """xe_vm_close: the page tables are cleared and every TLB told under the notifier lock, if there is a device."""
    b = _bench()
    addr = b.map(4 << 12)
    b.cpu_write(addr, 4)
    b.gpu_write(addr, 4)
    b.kernel.tracer.on = True
    b.vm.close()
    assert [event[3:] for event in b.kernel.tracer.events if event[2] == "tlb_invalidate"] == [
        ("gpu0 gt0", 0, 1 << 48),
        ("gpu0 gt1", 0, 1 << 48),
    ]
    assert b.mapped_pages(addr, 4) == 0
    b.close()


def test_closing_tells_no_tlb_of_a_device_that_is_gone():
    b = _bench()
    b.driver.unplug()
    b.kernel.tracer.on = True
    b.vm.close()
    assert [event for event in b.kernel.tracer.events if event[2] == "tlb_invalidate"] == []
    b.close()
