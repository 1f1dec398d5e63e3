"""Pages that are mapped for DMA are watched by a notifier as long as they are, to the end of the address space."""

import pytest
from gpusvm.drm import GpuSvm
from gpusvm.explore import explore

OPTIONS = {"scheduler": "pct", "schedules": 80, "shrunk": False}


@pytest.mark.parametrize("driver", ["xe", "svmdev"])
def test_what_is_unmapped_after_its_notifier_has_gone_is_found(driver, monkeypatch):
    monkeypatch.setattr(GpuSvm, "every_range", lambda _: [])
    (found,) = explore(["close-swap"], [driver], **OPTIONS).findings
    assert (found.finding.kind, found.finding.invariant) == ("invariant", "56")
    assert found.finding.message.startswith("invariant 56 (dma-free-page): gpu0 has a free page mapped for DMA [pfn ")


def test_drivers_unmap_before_that():
    assert explore(["close-swap"], **OPTIONS).findings == []
