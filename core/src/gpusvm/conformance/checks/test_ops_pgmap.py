"""What a driver asks of core when it migrates, and core of it when a CPU wants a page home, by whatever way."""

from typing import Final

from gpusvm.conformance.areas import brought, huge, written
from gpusvm.conformance.family import every, family
from gpusvm.conformance.recorder import Setup, recorded
from gpusvm.conformance.small import BLOCK_PAGES, PAGE, small
from gpusvm.conformance.suite import Lab, check

_NEEDS: Final = ("explicit_populate",)
_KINDS: Final = {"small": written, "huge": huge}
_SETUP: Final = "mm/migrate_device.c:migrate_vma_setup"


@family(
    "ops.migrate-to-ram.answered.{kind}",
    every(kind=_KINDS),
    since="1.0",
    profile="device-memory",
    requires=_NEEDS,
    ref="include/linux/memremap.h:migrate_to_ram",
)
def test_answered(lab: Lab, kind: str) -> None:
    """When a CPU touches device memory ({kind}) the driver is asked for the page, answers 0, and it is home."""
    bench = small(lab)
    addr = brought(bench, _KINDS[kind](bench))
    with recorded(bench) as record:
        bench.cpu_read(addr + 3 * PAGE)
    assert record.homes, "nobody asked the driver"
    for call in record.homes:
        assert call.fault.vma.start <= call.fault.address < call.fault.vma.end, "the address is in another area"
        assert call.answer == 0, f"it is answered {call.answer}"
    assert bench.where(addr + 3 * PAGE) == "system", "the page is not home"
    bench.cpu_read(addr, BLOCK_PAGES)


@check("ops.migrate-setup.to-device", since="1.0", profile="device-memory", requires=_NEEDS, ref=_SETUP)
def test_to_device(lab: Lab) -> None:
    """Who migrates to a device holds mmap_lock, stays in one area, names its owner, and finalizes what it has begun."""
    bench = small(lab, thp="never")
    brought(bench, written(bench))  # a driver may make its first pages only now
    addr = written(bench)
    with recorded(bench) as record:
        brought(bench, addr)
    _judge(record.setups, {each.owner for each in bench.driver.dev_pagemaps()})
    begun = [each for each in record.setups if each.cpages]
    assert record.finalized >= len(begun), f"{len(begun)} migrations were begun, and {record.finalized} finalized"


@check("ops.migrate-setup.home", since="1.0", profile="device-memory", requires=_NEEDS, ref=_SETUP)
def test_home(lab: Lab) -> None:
    """Who brings a page home for a CPU holds mmap_lock, stays in its area, names its owner, and finalizes."""
    bench = small(lab, thp="never")
    addr = brought(bench, written(bench))
    with recorded(bench) as record:
        bench.cpu_read(addr, BLOCK_PAGES)
    _judge(record.setups, {each.owner for each in bench.driver.dev_pagemaps()})
    begun = [each for each in record.setups if each.cpages]
    assert record.finalized >= len(begun), f"{len(begun)} migrations were begun, and {record.finalized} finalized"


def _judge(setups: list[Setup], owners: set[object]) -> None:
    assert setups, "nothing was migrated by migrate_vma_setup"
    for each in setups:
        what = f"[{each.start:#x}, {each.end:#x})"
        assert each.locked, f"{what} is migrated without mmap_lock"
        assert each.in_area, f"{what} is not in one area"
        assert each.owner in owners, f"{what} is migrated in the name of nobody who has pages"
