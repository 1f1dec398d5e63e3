"""A device sleeps when it may, wakes when it must, and what lay on it is there afterwards.

That they can fail: xe with a `pm` that takes no reference for pages, in tests/test_conformance_power.py.
"""

from contextlib import suppress

from gpusvm.conformance.scene import PAGE, close, falls_asleep, rpm, written
from gpusvm.conformance.suite import Lab, check
from gpusvm.driver import ACCESS_READ
from gpusvm.errors import KernelError
from gpusvm.testing import Bench

_FEW = 16
_RPM = "drivers/base/power/runtime.c:rpm_suspend"
_SLEEP = "kernel/power/suspend.c:suspend_devices_and_enter"
_NEEDS = ("explicit_populate",)
_PM_NEEDS = ("runtime_pm", *_NEEDS)


def _populated(lab: Lab) -> tuple[Bench, int]:
    bench = lab.bench()
    addr = written(bench, _FEW)
    bench.vm.populate(addr, addr + _FEW * PAGE)
    return bench, addr


def _end_process(bench: Bench) -> None:
    bench.machine.close(bench.process)
    bench.process.vms.clear()
    bench.machine.processes.remove(bench.process)
    bench.mm.mmput()
    bench.kernel.settle()


@check("power.autosuspend.unused", since="1.0", requires=("runtime_pm",), ref=_RPM)
def test_unused(lab: Lab) -> None:
    """A device that the last process has left falls asleep, with no reference held."""
    bench = lab.bench()
    addr = written(bench, _FEW)
    bench.gpu_write(addr, _FEW)
    _end_process(bench)
    assert falls_asleep(bench), f"{rpm(bench).holders} keep it awake"
    assert rpm(bench).usage_count == 0


@check("power.balance.populated", since="1.0", profile="device-memory", requires=_PM_NEEDS, ref=_RPM)
def test_balance(lab: Lab) -> None:
    """What was populated costs no reference any more once its process is gone."""
    bench, addr = _populated(lab)
    bench.gpu_write(addr, _FEW)
    _end_process(bench)
    assert rpm(bench).holders == {}
    assert falls_asleep(bench)


@check("power.balance.rounds", since="1.0", profile="device-memory", requires=_PM_NEEDS, ref=_RPM)
def test_rounds(lab: Lab) -> None:
    """Memory that goes to the device and home again and again leaves no reference behind."""
    bench, addr = _populated(lab)
    bench.cpu_write(addr, _FEW)
    bench.kernel.settle()
    before = rpm(bench).usage_count
    for _ in range(4):
        bench.vm.populate(addr, addr + _FEW * PAGE)
        bench.cpu_write(addr, _FEW)
    bench.kernel.settle()
    assert rpm(bench).usage_count == before


@check("power.balance.refused", since="1.0", requires=("runtime_pm",), ref=_RPM)
def test_refused(lab: Lab) -> None:
    """A fault and a populate that are refused leave no reference behind."""
    bench = lab.bench()
    addr = bench.map(_FEW * PAGE)
    bench.mm.munmap(addr, _FEW * PAGE)
    bench.kernel.settle()
    before = rpm(bench).usage_count
    assert bench.fault(addr, ACCESS_READ).errno
    with suppress(KernelError):
        bench.vm.populate(addr, addr + _FEW * PAGE)
    bench.kernel.settle()
    assert rpm(bench).usage_count == before


@check("power.pages.awake-as-declared", since="1.0", profile="device-memory", requires=_PM_NEEDS, ref=_RPM)
def test_awake(lab: Lab) -> None:
    """A driver that declares `awake_with_pages` keeps the device awake while a page of it is in an address space."""
    bench, addr = _populated(lab)
    close(bench)
    there = bench.device_pages(addr, _FEW)
    asleep = falls_asleep(bench)
    assert not (there and asleep and lab.info.awake_with_pages), f"it sleeps, and has {there} pages"


@check("power.pages.contents", since="1.0", profile="device-memory", requires=_PM_NEEDS, ref=_RPM)
def test_contents(lab: Lab) -> None:
    """What is on a device that nobody used for a minute is read as it was written."""
    bench, addr = _populated(lab)
    bench.gpu_write(addr, _FEW)
    falls_asleep(bench)
    bench.cpu_read(addr, _FEW)


