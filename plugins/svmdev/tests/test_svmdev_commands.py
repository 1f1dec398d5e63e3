"""The commands of an open file: what they answer, and what real 7.3.4 answered that the source would not tell."""

from errno import EBADF, EBUSY, EINVAL, ENOENT

import pytest
from gpusvm.errors import KernelError
from gpusvm.mm.api import PROT_READ

PAGE = 4096


# ---- device memory


def test_memory_is_handed_out_first_fit_and_aligned_to_its_size(do):
    do = do("svmdev:device_pages=48")
    do("mmap 0 0 64 3 0", "w 0 0 64 1")
    assert do("sp 0 0 0 16") == "0 0 0 0"
    assert do("sp 0 0 16 4") == "0 0 0 0"
    assert do("sp 0 0 32 16") == "0 0 0 0"  # not at 20
    assert do("sp 0 0 48 16") == "-1 12 0 0"
    do("sf 0 0 0 0 0", "sf 0 0 16 64 0", "sf 0 0 32 0 0")
    assert do("si 0 0 0 48") == "0 0 0 0 0:0*16 n*16 0:20*16"
    assert do("st 0") == "0 0 0 0 alloc=3 rel=0 inuse=36 ranges=3 notifiers=1 gc=0 maps=32"
    assert do("sb 0 0").startswith("0 0 0 0")  # the oldest goes, and its place is taken again
    assert do("sp 0 0 48 8") == "0 0 0 0 inv(0,30,38,6,own)"
    do("sf 0 0 48 8 0")
    assert do("si 0 0 48 16") == "0 0 0 0 0:0*8 s*8"


def test_an_eviction_needs_an_allocation(do):
    do = do()
    do("mmap 0 0 16 3 0", "w 0 0 16 1")
    assert do("sb 0 0") == "-1 2 0 0"
    assert do("se 0 0 0") == "-1 2 0 0"  # no range
    do("sf 0 0 0 0 0")
    assert do("se 0 0 0") == "-1 2 0 0"  # no device page
    do("sf 0 0 0 1 0")
    assert do("se 0 0 9") == "0 0 0 0 " + " ".join(f"inv(0,{i:x},{i + 1:x},1,-;0-10{'m' * (not i)})" for i in range(16))


@pytest.mark.parametrize(
    ("what", "operation", "answer"),
    [(0, "sp 0 0 0 16", 12), (1, "sp 0 0 0 16", 12), (2, "sp 0 0 0 16", 5)],
)
def test_a_failure_is_armed_for_the_nth_next_call_and_once(do, what, operation, answer):
    do = do()
    do("mmap 0 0 16 3 0", "w 0 0 16 1", f"sx 0 {what} 1")
    assert do(operation).startswith(f"-1 {answer} 0 0")
    assert do("pm 0 0 16") == "0 0 16 0 " + 16 * "X"
    assert do(operation) == "0 0 0 0"
    assert do("pm 0 0 16") == "0 0 16 0 " + 16 * "S"


def test_a_copy_that_fails_in_a_cpu_fault_is_a_sigbus_and_invisible_in_an_eviction(do):
    do = do()
    do("mmap 0 0 16 3 0", "w 0 0 16 1", "sp 0 0 0 16", "sx 0 3 1")
    assert do("r 0 0 1") == "-2 7 0 0 "
    assert do("r 0 0 1") == "0 0 1 0 1"
    do("sp 0 0 0 16", "sx 0 3 1")
    assert do("sb 0 0") == "0 0 0 0"


# ---- the device's accesses


def test_accesses_go_through_what_is_mapped(do):
    do = do()
    do("mmap 0 0 32 3 0", "w 0 0 32 100")
    assert do("sr 0 0 0 1") == "-1 2 0 0 "
    do("sf 0 0 0 1 0")
    assert do("sr 0 0 14 4") == "-1 2 2 0 72,73"
    assert do("sw 0 0 0 2 500") == "0 0 2 0"
    assert do("r 0 0 3").startswith("0 0 3 0 1f4,1f5,66")
    assert do("sr 0 0 0 1") == "-1 14 0 0 "  # came home
    do("mprot 0 0 32 1", "sf 0 0 0 4 0")
    assert do("sw 0 0 0 1 900") == "-1 13 0 0"
    assert do("sr 0 0 0 1") == "0 0 1 0 1f4"


def test_what_the_device_maps_is_what_its_page_table_says(bench):
    b = bench(thp="never")
    addr = b.map(32 * PAGE)
    b.cpu_write(addr, 32)
    assert b.gpu_read(addr) == 1
    assert b.mapped_pages(addr, 32) == 16
    shift = b.memory.geometry.page_shift
    rows = b.vm.find(addr).pages.dma_addr
    assert b.vm.page_table.pfns(addr >> shift, (addr >> shift) + 16).tolist() == rows.page_pfns().tolist()
    b.cpu_read(addr)
    assert b.mapped_pages(addr, 32) == 0


# ---- faults


def test_a_command_says_what_each_stage_answered(bench):
    b = bench(thp="never")
    addr = b.map(16 * PAGE)
    b.cpu_write(addr, 16)
    command = b.vm.commands.fault(addr, 1)
    assert command.stages == [("rng", (addr, addr + 16 * PAGE, True)), ("pop", (0,)), ("get", (0,))]
    assert command.errno == 0
    assert command.mapped is b.vm.find(addr).pages.dma_addr
    assert b.vm.commands.fault(0x1000, 1).stages == [("ins", (ENOENT,))]


