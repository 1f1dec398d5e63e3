"""A reference for the time of a block, and how many bytes of device memory are in use."""

from gpusvm.drm import D0, Bo, BoManager, Buddy, RuntimePm
from gpusvm.kernel import Kernel


def test_a_block_wakes_the_device_and_holds_it() -> None:
    with Kernel() as kernel:
        pm = RuntimePm(kernel, "gpu", autosuspend_ms=1)
        pm.enable()
        kernel.sleep_ns(10_000_000)
        assert pm.state is not D0
        awake = pm.awake("copy")
        with awake, awake:
            assert (pm.state, pm.holders) == (D0, {"copy": 2})
        assert pm.usage_count == 0


def test_used_bytes_are_of_the_pages_that_there_are() -> None:
    with Kernel() as kernel:
        bos = BoManager(kernel, Buddy(16), page_shift=16)
        bo: Bo = bos.create(4)
        bo.resv.unlock()
        assert bos.used_bytes == 4 << 16
        bo.put()
