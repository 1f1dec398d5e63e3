"""A device that is unplugged, its pagemap in a cache, room that is made, and pages that stay for some time.

The answers are those of Linux 7.3.4 to the same operations.
"""

import pytest
from gpusvm.errors import DeadlockError

WRITTEN = ("mmap 0 0 32 3 0", "w 0 0 32 1000")


def test_an_unplugged_device_gives_its_pages_back_and_takes_no_more(do):
    do = do("svmdev:one_log=1")
    do(*WRITTEN, "sf 0 0 0 1 0")
    cleared = [f"inv(0,{page:x},{page + 1:x},1,-;0-10{'' if page else 'm'})" for page in range(16)]
    assert do("su 0") == " ".join(["0 0 1 0", *cleared])
    assert do("sf 0 0 0 1 0") == "0 0 0 0 rng(0,10,mig) pop(-19) get(0) map(rw,s0*16)"
    assert do("sr 0 0 0 2") == "0 0 2 0 3e8,3e9"
    assert do("su 0") == "-1 19 0 0"
    assert do("sf 0 0 0 1 1").startswith("0 0 0 0 rng(0,10,mig) pop(0) get(0) map(rw,10*16)")


def test_a_pagemap_that_nobody_uses_is_revived_or_goes(do):
    do = do("svmdev:one_log=1,cached=1")
    assert do("sa 0") == "0 0 0 0 new#1"
    assert do("sa 0") == "-1 16 0 0"
    assert do("sk 0 1") == "0 0 0 0"  # somebody uses it
    assert do("sz 0", "sa 0") == "0 0 0 0 revived#1"
    assert do("sz 0", "sk 0 0") == "0 0 0 0"
    assert do("sk 0 2") == "0 0 1 0 destroy(0,1,1)"
    assert do("sz 0") == "-1 2 0 0"
    assert do("sa 0") == "0 0 0 0 new#2"


def test_a_page_on_the_device_uses_its_pagemap(do):
    do = do("svmdev:one_log=1,cached=1")
    do(*WRITTEN, "sp 0 0 0 16")
    assert do("sk 0 1") == "0 0 0 0"
    assert do("sa 0") == "0 0 0 0 active#1"
    do("sz 0", "sb 0 0")
    assert do("sk 0 1") == "0 0 1 0 destroy(0,1,1)"


def test_after_unplug_the_last_reference_destroys_it_and_the_cache_does_not_know(do):
    """The next lookup waits for somebody to put it on the shrinker's list: for ever."""
    do = do("svmdev:one_log=1,cached=1", close=False)
    do("sa 0", "su 0")
    assert do("sz 0") == "0 0 0 0 destroy(0,1,1)"
    with pytest.raises(DeadlockError):
        do("sa 0")


def test_fixed_the_cache_forgets_it_and_the_next_lookup_makes_another(do):
    do = do("svmdev:one_log=1,cached=1,quirk.stale_cache=fixed")
    do("sa 0", "su 0")
    assert do("sz 0", "sa 0") == "0 0 0 0 new#2"
    assert do("sp 0 0 0 1") == "-1 19 0 0"


def test_where_there_is_no_room_the_oldest_goes_home(do):
    full = do("svmdev:device_pages=16")
    full(*WRITTEN, "sp 0 0 0 16")
    assert full("sp 0 0 16 16") == "-1 12 0 0"
    made = do("svmdev:device_pages=16,make_room=1")
    made(*WRITTEN, "sp 0 0 0 16")
    assert made("sp 0 0 16 16") == "0 0 0 0"
    assert made("st 0") == "0 0 0 0 alloc=2 rel=1 inuse=16 ranges=0 notifiers=0 gc=0 maps=0"


@pytest.mark.parametrize(("operation", "when"), [("r 0 0 1", "late"), ("sb 0 0", "early")])
def test_the_cpu_waits_for_what_is_to_stay_and_an_eviction_does_not(do, operation, when):
    do = do("svmdev:one_log=1")
    do(*WRITTEN, "sl 0 60", "sp 0 0 0 16")
    assert do(operation).split()[-1] == f"copy(0,{when})"
