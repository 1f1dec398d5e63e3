"""An svmm whose file is closed while others use it, and pages that name it."""

import re
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from gpusvm.conformance.mutants import load
from gpusvm.errors import KernelError, UseAfterFreeError
from gpusvm.explore import random_walk
from gpusvm.gpu import READ, WRITE
from gpusvm.kernel import is_freed
from gpusvm.mm import Geometry
from gpusvm.testing import Bench
from gpusvm_nouveau.info import INFO


def _bench(quirks="fixed", choices=None):
    return Bench(
        "nouveau:chunk_bytes=2M", drivers={"nouveau": INFO}, vram_bytes=4 << 20, geometry=Geometry(pmd_order=2),
        mode="explored", choices=choices, quirks=quirks, thp="never",
    )  # fmt: skip


def _program(choices, names=()):
    b = _bench(choices=choices)
    addr = b.map(4 << 12)
    b.cpu_write(addr, 4)
    tasks = {"fault": lambda: b.fault(addr), "close": b.vm.close, "migrate": lambda: _migrate(b, addr)}
    running = [b.kernel.spawn(tasks[name], name=name) for name in names or tasks]
    for task in running:
        task.join()
    b.cpu_read(addr, 4)
    b.close()


def _migrate(b, addr):
    with suppress(KernelError):  # EINVAL: the file is closed
        b.vm.populate(addr, addr + (4 << 12))


def _plain(message):
    """Leave line numbers out."""
    return re.sub(r"(\.py):\d+", r"\1", str(message))


def test_a_file_may_be_closed_at_any_time():
    assert list(random_walk(_program, schedules=12)) == []


def test_nv_04_a_fault_handler_that_is_not_drained_uses_a_freed_svmm():
    program = partial(_program, names=("fault", "close"))
    expected = (
        "use after free: task 'kworker/events:0' reads .mm of NouveauSvmm at gpusvm_nouveau/faults.py; "
        "task 'close' freed it at gpusvm_nouveau/svmm.py"
    )
    assert list(random_walk(program, schedules=12)) == []
    with load("NV-04").active():
        assert any(_plain(finding.error) == expected for finding in random_walk(program, schedules=60))


@pytest.mark.parametrize("quirks", ["as_written", "fixed"])
def test_a_page_that_stays_in_vram_names_the_svmm_that_it_was_migrated_for(quirks):
    b = _bench(quirks)
    addr = b.map(4 << 12)
    b.cpu_write(addr, 4)
    assert b.vm.populate(addr, addr + (4 << 12)) == 4 << 12
    b.vm.close()
    assert is_freed(b.vm) is (quirks == "as_written")
    if quirks == "as_written":
        with pytest.raises(UseAfterFreeError) as caught:
            b.cpu_read(addr)
        assert _plain(caught.value) == (
            "use after free: task 'main' reads .mutex of NouveauSvmm at gpusvm_nouveau/dmem.py; "
            "task 'main' freed it at gpusvm_nouveau/svmm.py"
        )
        b.kernel.close()
        return
    b.cpu_read(addr, 4)
    assert is_freed(b.vm)
    b.close()


@pytest.mark.parametrize("quirks", ["as_written", "fixed"])
def test_the_gpu_and_pages_of_a_process_that_has_ended(quirks):
    b = _bench(quirks)
    addr = b.map(4 << 12)
    b.cpu_write(addr, 4)
    b.gpu_write(addr, 4)
    vpn = np.array([addr >> 12], np.int64)
    write = np.array([READ | WRITE], np.uint8)
    b.mm.exit()
    contents, table = b.memory.contents, b.vm.page_table
    assert table.missing(vpn, write).tolist() == [quirks == "fixed"]
    if quirks == "as_written":
        table.access(vpn, write)  # to a page that is somebody else's by now
        assert set(contents.tainted_pfns.values()) == {"no_release"}
    b.machine.processes.clear()
    b.machine.close(b.process)
    b.close()
    assert contents.mismatch_count == 0
