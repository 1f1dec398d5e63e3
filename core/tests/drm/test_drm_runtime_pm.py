import pytest
from gpusvm.drm import D0, D3COLD, D3HOT, RuntimePm
from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Kernel

MS = 1_000_000


class Device:
    def __init__(self):
        self.log = []
        self.used = 0
        self.busy = False

    def runtime_suspend(self, state):
        if self.busy:
            raise KernelError(16, "busy")
        self.log.append(("suspend", state))

    def runtime_resume(self, state):
        self.log.append(("resume", state))

    def runtime_idle(self):
        self.pm.d3cold_allowed = self.used < 300 << 20


def make(kernel, **kwargs):
    device = Device()
    pm = device.pm = RuntimePm(kernel, "gpu", autosuspend_ms=1000, callbacks=device, **kwargs)
    return device, pm


def test_the_last_put_begins_the_autosuspend_delay():
    kernel = Kernel()
    device, pm = make(kernel)
    pm.get("ioctl")
    pm.enable()
    pm.put("ioctl")
    kernel.run_until(999 * MS)
    assert pm.state is D0
    kernel.run_until(1000 * MS)
    assert pm.state is D3COLD
    assert device.log == [("suspend", D3COLD)]
    assert pm.history == [(0, D0), (1000 * MS, D3COLD)]
    assert pm.awake_ns == 1000 * MS


def test_use_within_the_delay_puts_it_off():
    kernel = Kernel()
    _, pm = make(kernel)
    pm.enable()
    kernel.run_until(600 * MS)
    pm.get("fault")
    pm.put("fault")
    kernel.run_until(1599 * MS)
    assert pm.state is D0
    kernel.run_until(1600 * MS)
    assert pm.state is D3COLD


def test_memory_in_use_decides_how_deep():
    kernel = Kernel()
    device, pm = make(kernel)
    device.used = 300 << 20
    pm.enable()
    kernel.run_until(1000 * MS)
    assert pm.state is D3HOT


def test_how_deep_is_decided_when_the_device_gets_idle_not_when_it_suspends():
    kernel = Kernel()
    device, pm = make(kernel)
    device.used = 300 << 20
    pm.enable()
    kernel.run_until(500 * MS)
    device.used = 0
    kernel.run_until(1000 * MS)
    assert pm.state is D3HOT
    pm.get("ioctl")
    pm.put("ioctl")
    kernel.run_until(3000 * MS)
    assert pm.state is D3COLD


def test_without_an_idle_callback_the_driver_has_decided_once():
    kernel = Kernel()
    pm = RuntimePm(kernel, "gpu", autosuspend_ms=1000, d3cold_allowed=True)
    pm.enable()
    kernel.run_until(1000 * MS)
    assert pm.state is D3COLD


