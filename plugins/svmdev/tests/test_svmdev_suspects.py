"""Three suspects of the mm that real 7.3.4 was seen to have: as written the model shows each, fixed it does not.

The operations are those that a kernel was given, and the answers as written are its answers.
"""

import pytest
from gpusvm.errors import DeadlockError

BOTH = pytest.mark.parametrize("variant", ["as_written", "fixed"])

# Two devices, one owner. The range a0-b0 of device 1 is older than the huge page that device 0 takes.
WRONG_PAGE = [
    "mmap 0 128 64 3 0",
    "w 0 128 64 5128",
    "sf 1 0 160 0 0",
    "mmap 0 0 128 3 0",
    "mmap 0 192 320 3 0",
    "madv 0 0 512 14",
    "w 0 0 128 5000",
    "w 0 192 320 5192",
    "madv 0 0 512 25",
]


@BOTH
def test_s1_a_range_inside_a_huge_page_of_a_device_maps_the_pages_of_its_head(do, variant):
    do = do(f"svmdev:quirk.mm_s1={variant}")
    assert do(*WRONG_PAGE) == "0 0 0 0 inv(1,0,200,1,-;a0-b0m)"
    assert do("sf 0 0 0 1 0").startswith("0 0 0 0 rng(0,200,mig) pop(0) get(0) map(rw,09*1)")
    assert do("sr 0 0 160 2") == "0 0 2 0 1428,1429"
    assert do("sf 1 0 160 0 0") == "0 0 0 0 rng(a0,b0,mig) get(0) map(rw,04*1)"
    shown = {"as_written": ("0:0*16", "1388,1389"), "fixed": ("0:a0*16", "1428,1429")}
    assert do("si 1 0 160 16") == f"0 0 0 0 {shown[variant][0]}"
    assert do("sr 1 0 160 2") == f"0 0 2 0 {shown[variant][1]}"
    assert do("sw 1 0 160 1 4242") == "0 0 1 0"
    # As written, page 0 is overwritten.
    assert do("sr 0 0 160 1") == {"as_written": "0 0 1 0 1428", "fixed": "0 0 1 0 1092"}[variant]
    assert do("r 0 0 2").startswith({"as_written": "0 0 2 0 1092,1389", "fixed": "0 0 2 0 1388,1389"}[variant])


@BOTH
def test_s1_with_one_device(do, variant):
    do = do(f"svmdev:quirk.mm_s1={variant}")
    assert do("mmap 0 160 32 0 0", "sf 0 0 160 4 0") == "-1 14 0 0 rng(a0,b0,mig) get(-14)"
    do("mmap 0 0 160 0 0", "mmap 0 192 320 0 0", "mprot 0 0 512 3", "madv 0 0 512 14", "w 0 0 1 1000", "w 0 160 1 1160")
    assert do("sp 0 0 0 512").startswith("0 0 0 0")
    do("sf 0 0 160 0 0")
    assert do("sr 0 0 160 1") == {"as_written": "0 0 1 0 3e8", "fixed": "0 0 1 0 488"}[variant]


def test_s1_does_not_show_once_the_entry_was_split(do):
    do = do()
    do(*WRONG_PAGE, "sf 0 0 0 1 0", "mprot 0 300 16 1", "sf 1 0 160 0 0")
    assert do("sr 1 0 160 2") == "0 0 2 0 1428,1429"


@BOTH
@pytest.mark.parametrize("order", ["migrate first", "fork first"])
def test_s2_a_device_writes_what_a_child_shares(do, variant, order):
    do = do(f"svmdev:quirk.mm_s2={variant}")
    do("mmap 0 0 16 3 0", "w 0 0 16 1000")
    if order == "migrate first":
        do("sf 0 0 0 1 0", "kf")
        mapped = do("sf 0 0 0 0 0")
    else:
        do("kf")
        mapped = do("sf 0 0 0 1 0")
    assert ("map(rw,00*16)" in mapped) is (variant == "as_written")
    assert do("sw 0 0 0 2 7777") == "0 0 2 0"
    child = {"as_written": "1e61,1e62,3ea", "fixed": "3e8,3e9,3ea"}[variant]
    assert do("kr 0 0 3").startswith(f"0 0 3 0 {child}")
    assert do("r 0 0 3").startswith("0 0 3 0 1e61,1e62,3ea")


def test_s2_in_system_memory_the_write_is_the_parents_own(do):
    do = do()
    do("mmap 0 0 16 3 0", "w 0 0 16 1000", "kf")
    assert "map(rw,s0*16)" in do("sf 0 0 0 0 0")
    do("sw 0 0 0 2 7777")
    assert do("kr 0 0 3") == "0 0 3 0 3e8,3e9,3ea"


