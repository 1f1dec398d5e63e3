"""Address space, process, device, driver and module go in any order, with GPU faults in flight: nothing is left.

One check for each order of what every driver has, and one for each with the device going away somewhere in between, of
drivers that let it. A bug that shows in most orders hides all others: with quirks fixed (`--quirks fixed`) the same
orders look for what nobody knows of.
"""

from collections.abc import Callable

from gpusvm.conformance.explored import run
from gpusvm.conformance.suite import Lab, check
from gpusvm.conformance.teardown import orders, program

_SEEDS = 6
_UNPLUG_SEEDS = 3
_WORDS = {
    "close": "the file is closed",
    "exit": "the process ends",
    "unplug": "the device goes",
    "shutdown": "the driver leaves the device",
    "unload": "the module is unloaded",
}


def _told(order: tuple[str, ...]) -> str:
    return ", ".join(_WORDS[each] for each in order)


def _plain(order: tuple[str, ...]) -> Callable[[Lab], None]:
    def test(lab: Lab) -> None:
        run(lab, program(order, populate=bool(lab.capabilities.explicit_populate)), schedules=_SEEDS)

    test.__doc__ = f"Nothing is left, and nothing is used that is gone, if {_told(order)}, in this order."
    test.__name__ = f"test_{'_'.join(order)}"
    test.__qualname__ = test.__name__
    return check(f"teardown.{'-'.join(order)}", since="1.0", ref="mm/mmu_notifier.c:mmu_notifier_release")(test)


def _unplugged(order: tuple[str, ...]) -> Callable[[Lab], None]:
    places = [each for each in orders(unplug=True) if tuple(step for step in each if step != "unplug") == order]

    def test(lab: Lab) -> None:
        populate = bool(lab.capabilities.explicit_populate)
        run(lab, *(program(each, populate=populate) for each in places), schedules=_UNPLUG_SEEDS)

    test.__doc__ = (
        f"Nothing is left, and nothing is used that is gone, if {_told(order)}, in this order, and the device goes "
        "anywhere in between."
    )
    test.__name__ = f"test_unplug_{'_'.join(order)}"
    test.__qualname__ = test.__name__
    return check(
        f"teardown.unplug.{'-'.join(order)}",
        since="1.0",
        requires=("unplug",),
        ref="drivers/gpu/drm/drm_drv.c:drm_dev_unplug",
    )(test)


for _order in orders(unplug=False):
    for _test in (_plain(_order), _unplugged(_order)):
        globals()[_test.__name__] = _test
del _test
