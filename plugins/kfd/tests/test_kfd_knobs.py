"""What-if knobs of kfd, each by the event, the count or the time that it changes."""

import pytest
from gpusvm.driver import ACCESS_WRITE
from gpusvm.mm.api import PROT_READ
from gpusvm.testing import Fault

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M
US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000


class Timed(Fault):
    """A fault that notes when it was answered."""

    __slots__ = ("answered_ns", "kernel")

    def __init__(self, b, addr):
        super().__init__(addr, ACCESS_WRITE, time_ns=b.kernel.now_ns)
        self.kernel = b.kernel

    def complete(self, errno):
        super().complete(errno)
        self.answered_ns = self.kernel.now_ns

    @property
    def took_us(self):
        return (self.answered_ns - self.time_ns) // US


@pytest.mark.parametrize(
    ("spec", "mib"),
    [("kfd", 4), ("kfd:range_min=16M", 16), ("kfd:range_max=2M", 2), ("kfd:range_min=4K,range_max=1M", 1)],
)
def test_a_registration_is_cut_into_ranges_of_a_32nd_of_the_vram_between_two_limits(bench, ranges, spec, mib):
    b = bench(spec, vram_bytes=128 * M)
    addr = b.map(32 * M)
    b.vm.set_attr(addr, addr + 32 * M, preferred_loc="system")
    pages = mib * M // PAGE
    assert ranges(b, addr) == [(at, pages, 0) for at in range(0, 32 * M // PAGE, pages)]


@pytest.mark.parametrize("window_us", [0, 500, 2000])
def test_a_fault_on_a_range_that_was_just_mapped_waits_until_the_window_is_over(bench, window_us):
    b = bench(f"kfd:retry_window_us={window_us},filter_timeout_us=0")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    b.gpu_write(addr)
    mapped_ns = b.vm.process.svms.objects[0].validated_ns
    b.cpu_write(addr)
    (again,) = b.faults([Timed(b, addr)])
    assert window_us <= (again.answered_ns - mapped_ns) // US <= window_us + 100


@pytest.mark.parametrize(("entries", "at_once"), [(1, 1), (3, 3), (256, 4)])
def test_faults_wait_that_the_filter_cannot_remember(bench, entries, at_once):
    b = bench(f"kfd:filter_entries={entries},filter_timeout_us=800")
    addr = b.map(4 * PMD)
    b.cpu_write(addr, 4 * 512)
    faults = b.faults([Timed(b, addr + block * PMD) for block in range(4)])
    assert [each.took_us < 800 for each in faults] == [True] * at_once + [False] * (4 - at_once)


@pytest.mark.parametrize("timeout_us", [0, 50, 700])
def test_a_second_fault_on_a_page_waits_until_the_filter_forgets_the_first(bench, timeout_us):
    b = bench(f"kfd:filter_timeout_us={timeout_us},retry_window_us=0")
    addr = b.map(PMD)
    b.cpu_write(addr, 512)
    (first,) = b.faults([Timed(b, addr)])
    b.cpu_write(addr)
    (again,) = b.faults([Timed(b, addr)])
    assert timeout_us <= (again.answered_ns - first.time_ns) // US <= timeout_us + 100


@pytest.mark.parametrize(("entries", "taken"), [(1, 1), (5, 5), (512, 8)])
def test_a_ring_that_is_full_takes_no_fault(bench, entries, taken):
    b = bench(f"kfd:ring_entries={entries}")
    addr = b.map(8 * PMD)
    b.cpu_write(addr, 8 * 512)
    faults = [Timed(b, addr + block * PMD) for block in range(8)]
    assert b.vm.faults.submit(faults) == taken
    b.kernel.sleep_ns(10 * MS)
    assert [each.errno for each in faults] == [0] * taken + [None] * (8 - taken)


@pytest.mark.parametrize("delay_ms", [0, 1, 20])
def test_the_queues_stand_still_for_the_delay(bench, delay_ms):
    b = bench(f"kfd:xnack=off,restore_delay_ms={delay_ms}")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.vm.set_attr(addr, addr + 8 * PAGE, access={0: "access"})
    b.memory.mprotect(b.mm, addr, PAGE, PROT_READ)
    (one,) = b.faults([Timed(b, addr + PAGE)])
    assert one.errno == 0
    assert delay_ms * 1000 <= one.took_us <= delay_ms * 1000 + 100


@pytest.fixture
def held(bench):
    """Return a bench whose first range has a page in VRAM that somebody holds, so that the range stays, and where."""
    made = []

    def make(spec, **options):
        b = bench(spec, **options)
        addr = b.map(2 * PMD)
        b.cpu_write(addr, 1024)
        b.gpu_write(addr)
        pfn = b.mm.page_table.entry(addr + 7 * PAGE).pfn
        b.memory.folio_get(pfn)
        made.append((b, pfn))
        b.kernel.tracer.on = True
        return b, addr

    yield make
    for b, pfn in made:
        b.memory.folio_put(pfn)


def sent_home(b):
    """Return the bytes of each copy from VRAM."""
    return [event[5] for event in b.kernel.tracer.events if event[2] == "copy" and event[4] == "d2h"]


@pytest.mark.parametrize("tries", [1, 3, 5])
def test_a_range_on_the_way_to_another_gpu_is_sent_home_so_often(held, tries):
    b, addr = held(f"kfd:home_tries={tries}", hardware="dual")
    assert b.vms[1].populate(addr, addr + PMD) == 0
    assert sent_home(b) == [PMD, *[PAGE] * (tries - 1)]


@pytest.mark.parametrize("tries", [1, 3, 5])
def test_a_range_that_makes_room_is_sent_home_so_often(held, tries):
    b, addr = held(f"kfd:home_tries={tries}", vram_bytes=PMD)
    b.gpu_write(addr + PMD)
    assert sent_home(b) == [PMD, *[PAGE] * (tries - 1)]


def left(b):
    """Let the only process go."""
    b.machine.close(b.process, 0)
    b.mm.mmput()
    b.machine.processes.clear()
    b.kernel.settle()


@pytest.mark.parametrize(("runpm", "states"), [("on", ["D0", "D3cold"]), ("off", ["D0", "D0"])])
def test_a_device_that_nobody_uses_sleeps_with_runtime_pm(bench, runpm, states):
    b = bench(f"kfd:runpm={runpm}")
    seen = [b.driver.pm.rpm.state]
    left(b)
    b.kernel.sleep_ns(60 * SECOND)
    assert [*seen, b.driver.pm.rpm.state] == states


@pytest.mark.parametrize("ms", [0, 100, 5000])
def test_a_device_that_nobody_uses_stays_awake_for_the_delay(bench, ms):
    b = bench(f"kfd:autosuspend_ms={ms}")
    rpm = b.driver.pm.rpm
    left(b)
    if ms:
        b.kernel.sleep_ns(ms * MS - MS)
        assert rpm.state == "D0"
    b.kernel.sleep_ns(2 * MS)
    assert rpm.state == "D3cold"
