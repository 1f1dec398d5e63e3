"""The copy engine of a device that sleeps gets to nothing."""

import pytest
from gpusvm.drm import D3COLD, RuntimePm
from gpusvm.errors import DriverError
from gpusvm.gpu import H2D, CopyEngine, Link
from gpusvm.kernel import Kernel

MS = 1_000_000


class CopiesBack:
    """Bring contents back while the device wakes, as a driver does that saved them."""

    runtime_idle = None
    engine = None

    def runtime_suspend(self, _state):
        """Save nothing."""

    def runtime_resume(self, _state):
        self.engine.copy(H2D, 4096, 1)


def asleep():
    """Return the engine of a device that has fallen asleep, and what keeps its power."""
    kernel, callbacks = Kernel(), CopiesBack()
    link = Link(kernel)
    link.power = pm = RuntimePm(kernel, "gpu0", autosuspend_ms=1, d3cold_allowed=True, callbacks=callbacks)
    callbacks.engine = CopyEngine(kernel, link, shape="gather")
    pm.enable()
    kernel.run_until(10 * MS)
    assert pm.state is D3COLD
    return callbacks.engine, pm


@pytest.mark.parametrize("command", ["h2d", "clear"])
def test_a_command_for_a_device_that_sleeps_is_an_error(command):
    engine, _ = asleep()
    with pytest.raises(DriverError) as info:
        engine.clear(4096) if command == "clear" else engine.copy(H2D, 4096, 1)
    assert str(info.value) == (
        f"copy engine: a {command} is queued on gpu0, which is in D3cold: take a runtime PM reference before "
        "(RuntimePm.get), and put it when the engine is through"
    )
    assert engine.kernel.stats.copies == 0


def test_who_wakes_the_device_and_who_holds_it_may_copy():
    engine, pm = asleep()
    with pm.awake("test"):
        assert engine.kernel.stats.copies == 1
        engine.copy(H2D, 4096, 1)
    assert engine.kernel.stats.copies == 2
