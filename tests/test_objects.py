"""`objects`: 0 where a driver has a kind of object and made none, null where it has no such kind."""

import pytest
from gpusvm.driver import read_spec
from gpusvm.machine import Machine, load_topology
from gpusvm.plugins import load_drivers
from gpusvm.run.execute import execute
from gpusvm.run.spec import RunSpec

KINDS = {
    "xe": {"pagemap": 1, "bo": 0, "zdd": 0, "range": 0, "notifier": 0},
    "nouveau": {"pagemap": 0, "bo": 0, "notifier": 1},
    "dmirror": {"pagemap": 1, "notifier": 1},
    "kfd": {"pagemap": 1, "bo": 0, "range": 0, "notifier": 1},
    "svmdev": {"pagemap": 1, "bo": 0, "zdd": 0, "range": 0, "notifier": 0},
}


@pytest.mark.parametrize("driver", KINDS)
def test_an_idle_machine_has_the_kinds_of_its_driver(driver: str) -> None:
    machine = Machine.boot(load_topology("single"), [read_spec(driver, load_drivers())], vram_bytes=64 << 20)
    machine.open(machine.process("idle"))
    assert dict(machine.gauges()) == KINDS[driver]
    machine.teardown()


def test_a_run_of_nouveau_without_device_memory_has_no_chunk() -> None:
    result = execute(RunSpec(driver="nouveau", workload="jacobi", vram_bytes=256 << 20, checked=False))
    assert result["objects"] == {
        "pagemaps": 0,
        "bos_max": 0,
        "zdds_max": None,
        "ranges_max": None,
        "notifiers_max": 2,  # of the whole mm, and of the fault that is being served
    }