# A huge page on the device that the CPU maps page by page.
MAPPED_BY_PAGES = ["mmap 0 0 512 3 0", "madv 0 0 512 14", "w 0 0 1 7"]


@pytest.mark.parametrize(("page", "rounds"), [(310, 2), (0, 1)])
def test_s3_a_page_that_is_not_the_head_comes_home_in_two_rounds(do, page, rounds):
    do = do()
    do(*MAPPED_BY_PAGES, "sf 0 0 0 1 0", "madv 0 326 16 4")
    events = do(f"r 0 {page} 1").split()[5:]
    migrate, clear = "inv(0,0,200,6,own;0-200)", "inv(0,0,200,1,-;0-200)"
    assert events == [migrate, clear] + [migrate] * (rounds - 1)


def test_s3_fixed_it_takes_one_round(do):
    do = do("svmdev:quirk.mm_s3=fixed")
    do(*MAPPED_BY_PAGES, "sf 0 0 0 1 0", "madv 0 326 16 4")
    assert do("r 0 310 1").count(",6,own") == 1


def test_s3_after_a_failed_copy_the_head_page_is_out_of_reach_for_ever(do):
    do = do(close=False)
    do(*MAPPED_BY_PAGES, "sp 0 0 0 512", "sx 0 3 1", "madv 0 326 16 4")
    assert do("r 0 310 1").startswith("-2 7 0 0")
    assert do("r 0 1 1").startswith("0 0 1 0 0")
    assert do("pm 0 0 16") == "0 0 16 0 SXXXXXXXXXXXXXXX"
    assert do("sb 0 0").startswith("-1 16 0 0")
    with pytest.raises(DeadlockError, match="waits for waitqueue 'folio lock of pfn"):
        do("r 0 0 1")


@pytest.mark.parametrize(("spec", "page"), [("svmdev", 0), ("svmdev:quirk.mm_s3=fixed", 310)])
def test_s3_not_so_on_the_head_page_or_fixed(do, spec, page):
    do = do(spec)
    do(*MAPPED_BY_PAGES, "sp 0 0 0 512", "sx 0 3 1", "madv 0 326 16 4")
    assert do(f"r 0 {page} 1").startswith("-2 7 0 0")
    assert do("r 0 0 1").startswith("0 0 1 0 7")
    assert do("st 0").split()[6] == "inuse=0"


@BOTH
def test_s4_two_blocks_in_which_no_page_table_is_are_taken_for_one(do, variant):
    """Fixed, the second is not forgotten, and all moves; what EBUSY is left is of the count of holes."""
    do = do(f"svmdev:one_log=1,device_pages=1280,quirk.hole_count=fixed,quirk.mm_s4={variant}")
    do("mmap 0 0 1024 3 0", "madv 0 0 1024 14")
    assert do("sp 0 0 0 1024") == {"as_written": "-1 16 0 0", "fixed": "0 0 0 0"}[variant]
    shown = {"as_written": "nn", "fixed": "SS"}[variant]
    assert do("pm 0 0 2") == do("pm 0 512 2") == f"0 0 2 0 {shown}"


@BOTH
def test_s4_does_not_show_where_there_is_a_table_of_pmds(do, variant):
    do = do(f"svmdev:one_log=1,device_pages=1280,quirk.mm_s4={variant}")
    do("mmap 0 0 1024 3 0", "madv 0 0 1024 14", "mmap 1 0 1 3 0", "w 1 0 1 5")
    assert do("sp 0 0 0 1024") == "-1 16 0 0"  # hole_count: it is done all the same
    assert do("pm 0 0 2") == do("pm 0 512 2") == "0 0 2 0 SS"


@BOTH
def test_a_coherent_page_is_mapped_as_system_memory_and_unmapped_as_a_devices(do, variant):
    do = do(f"svmdev:one_log=1,coherent=1,quirk.coherent_unmap={variant}")
    do("mmap 0 0 16 3 0", "w 0 0 16 1000", "sp 0 0 0 16")
    assert do("r 0 0 2") == "0 0 2 0 3e8,3e9"  # the CPU reads it where it is
    assert do("pm 0 0 2") == "0 0 2 0 XX"
    assert do("sf 0 0 0 0 0") == "0 0 0 0 rng(0,10,mig) get(0) map(rw,00*16)"
    assert do("sp 0 0 0 16").startswith("0 0 0 0")  # it is there already
    assert do("sp 1 0 0 16").startswith("0 0 0 0")
    maps = {"as_written": -16, "fixed": 0}[variant]
    assert do("st 0") == f"0 0 0 0 alloc=2 rel=2 inuse=0 ranges=1 notifiers=1 gc=0 maps={maps}"
    assert do("r 0 0 2") == "0 0 2 0 3e8,3e9"
    assert do("sc 0 0 0") == "0 0 2 0"