def test_references_say_who_what_for_and_since_when():
    kernel = Kernel()
    _, pm = make(kernel)
    pm.get("ioctl")
    pm.enable()
    kernel.run_until(5 * MS)
    pm.get_noresume("bo", "first")
    kernel.run_until(7 * MS)
    pm.get_noresume("bo", "second")
    pm.get_noresume("bo")
    pm.put("bo", "first")
    job = pm.inner("job")
    with job, job:
        assert [(each.holder, each.of, each.count, each.since_ns // MS) for each in pm.references] == [
            ("ioctl", None, 1, 0),
            ("bo", None, 1, 5),
            ("bo", "second", 1, 7),
            ("job", None, 2, 7),
        ]
        assert pm.usage_count == pm.refs_max == 5
    assert pm.holders == {"ioctl": 1, "bo": 2}
    pm.put("ioctl")
    pm.put("bo")
    pm.put("bo", "second")
    assert pm.references == []
    kernel.ledger.assert_empty()


def test_who_held_references_when_is_kept_and_short_pauses_are_left_out():
    kernel = Kernel()
    _, pm = make(kernel)
    pm.enable()
    fault = pm.awake("fault")
    for start_ms in (1, 2, 40):  # the second comes half a millisecond behind the first
        kernel.run_until(start_ms * MS)
        with fault:
            kernel.run_until(start_ms * MS + MS // 2)
            pm.get_noresume("bo", start_ms)
            with pm.inner("job"):
                pass
    kernel.run_until(50 * MS)
    found = {each.holder: each for each in pm.held}
    assert list(found) == ["fault", "bo"]
    assert found["fault"].spans_ns == [(1 * MS, 2 * MS + MS // 2), (40 * MS, 40 * MS + MS // 2)]
    assert (found["fault"].held_ns, found["fault"].refs_max) == (3 * MS // 2, 1)
    assert found["bo"].spans_ns == [(MS + MS // 2, 50 * MS)]
    assert (found["bo"].held_ns, found["bo"].refs_max) == (48 * MS + MS // 2, 3)


def test_a_job_without_anybody_outside_is_warned_of():
    kernel = Kernel()
    kernel.tracer.on = True
    _, pm = make(kernel)
    pm.enable()
    with pm.inner("job"):
        pass
    kernel.run_until(1000 * MS)
    with pm.inner("job"):
        pass
    assert pm.missing_outer_protection == 2
    assert [event[3:] for event in kernel.tracer.events if event[2] == "warn"] == [
        ("pm_runtime_get_noresume", "gpu: job relies on a device that is awake, and nobody holds a reference"),
        ("pm_runtime_get_noresume", "gpu: job relies on a device that is awake, and nobody holds a reference"),
    ]


def test_with_the_system_it_sleeps_though_it_is_held():
    kernel = Kernel()
    _, pm = make(kernel)
    pm.get("vm")
    kernel.run_until(3 * MS)
    pm.power_off(D3COLD)
    kernel.run_until(10 * MS)
    assert (pm.state, pm.is_asleep, pm.awake_ns) == (D3COLD, True, 3 * MS)
    pm.power_on()
    assert (pm.state, pm.resumes) == (D0, 1)
    assert pm.history == [(0, D0), (3 * MS, D3COLD), (10 * MS, D0)]
    pm.put("vm")


def test_get_resumes_and_noresume_does_not():
    kernel = Kernel()
    device, pm = make(kernel)
    pm.enable()
    kernel.run_until(1000 * MS)
    pm.get_noresume("bo")
    assert pm.state is D3COLD
    assert pm.missing_outer_protection == 1
    assert not pm.get_if_active("x")
    pm.get("ioctl")
    assert pm.state is D0
    assert pm.resumes == 1
    pm.get_noresume("bo")
    assert pm.missing_outer_protection == 1
    assert pm.holders == {"bo": 2, "ioctl": 1}
    assert pm.usage_count == pm.refs_max == 3
    assert kernel.ledger.count("pm") == 3
    assert device.log == [("suspend", D3COLD), ("resume", D3COLD)]
    pm.put("ioctl")
    pm.put("bo")
    pm.put("bo")
    kernel.ledger.assert_empty()


def test_a_reference_keeps_it_awake():
    kernel = Kernel()
    _, pm = make(kernel)
    pm.get("bo")
    pm.enable()
    kernel.run_until(5000 * MS)
    assert pm.state is D0
    assert pm.awake_ns == 5000 * MS
    pm.put("bo")


def test_a_refused_suspend_is_tried_again_after_the_delay():
    kernel = Kernel()
    device, pm = make(kernel)
    device.busy = True
    pm.enable()
    kernel.run_until(1000 * MS)
    assert pm.state is D0
    device.busy = False
    kernel.run_until(2000 * MS)
    assert pm.state is D3COLD


def test_a_get_during_suspend_waits_and_resumes():
    kernel = Kernel()
    device, pm = make(kernel)

    def slow_suspend(state):
        device.log.append(("suspend", state))
        kernel.sleep_ns(100 * MS)

    device.runtime_suspend = slow_suspend
    pm.enable()
    kernel.run_until(1050 * MS)
    pm.get("ioctl")
    assert pm.state is D0
    assert kernel.now_ns == 1100 * MS
    assert device.log == [("suspend", D3COLD), ("resume", D3COLD)]
    pm.put("ioctl")


def test_a_put_without_a_get_is_refused():
    _, pm = make(Kernel())
    with pytest.raises(ModelError) as caught:
        pm.put("bo")
    assert str(caught.value) == "gpu: 'bo' puts a runtime PM reference and holds none"


def test_disable_wakes_for_good():
    kernel = Kernel()
    _, pm = make(kernel)
    pm.enable()
    kernel.run_until(1000 * MS)
    pm.disable()
    assert pm.state is D0
    kernel.run_until(9000 * MS)
    assert pm.state is D0