@check("power.resume.fault", since="1.0", requires=("runtime_pm",), ref="drivers/base/power/runtime.c:rpm_resume")
def test_resume_fault(lab: Lab) -> None:
    """The GPU's accesses are served after a minute in which nobody used the device."""
    bench = lab.bench()
    addr = written(bench, _FEW)
    falls_asleep(bench)
    bench.gpu_write(addr, _FEW)
    bench.cpu_read(addr, _FEW)


@check(
    "power.resume.populate",
    since="1.0",
    profile="device-memory",
    requires=_PM_NEEDS,
    ref="drivers/base/power/runtime.c:rpm_resume",
)
def test_resume_populate(lab: Lab) -> None:
    """A populate wakes the device, and is done, after a minute in which nobody used it."""
    bench = lab.bench()
    addr = written(bench, _FEW)
    falls_asleep(bench)
    bench.vm.populate(addr, addr + _FEW * PAGE)
    assert bench.device_pages(addr, _FEW) == _FEW
    bench.cpu_read(addr, _FEW)


@check("power.resume.open", since="1.0", requires=("runtime_pm",), ref="drivers/base/power/runtime.c:rpm_resume")
def test_resume_open(lab: Lab) -> None:
    """A sleeping device is opened, and serves the GPU's accesses of who opens it."""
    bench = lab.bench()
    addr = written(bench, _FEW)
    close(bench)
    falls_asleep(bench)
    bench.vm = bench.vms[0] = bench.machine.open(bench.process)
    bench.gpu_write(addr, _FEW)
    bench.cpu_read(addr, _FEW)


@check("power.system.cpu-contents", since="1.0", ref=_SLEEP)
def test_system_cpu(lab: Lab) -> None:
    """What the GPU wrote before the system slept is what a CPU reads after it."""
    bench = lab.bench()
    addr = written(bench, _FEW)
    bench.gpu_write(addr, _FEW)
    bench.machine.sleep(1_000)
    bench.cpu_read(addr, _FEW)


@check("power.system.gpu-goes-on", since="1.0", ref=_SLEEP)
def test_system_gpu(lab: Lab) -> None:
    """The GPU goes on where it was when the system slept, and sees what CPUs write after it."""
    bench = lab.bench()
    addr = written(bench, _FEW)
    bench.gpu_write(addr, _FEW)
    bench.machine.sleep(1_000)
    bench.gpu_write(addr, _FEW)
    bench.cpu_write(addr, _FEW)
    bench.gpu_read(addr, _FEW)


@check("power.system.device-pages", since="1.0", profile="device-memory", requires=_NEEDS, ref=_SLEEP)
def test_system_pages(lab: Lab) -> None:
    """What lay on the device when the system slept, twice, is read as it was written, from both sides."""
    bench, addr = _populated(lab)
    bench.gpu_write(addr, _FEW)
    bench.machine.sleep(1_000)
    bench.machine.sleep(1_000)
    bench.gpu_read(addr, _FEW)
    bench.cpu_read(addr, _FEW)


@check("power.system.populate-again", since="1.0", profile="device-memory", requires=_NEEDS, ref=_SLEEP)
def test_system_populate(lab: Lab) -> None:
    """Memory comes to the device after the system has slept."""
    bench, addr = _populated(lab)
    bench.machine.sleep(1_000)
    bench.cpu_write(addr, _FEW)
    bench.vm.populate(addr, addr + _FEW * PAGE)
    assert bench.device_pages(addr, _FEW) == _FEW
    bench.cpu_read(addr, _FEW)


@check("power.system.balance", since="1.0", requires=("runtime_pm",), ref=_SLEEP)
def test_system_balance(lab: Lab) -> None:
    """A sleep of the system leaves no reference that was not there before; those of pages that went home may go."""
    bench = lab.bench()
    addr = written(bench, _FEW)
    bench.gpu_write(addr, _FEW)
    bench.kernel.settle()
    before = rpm(bench).usage_count
    bench.machine.sleep(1_000)
    bench.kernel.settle()
    assert rpm(bench).usage_count <= before
