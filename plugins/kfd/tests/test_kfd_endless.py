"""A CPU's fault on memory that no range of kfd's knows to be on the device."""

import pytest
from gpusvm.errors import LivelockError
from gpusvm.mm import Geometry
from gpusvm.mm.api import MREMAP_FIXED, MREMAP_MAYMOVE
from gpusvm.testing import Bench
from gpusvm_kfd.info import INFO

PAGE = 4096


def test_a_fault_that_mends_nothing_ends_after_as_many_tries_as_are_allowed():
    bench = Bench("kfd", drivers={"kfd": INFO}, thp="never", geometry=Geometry(pmd_order=4))
    bench.memory.cpu_faults_max = 1000
    addr = bench.map(64 * PAGE)
    bench.gpu_write(addr, 16)
    to = addr + 16 * PAGE
    bench.mm.mremap(addr, 16 * PAGE, 16 * PAGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED, new_addr=to)
    bench.vm.populate(to, to + 16 * PAGE)
    with pytest.raises(LivelockError) as caught:
        bench.cpu_read(to, 16)
    assert str(caught.value) == (
        f"a CPU faults on page {to // PAGE:#x} of 'bench' for ever: 1,000 times in a row the driver says that the page "
        "may be tried again, and has not moved it"
    )
    bench.kernel.close()
