"""One buffer, one worker: batches, their order, what is skipped, replay and cancel."""

import errno

import pytest
from gpusvm.driver import ACCESS_ATOMIC, ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE
from gpusvm.gpu import ATOMIC, READ, REMOTE, WRITE
from gpusvm.mm.api import PROT_READ
from gpusvm.testing.bench import Fault
from gpusvm_nouveau.faults import compare_in_ints, sort_faults, sort_key

K, M = 1 << 10, 1 << 20
PAGE, PMD = 4 * K, 2 * M
BASE = 1 << 44


def perms(b, addr, pages=1):
    return b.vm.page_table.perms(addr // PAGE, addr // PAGE + pages).tolist()


def raise_all(b, *faults):
    return b.faults([Fault(addr, access, time_ns=b.kernel.now_ns) for addr, access in faults])


def test_a_batch_is_sorted_by_instance_address_and_strength():
    def fault(inst, addr, access):
        made = Fault(addr, access, time_ns=0)
        made.inst = inst
        return made

    batch = [
        fault(2, 0, ACCESS_READ),
        fault(1, PAGE, ACCESS_ATOMIC),
        fault(1, PAGE, ACCESS_PREFETCH),
        fault(1, PAGE, ACCESS_WRITE),
        fault(1, PAGE, ACCESS_READ),
        fault(1, 0, ACCESS_WRITE),
    ]
    assert [(f.inst, f.addr, f.access) for f in sorted(batch, key=sort_key)] == [
        (1, 0, ACCESS_WRITE),
        (1, PAGE, ACCESS_PREFETCH),
        (1, PAGE, ACCESS_READ),
        (1, PAGE, ACCESS_WRITE),
        (1, PAGE, ACCESS_ATOMIC),
        (2, 0, ACCESS_READ),
    ]


def test_a_fault_maps_one_page_where_it_is(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 8)
    assert b.gpu_read(addr + PAGE) == 1
    assert perms(b, addr, 4) == [0, READ | WRITE | REMOTE, 0, 0]
    assert b.where(addr + PAGE) == "system"
    assert b.kernel.stats.migrated_to_device_bytes == 0


def test_a_cpu_mapping_of_2_mib_is_mapped_whole(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr)
    assert b.gpu_write(addr + 77 * PAGE) == 1
    assert set(perms(b, addr, 512)) == {READ | WRITE | REMOTE}
    assert b.driver.device.dma.mapped_rows == 1
    b.gpu_read(addr, 512)


def test_a_read_maps_the_zero_page_read_only_and_a_write_faults_again(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.gpu_read(addr)
    assert perms(b, addr) == [READ | REMOTE]
    assert b.vm.page_table.pfns(addr // PAGE, addr // PAGE + 1)[0] == b.memory.zero_pfn
    assert b.gpu_write(addr) == 1
    assert perms(b, addr) == [READ | WRITE | REMOTE]
    b.cpu_read(addr)


def test_a_read_only_vma_can_be_read_but_a_write_is_cancelled(bench):
    b = bench(thp="never")
    addr = b.map(PMD, prot=PROT_READ)
    b.gpu_read(addr)
    assert b.fault(addr, ACCESS_WRITE).errno == errno.EPERM


def test_a_batch_ends_with_one_replay_and_cancels_fault_by_fault(bench):
    b = bench(thp="never")
    addr = b.map(8 * PAGE)
    b.cpu_write(addr, 8)
    b.kernel.tracer.on = True
    replays = []
    b.vm.faults.on_replay(lambda: replays.append(b.kernel.now_ns))
    good = [(addr + i * PAGE, ACCESS_READ) for i in range(8)]
    bad = [(BASE - PMD, ACCESS_READ), (BASE - 2 * PMD, ACCESS_WRITE)]
    answers = [f.errno for f in raise_all(b, *good, *bad)]
    assert answers == [0] * 8 + [errno.EFAULT] * 2
    assert len(replays) == 1
    cancels = [event[3:] for event in b.kernel.tracer.events if event[2] == "fault_cancel"]
    assert cancels == [(BASE - 2 * PMD, 1, errno.EFAULT), (BASE - PMD, 1, errno.EFAULT)]


def test_a_batch_of_cancelled_faults_has_no_replay(bench):
    b = bench()
    replays = []
    b.vm.faults.on_replay(lambda: replays.append(1))
    raise_all(b, (BASE - PMD, ACCESS_READ))
    assert replays == []


def test_the_fault_of_an_unknown_instance_is_cancelled(bench):
    b = bench()
    fault = Fault(b.map(PMD), ACCESS_READ, time_ns=0)
    fault.inst = 99
    b.driver.queues.submit(0, [fault])
    b.kernel.settle()
    assert fault.errno == errno.EINVAL


def test_duplicates_are_skipped_and_replayed(bench, events):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr)
    b.kernel.tracer.on = True
    faults = raise_all(b, *[(addr, ACCESS_WRITE)] * 5, (addr, ACCESS_READ))
    assert [f.errno for f in faults] == [0] * 6
    assert b.kernel.charged.get("bind_base", 0) == 0  # a bench without costs
    assert len(events(b, "tlb_invalidate")) == 1  # one map for six faults
    assert len(b.driver.accounts.latency_ns) == 6


def test_a_write_behind_a_read_of_a_read_only_page_is_skipped_and_faults_again(bench, events):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_read(addr)  # the zero page
    b.kernel.tracer.on = True
    raise_all(b, (addr, ACCESS_READ), (addr, ACCESS_WRITE))
    # The first of the two asked for V, and V was installed: what the second wants is not looked at.
    assert perms(b, addr) == [READ | REMOTE]
    assert len(events(b, "tlb_invalidate")) == 1
    assert b.gpu_write(addr) == 1


def test_faults_within_a_large_mapping_are_skipped(bench, events):
    b = bench()
    addr = b.map(2 * PMD)
    b.cpu_write(addr)
    b.kernel.tracer.on = True
    faults = raise_all(b, *((addr + i * PAGE, ACCESS_READ) for i in (3, 100, 511, 512)))
    assert [f.errno for f in faults] == [0] * 4
    assert len(events(b, "tlb_invalidate")) == 2  # the block, and the page behind it


def test_the_buffer_is_bounded(bench):
    b = bench("nouveau:fault_entries=4", thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 8)
    faults = [Fault(addr + i * PAGE, ACCESS_READ, time_ns=0) for i in range(8)]
    assert b.vm.faults.submit(faults) == 4
    b.kernel.settle()
    assert [f.errno for f in faults] == [0] * 4 + [None] * 4


def test_an_atomic_takes_the_page_from_the_cpu(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr)
    assert b.gpu_atomic(addr) == 1
    assert perms(b, addr) == [READ | WRITE | ATOMIC | REMOTE]
    b.cpu_read(addr)  # revokes it
    assert perms(b, addr) == [0]
    assert b.gpu_atomic(addr) == 1


def test_a_writable_mapping_does_not_do_for_an_atomic(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.gpu_write(addr)
    assert b.gpu_atomic(addr) == 1


def test_an_atomic_brings_a_device_page_home(bench):
    b = bench(thp="never", quirks="fixed")
    addr = b.map(PMD)
    b.cpu_write(addr, 4)
    b.vm.populate(addr, addr + 4 * PAGE)
    b.gpu_atomic(addr + PAGE)
    assert [b.where(addr + i * PAGE) for i in range(3)] == ["device", "system", "device"]


def test_every_error_of_make_device_exclusive_becomes_einval(bench):
    b = bench(thp="never")
    addr = b.map(PMD, prot=PROT_READ)
    assert b.fault(addr, ACCESS_ATOMIC).errno == errno.EINVAL


@pytest.mark.parametrize(("quirk", "expected"), [("as_written", READ | WRITE | ATOMIC), ("fixed", READ | WRITE)])
def test_an_atomic_sticks_to_the_rest_of_its_batch(bench, quirk, expected):
    b = bench(f"nouveau:quirk.sticky_atomic={quirk}", thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 3)
    raise_all(b, (addr, ACCESS_WRITE), (addr + PAGE, ACCESS_ATOMIC), (addr + 2 * PAGE, ACCESS_READ))
    assert perms(b, addr, 3) == [READ | WRITE | REMOTE, READ | WRITE | ATOMIC | REMOTE, expected | REMOTE]
    raise_all(b, (addr + 2 * PAGE, ACCESS_WRITE))  # a batch of its own begins without the flag
    assert perms(b, addr + 2 * PAGE) == [READ | WRITE | REMOTE]


@pytest.mark.parametrize("thp", ["always", "never"])
def test_a_prefetch_maps_only_what_is_present(bench, thp):
    b = bench(thp=thp)
    addr = b.map(2 * PMD)
    b.cpu_write(addr)
    faults = raise_all(b, (addr, ACCESS_PREFETCH), (addr + PMD, ACCESS_PREFETCH))
    assert [f.errno for f in faults] == [0, 0]
    assert perms(b, addr) == [READ | WRITE | REMOTE]
    assert perms(b, addr + PMD) == [0]
    assert b.where(addr + PMD) == "none"


@pytest.mark.parametrize(
    ("thp", "touch"), [("always", "cpu_write"), ("never", "cpu_read")], ids=["pmd split", "zero page"]
)
def test_as_written_an_atomic_that_has_to_invalidate_is_cancelled_after_a_second(bench, thp, touch):
    b = bench("nouveau:quirk.exclusive_retry=as_written", thp=thp)
    addr = b.map(PMD)
    getattr(b, touch)(addr)
    before = b.kernel.now_ns
    # Each attempt restores the entry of the last one, and that is an invalidation too. Without costs an attempt takes
    # no time, so let some pass.
    charge = b.kernel.charge
    b.kernel.charge = lambda event, n=1: (
        charge(event, n) if event != "get_pages_base" else b.kernel.sleep_ns(100_000_000)
    )
    assert b.fault(addr, ACCESS_ATOMIC).errno == errno.EBUSY
    assert b.kernel.now_ns - before > 1_000_000_000
    b.kernel.charge = charge
    assert b.fault(addr + PAGE, ACCESS_READ).errno == 0


def test_the_fixed_atomic_converges_there(bench):
    b = bench()
    addr = b.map(PMD)
    b.cpu_write(addr, 2)
    assert b.gpu_atomic(addr) == 1
    assert b.kernel.stats.retries == 0


def test_after_close_faults_are_cancelled(bench):
    b = bench()
    addr = b.map(PMD)
    b.vm.close()
    assert b.fault(addr).errno == errno.EINVAL


def test_latency_reaches_to_the_replay_and_is_the_sum_of_the_stages(bench):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 3)
    slow = b.kernel.charge
    b.kernel.charge = lambda event, n=1: (
        b.kernel.sleep_ns({"gpu_replay": 700, "bind_base": 100}.get(event, 0)) or slow(event, n)
    )
    raise_all(b, *((addr + i * PAGE, ACCESS_READ) for i in range(3)))
    assert list(b.driver.accounts.latency_ns) == [1000, 1000, 1000]
    assert b.driver.accounts.stages() == {
        "queue": 0 + 100 + 200,
        "gc": 0,
        "lookup": 0,
        "migrate": 0,
        "get_pages": 0,
        "bind": 300,
        "ack": 900 + 800 + 700,
    }


def raised(inst, addr, access=ACCESS_READ):
    made = Fault(addr, access, time_ns=0)
    made.inst = inst
    return made


@pytest.mark.parametrize(
    ("one", "other", "sign"),
    [
        (raised(1, 0), raised(1, (1 << 31) - PAGE), -1),
        (raised(1, 0), raised(1, 1 << 31), -1),  # cut off it is the lowest int
        (raised(1, 0), raised(1, (1 << 31) + PAGE), 1),
        (raised(1, 0), raised(1, 1 << 32, ACCESS_WRITE), -1),  # by the access: the addresses count as equal
        (raised(1, PAGE), raised(1 + (3 << 30), 0), 1),
    ],
)
def test_sort_overflow_differences_are_cut_off_to_an_int(one, other, sign):
    found = compare_in_ints(one, other)
    assert (found > 0) - (found < 0) == sign


def test_sort_overflow_nothing_changes_within_2_gib():
    faults = [raised(inst, addr, access) for inst in (2, 1) for addr in (PAGE, 0) for access in (1, 0, 2, 3)]
    in_ints, meant = list(faults), list(faults)
    sort_faults(in_ints, in_ints=True)
    sort_faults(meant, in_ints=False)
    assert in_ints == meant


@pytest.mark.parametrize(("quirk", "mapped"), [("as_written", [0, 1]), ("fixed", [1, 1])])
def test_sort_overflow_a_fault_in_front_of_a_group_is_skipped_and_raised_again(bench, quirk, mapped):
    b = bench(f"nouveau:quirk.sort_overflow={quirk}", thp="never")
    low, far = b.map(PAGE), BASE + (3 << 30)
    b.mm.mmap(far, PAGE, 3)
    b.cpu_write(low)
    b.cpu_write(far)
    answers = raise_all(b, (low, ACCESS_READ), (far, ACCESS_READ))
    assert [fault.errno for fault in answers] == [0, 0]
    assert [b.mapped_pages(low, 1), b.mapped_pages(far, 1)] == mapped
    b.gpu_read(low)


def test_a_page_that_cannot_be_mapped_for_dma_gets_an_entry_that_is_not_valid(bench, events):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr)
    b.kernel.tracer.on = True
    b.kernel.arm("dma.map")
    assert b.fault(addr).errno == 0
    assert (perms(b, addr), b.driver.device.dma.mapped_rows) == ([0], 0)
    assert events(b, "warn") == [("gp100_vmm_pgt_pfn", "-EFAULT: gpu0: dma_map_page failed")]
    assert b.gpu_read(addr) == 1


def test_a_batch_looks_its_instances_up_once_before_it_is_served(bench, monkeypatch):
    b = bench(thp="never")
    addr = b.map(PMD)
    b.cpu_write(addr, 3)
    looked = []
    find = type(b.driver).find
    monkeypatch.setattr(type(b.driver), "find", lambda self, batch: looked.append(len(batch)) or find(self, batch))
    raise_all(b, *((addr + i * PAGE, ACCESS_READ) for i in range(3)))
    assert looked == [3]