def test_a_mixture_is_evicted_and_tried_again(do):
    do = do()
    do("mmap 0 0 32 3 0", "w 0 0 32 1", "sp 0 0 0 8")
    assert do("sf 0 0 0 1 0").startswith("-1 95 0 0 rng(0,10,mig) pop(-16) get(-95)")
    assert do("sf 0 0 0 9 0").startswith("0 0 0 0 rng(0,10,mig) pop(-16) get(0) map(rw,00*8,s0*8)")
    do("mprot 0 0 32 1", "mprot 0 0 32 3")  # unmapped again
    answer = do("sf 0 0 0 17 0").split(" inv")[0]
    assert answer == ("0 0 0 0 rng(0,10,mig) pop(-16) get(-95) ev(0) rng(0,10,mig) pop(0) get(0) map(rw,00*16)")


def test_a_pmd_hole_is_populated_and_answers_ebusy(do):
    for spec, errno in (("svmdev", EBUSY), ("svmdev:quirk.hole_count=fixed", 0)):
        fresh = do(spec)
        fresh("mmap 0 0 512 3 0", "madv 0 0 512 14")
        answer = fresh("sf 0 0 0 1 0").split(" inv")[0]
        assert answer == f"0 0 0 0 rng(0,200,mig) pop({-errno}) get(0) map(rw,09*1)"


def test_a_range_that_lost_its_middle_is_evicted_up_to_the_hole(do):
    do = do()
    do("mmap 0 0 16 3 0", "w 0 0 16 1", "sf 0 0 0 1 0", "munmap 0 4 4")
    assert do("st 0").split()[7:] == ["ranges=1", "notifiers=1", "gc=1", "maps=0"]
    assert do("sg 0").split()[-1] == "gc(0,0,10,part,-14)"
    assert do("pm 0 0 16") == "0 0 16 0 XXXXnnnnSSSSSSSS"
    assert do("st 0") == "0 0 0 0 alloc=1 rel=0 inuse=16 ranges=0 notifiers=0 gc=0 maps=0"


# ---- two devices


def test_with_one_owner_a_device_maps_and_moves_what_lies_on_another(do):
    do = do()
    do("mmap 0 0 16 3 0", "w 0 0 16 7", "sf 0 0 0 1 0")
    assert do("sf 1 0 0 0 0").split(" inv")[0] == "0 0 0 0 rng(0,10,mig) get(0) map(rw,00*16)"
    assert do("sc 1 0 0") == "0 0 2 0"
    assert do("sr 1 0 3 1") == "0 0 1 0 a"
    assert do("sf 1 0 0 1 1").split(" inv")[0] == "0 0 0 0 rng(0,10,mig) pop(0) get(0) map(rw,10*16)"
    assert do("st 0").split()[4:7] == ["alloc=1", "rel=1", "inuse=0"]
    assert do("sr 1 0 3 1") == "0 0 1 0 a"


def test_with_two_owners_what_lies_on_another_comes_home_first(do):
    do = do("svmdev:same_owner=0")
    do("mmap 0 0 16 3 0", "w 0 0 16 7", "sf 0 0 0 1 0")
    assert do("sf 1 0 0 1 1").split(" inv")[0] == "0 0 0 0 rng(0,10,mig) pop(-16) get(0) map(rw,s0*16)"
    assert do("sf 1 0 0 1 0").split(" inv")[0] == "0 0 0 0 rng(0,10,mig) pop(0) get(0) map(rw,s0*16)"


# ---- as a driver like any other


def test_a_program_populates_block_by_block(bench):
    b = bench()
    addr = b.map(4 << 20)
    b.cpu_write(addr, 1024)
    assert b.vm.populate(addr, addr + (4 << 20)) == 4 << 20
    assert b.device_pages(addr, 1024) == 1024
    assert b.driver.describe() == {
        "device": "gpu0",
        "device_pages": 131072,
        "pages_in_use": 1024,
        "allocations": 2,
        "files": 1,
    }
    with pytest.raises(KernelError) as error:
        b.vm.populate(addr, addr + (6 << 20))
    assert error.value.errno == ENOENT


def test_a_block_that_lies_in_two_areas_stays(bench):
    b = bench(thp="never")
    addr = b.map(4 << 20)
    b.cpu_write(addr, 1024)
    b.mm.mprotect(addr, PAGE, PROT_READ)
    assert b.vm.populate(addr, addr + (4 << 20)) == 2 << 20
    assert b.device_pages(addr, 512) == 0
    assert b.device_pages(addr + (2 << 20), 512) == 512


def test_a_program_that_only_reads_may_have_no_fault_on_memory_it_may_not_write(bench):
    b = bench()
    addr = b.map(PAGE)
    b.cpu_write(addr)
    b.mm.mprotect(addr, PAGE, PROT_READ)
    assert b.fault(addr).errno == 1


def test_a_closed_file_does_nothing(bench):
    b = bench()
    addr = b.map(PAGE)
    b.cpu_write(addr)
    file = b.vm
    file.close()
    file.close()
    assert b.fault(addr).errno == EINVAL
    for command in (lambda: file.populate(addr, addr + PAGE), lambda: file.commands.scan(addr)):
        with pytest.raises(KernelError) as error:
            command()
        assert error.value.errno == EBADF


def test_a_device_in_use_cannot_be_removed(bench):
    b = bench()
    with pytest.raises(KernelError) as error:
        b.driver.shutdown()
    assert error.value.errno == EBUSY


def test_a_device_that_is_removed_gives_its_memory_back_first(bench):
    b = bench()
    addr = b.map(2 << 20)
    b.cpu_write(addr, 512)
    b.vm.populate(addr, addr + (2 << 20))
    b.vm.close()
    b.driver.shutdown()
    assert b.device_pages(addr, 512) == 0
    b.cpu_read(addr, 512)
    b.machine.drivers.clear()
