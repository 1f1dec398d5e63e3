"""The drivers differ where Linux's drivers differ: the rows S1, S8, S10, S23, S32 and S41 of the semantic differences.

Each test runs all drivers, so that none of them can drift without being compared.
"""

from collections.abc import Callable, Iterator

import pytest
from gpusvm.testing import Bench

MIB = 1 << 20
PMD = 2 * MIB
PAGE = 4096

MakeBench = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[MakeBench]:
    """Make benches that are torn down, and so checked for leaks, at the end of the test."""
    made: list[Bench] = []

    def make(spec: str, **options: object) -> Bench:
        made.append(Bench(spec, **options))  # type: ignore[arg-type]  # the options of Bench
        return made[-1]

    yield make
    for each in made:
        each.close()


def written_block(bench: Bench) -> int:
    """Map one 2 MiB block and write it from the CPU; its address."""
    addr = bench.map(PMD)
    bench.cpu_write(addr, PMD // PAGE)
    return addr


@pytest.mark.parametrize(
    ("driver", "place"), [("xe", "device"), ("nouveau", "system"), ("dmirror", "system"), ("svmdev", "device")]
)
def test_s1_first_gpu_touch(bench: MakeBench, driver: str, place: str) -> None:
    """Xe and svmdev bring what the GPU touches to VRAM; nouveau and dmirror map it where it is."""
    b = bench(driver)
    addr = written_block(b)
    assert b.gpu_read(addr) == 1
    assert b.where(addr) == place


@pytest.mark.parametrize(
    ("driver", "thp", "left"),
    [
        # xe, svmdev: the whole allocation goes home. nouveau and dmirror: one page, or the folio that maps it.
        ("xe", "never", 0),
        ("nouveau", "never", 511),
        ("dmirror", "never", 511),
        ("svmdev", "never", 0),
        ("xe", "always", 0),
        ("nouveau", "always", 0),
        ("dmirror", "always", 0),
        ("svmdev", "always", 0),
    ],
)
def test_s8_cpu_touch_of_one_device_page(bench: MakeBench, driver: str, thp: str, left: int) -> None:
    b = bench(driver, thp=thp)
    addr = written_block(b)
    b.vm.populate(addr, addr + PMD)
    assert b.device_pages(addr, 512) == 512
    b.cpu_read(addr + 7 * PAGE)
    assert b.device_pages(addr, 512) == left


@pytest.mark.parametrize(
    ("driver", "evictions", "places"),
    [
        # Three blocks, room for two. xe evicts the oldest; nouveau has pinned no chunk and stays in RAM; dmirror's
        # device memory is backed by RAM and never runs out; svmdev refuses what finds no room.
        ("xe", 1, ["system", "device", "device"]),
        ("nouveau", 0, ["system", "system", "system"]),
        ("dmirror", 0, ["device", "device", "device"]),
        ("svmdev", 0, ["device", "device", "system"]),
    ],
)
def test_s10_vram_exhaustion(bench: MakeBench, driver: str, evictions: int, places: list[str]) -> None:
    b = bench(driver, vram_bytes=2 * PMD)
    blocks = [written_block(b) for _ in range(3)]
    for addr in blocks:
        b.vm.populate(addr, addr + PMD)
    assert [b.where(addr) for addr in blocks] == places
    assert b.kernel.stats.evictions == evictions


@pytest.mark.parametrize(
    ("driver", "mapped", "on_device"),
    # One GPU touch of a block of small pages: xe and svmdev bind and move 512 pages, nouveau one, dmirror 32.
    [("xe", 512, 512), ("nouveau", 1, 0), ("dmirror", 32, 0), ("svmdev", 512, 512)],
)
def test_s23_what_one_touch_binds(bench: MakeBench, driver: str, mapped: int, on_device: int) -> None:
    b = bench(driver, thp="never")
    addr = written_block(b)
    b.gpu_read(addr)
    assert b.mapped_pages(addr, 512) == mapped
    assert b.device_pages(addr, 512) == on_device


@pytest.mark.parametrize(("driver", "added"), [("xe", 3), ("nouveau", 0), ("dmirror", None), ("svmdev", None)])
def test_s32_usage_count_of_resident_allocations(bench: MakeBench, driver: str, added: int | None) -> None:
    """Xe holds a reference for each of N resident allocations; nouveau none; dmirror and svmdev have no runtime PM."""
    b = bench(driver)
    blocks = [written_block(b) for _ in range(3)]
    if added is None:
        assert not b.driver.info.capabilities.runtime_pm
        for addr in blocks:
            b.vm.populate(addr, addr + PMD)
        return
    before = b.driver.device.pm.usage_count
    for addr in blocks:
        b.vm.populate(addr, addr + PMD)
    b.kernel.settle()
    assert [b.where(addr) for addr in blocks] == ["device"] * 3
    assert b.driver.device.pm.usage_count - before == added


@pytest.mark.parametrize(
    ("driver", "before", "after"),
    # 300 MiB of device memory: one pagemap per tile for ever, or one more for each chunk of 256 MiB.
    [("xe", 1, 1), ("nouveau", 1, 2), ("dmirror", 2, 3), ("svmdev", 1, 1)],
)
def test_s41_pagemaps_as_memory_grows(bench: MakeBench, driver: str, before: int, after: int) -> None:
    b = bench(driver, vram_bytes=1024 * MIB)
    first = written_block(b)
    b.vm.populate(first, first + PMD)
    counts = [len(b.driver.dev_pagemaps())]
    rest = b.map(300 * MIB)
    b.cpu_write(rest, 300 * MIB // PAGE)
    b.vm.populate(rest, rest + 300 * MIB)
    counts.append(len(b.driver.dev_pagemaps()))
    assert counts == [before, after]
