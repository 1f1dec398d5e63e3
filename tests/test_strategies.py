"""A user's own classes in the place of a driver's strategies: from a spec string, and from Python."""

import sys
from types import ModuleType

import pytest
from gpusvm.driver import ChangedPm, DevInDrm
from gpusvm.drm import OffsetMap
from gpusvm.errors import InputError
from gpusvm.plugins import load_drivers
from gpusvm.testing import Bench

PAGE, PMD = 4 << 10, 2 << 20
DRIVERS = load_drivers()


class NoPageReferences(ChangedPm):
    """Take no reference for pages: the device may sleep under them."""

    def pages_present(self, bo):
        pass

    def pages_gone(self, bo):
        pass


class Always:
    """Migrate at every fault, to the memory of the device that took it."""

    def __init__(self, driver):
        self.driver = driver
        self.asked = 0

    def new_state(self, unit):
        return None

    def place(self, fault, unit, state):
        self.asked += 1
        return self.driver.pagemaps()[0]


class Never(Always):
    def place(self, fault, unit, state):
        self.asked += 1


class Counted(OffsetMap):
    found = 0

    def find(self, pfn):
        type(self).found += 1
        return super().find(pfn)


class Forgetful:
    def pages_present(self):
        pass


@pytest.fixture
def mypackage(monkeypatch):
    """Make the classes of this file importable as a user's are."""
    module = ModuleType("mypackage")
    for each in (NoPageReferences, Always, Never, Counted, Forgetful, DevInDrm):
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, "mypackage", module)
    return module


@pytest.fixture
def bench(mypackage):
    made = []

    def make(spec, **options):
        made.append(Bench(spec, drivers=DRIVERS, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def written(b, pages=512):
    addr = b.map(pages * PAGE)
    b.cpu_write(addr, pages)
    return addr


def test_a_policy_of_power_takes_the_place_of_xes(bench):
    b = bench("xe:pm=mypackage:NoPageReferences")
    b.gpu_write(written(b))
    assert b.driver.device.pm.holders == {"vm": 1}
    assert isinstance(b.driver.pm, NoPageReferences)


@pytest.mark.parametrize("driver", ["xe", "svmdev"])
def test_a_policy_of_placement_keeps_memory_where_it_is(bench, driver):
    b = bench(f"{driver}:place=mypackage:Never")
    addr = written(b)
    b.gpu_write(addr, 4)
    assert b.device_pages(addr, 512) == 0


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror", "svmdev"])
def test_a_policy_of_placement_migrates_on_a_fault(bench, driver):
    b = bench(f"{driver}:place=mypackage:Always", thp="never", vram_bytes=512 << 20)
    addr = written(b)
    b.gpu_read(addr)
    assert b.device_pages(addr, 1) == 1


def test_an_index_and_an_embedding_take_the_place_of_xes(bench):
    Counted.found = 0
    b = bench("xe:page_to_bo=mypackage:Counted,embedding=mypackage:DevInDrm")
    addr = written(b)
    b.gpu_write(addr)
    b.cpu_read(addr)
    assert Counted.found > 0
    (pagemap,) = b.driver.dev_pagemaps()
    assert pagemap.container is b.driver.tiles[0].dpagemap


def test_an_index_takes_the_place_of_nouveaus(bench):
    Counted.found = 0
    b = bench("nouveau:page_to_bo=mypackage:Counted", vram_bytes=512 << 20)
    addr = written(b)
    b.vm.populate(addr, addr + PMD)
    b.cpu_read(addr)
    assert Counted.found > 0


def test_a_variant_from_python_is_the_same(mypackage):
    info = DRIVERS["xe"].variant(place=Never)
    b = Bench("xe", drivers={"xe": info})
    addr = written(b)
    b.gpu_write(addr)
    assert b.device_pages(addr, 512) == 0
    b.close()


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (
            "xe:pm=mypackage:NoPageReference",
            "pm: mypackage has no 'NoPageReference'; did you mean 'NoPageReferences'?",
        ),
        (
            "xe:pm=nopackage:Policy",
            "pm: cannot import 'nopackage': ModuleNotFoundError: No module named 'nopackage'",
        ),
        ("xe:pm=mine", "pm: expected MODULE:CLASS, got 'mine'"),
        ("dmirror:pm=mypackage:NoPageReferences", None),
        ("xe:place=sys:path", "place: expected a class, got"),
    ],
)
def test_a_class_that_is_not_there_is_refused(mypackage, spec, problem):
    with pytest.raises(InputError) as refused:
        Bench(spec, drivers=DRIVERS)
    wanted = f"driver spec {spec!r}: {problem}"
    if problem is None:
        wanted = f"driver spec {spec!r}: unknown key 'pm' of driver dmirror; "
    assert str(refused.value).startswith(wanted)


def test_a_class_that_cannot_be_called_as_the_driver_does_is_refused_with_all_that_is_wrong(mypackage):
    with pytest.raises(InputError) as refused:
        Bench("xe:pm=mypackage:Forgetful", drivers=DRIVERS)
    message = str(refused.value)
    assert message.startswith("driver spec 'xe:pm=mypackage:Forgetful': pm: ")
    assert "Forgetful has no populate() (RuntimePmPolicy" in message
    assert "Forgetful.pages_present: expected pages_present(bo), got pages_present()" in message


def test_a_variant_is_held_to_the_same():
    with pytest.raises(InputError) as refused:
        DRIVERS["xe"].variant(placing=Never)
    assert str(refused.value) == "driver xe: no strategy 'placing'; did you mean 'place'?"
    with pytest.raises(InputError, match=r"driver xe: place: .*\d: Forgetful has no new_state"):
        DRIVERS["xe"].variant(place=Forgetful)
