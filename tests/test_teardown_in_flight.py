"""Address space, process, device, driver and module go in any order while faults are in flight: nothing is left."""

import pytest
from gpusvm.conformance.teardown import teardowns
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())


@pytest.mark.parametrize(
    ("driver", "orders"), [("xe", 40), ("nouveau", 12), ("dmirror", 12), ("svmdev", 12), ("kfd", 12)]
)
def test_every_order(driver: str, orders: int) -> None:
    found = teardowns(driver, DRIVERS, seeds=2)
    assert found.findings == []
    assert str(found) == f"{driver}: {orders} orders, {2 * orders} runs, 0 findings"


def test_what_linux_does_wrong_is_found() -> None:
    """What xe as written leaves on a device that goes away while a process ends (quirk evict_dying)."""
    found = teardowns("xe", DRIVERS, seeds=1, quirks="as_written")
    assert any("xe_bo_pci_dev_remove_all" in broke for *_, broke in found.findings)
