from errno import ENOSPC

import pytest
from gpusvm.drm.buddy import Buddy
from gpusvm.errors import KernelError, ModelError
from hypothesis import given
from hypothesis import strategies as st


def test_allocates_the_lowest_place_aligned_to_the_size():
    buddy = Buddy(2048)
    assert buddy.alloc(1) == [(0, 1)]
    assert buddy.alloc(512) == [(512, 512)]
    assert buddy.alloc(16) == [(16, 16)]
    assert buddy.used_pages == 529


def test_top_down_takes_the_highest_place():
    buddy = Buddy(2048)
    assert buddy.alloc(512, top_down=True) == [(1536, 512)]
    assert buddy.alloc(1, top_down=True) == [(1535, 1)]
    assert buddy.alloc(1) == [(1534, 1)]  # what fits best goes before what lies lowest
    assert buddy.alloc(1024) == [(0, 1024)]
    buddy.free([(1536, 512), (1535, 1), (0, 1024), (1534, 1)])
    assert buddy.alloc(2048) == [(0, 2048)]


def test_an_arbitrary_size_gives_the_rest_of_its_block_back():
    buddy = Buddy(1024)
    assert buddy.alloc(300) == [(0, 300)]
    assert buddy.free_pages == 724
    assert buddy.alloc(4) == [(300, 4)]
    assert buddy.alloc(128) == [(384, 128)]


def test_a_size_that_is_no_power_of_two_can_be_managed_whole():
    buddy = Buddy(1000)
    assert buddy.alloc(512) == [(0, 512)]
    assert buddy.alloc(256) == [(512, 256)]
    assert buddy.alloc(232, contiguous=False) == [(768, 128), (896, 64), (960, 32), (992, 8)]
    with pytest.raises(KernelError) as caught:
        buddy.alloc(1)
    assert str(caught.value) == "-ENOSPC: 1 pages wanted, 0 of 1000 free"


def test_contiguous_memory_is_also_found_among_neighbours():
    buddy = Buddy(1024)
    blocks = [buddy.alloc(256)[0] for _ in range(4)]
    buddy.free([blocks[1], blocks[2]])
    assert buddy.alloc(512) == [(256, 512)]
    buddy.free([(256, 512), blocks[0], blocks[3]])
    assert buddy.alloc(1024) == [(0, 1024)]


def test_fragmented_memory_is_no_contiguous_memory():
    buddy = Buddy(1024)
    blocks = [buddy.alloc(256)[0] for _ in range(4)]
    buddy.free([blocks[1], blocks[3]])
    with pytest.raises(KernelError) as caught:
        buddy.alloc(512)
    assert caught.value.errno == ENOSPC
    assert str(caught.value) == "-ENOSPC: 512 contiguous pages wanted, 512 free in smaller pieces"
    assert buddy.alloc(512, contiguous=False) == [(256, 256), (768, 256)]


def test_min_order_rounds_up():
    buddy = Buddy(64, min_order=4)
    assert buddy.alloc(1) == [(0, 16)]
    assert buddy.alloc(17) == [(32, 32)]


def test_freeing_twice_is_refused():
    buddy = Buddy(64)
    blocks = buddy.alloc(16)
    buddy.free(blocks)
    with pytest.raises(ModelError) as caught:
        buddy.free([(0, 64)])
    assert str(caught.value) == "buddy: block 0+64 is free already"


@given(
    st.integers(1, 700),
    st.lists(st.tuples(st.booleans(), st.integers(1, 130), st.booleans(), st.booleans()), max_size=60),
)
def test_blocks_never_overlap_and_all_memory_comes_back(size, steps):
    buddy = Buddy(size)
    held = []
    used = [False] * size
    for is_free, amount, contiguous, top_down in steps:
        if is_free and held:
            blocks = held.pop(amount % len(held))
            buddy.free(blocks)
            for start, n in blocks:
                used[start : start + n] = [False] * n
        else:
            try:
                blocks = buddy.alloc(amount, contiguous=contiguous, top_down=top_down)
            except KernelError:
                if not contiguous:
                    assert used.count(False) < amount
                else:
                    run = "".join("u" if page else "f" for page in used)
                    assert "f" * amount not in run
                continue
            assert sum(n for _, n in blocks) == amount
            assert not contiguous or len(blocks) == 1
            for start, n in blocks:
                assert not any(used[start : start + n])
                used[start : start + n] = [True] * n
            held.append(blocks)
        assert buddy.free_pages == used.count(False)
    for blocks in held:
        buddy.free(blocks)
    assert buddy.alloc(size) == [(0, size)]
