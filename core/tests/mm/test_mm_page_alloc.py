"""The system allocator: aligned, without overlap, no block broken needlessly, everything given back."""

import numpy as np
import pytest
from gpusvm.errors import ModelError
from gpusvm.mm.page_alloc import PageAllocator
from hypothesis import given, settings
from hypothesis import strategies as st


def test_blocks_and_pages():
    allocator = PageAllocator(64, pmd_order=3)
    assert [allocator.alloc(3), allocator.alloc(3)] == [0, 8]
    assert [allocator.alloc(0), allocator.alloc(0), allocator.alloc(1), allocator.alloc(2)] == [16, 17, 18, 20]
    assert allocator.free_pages == 64 - 24
    assert allocator.alloc(4) == -1
    allocator.free(17, 0)
    assert allocator.alloc(1) == 24  # 17 alone has no room for two
    assert allocator.alloc(0) == 17


def test_the_last_freed_block_comes_first():
    allocator = PageAllocator(64, pmd_order=3)
    blocks = [allocator.alloc(3) for _ in range(4)]
    allocator.free(blocks[1], 3)
    allocator.free(blocks[2], 3)
    assert allocator.alloc(3) == blocks[2]
    assert allocator.alloc_bulk(8).tolist() == list(range(8, 16))
    assert allocator.alloc(3) == 32


def test_bulk_uses_broken_blocks_first():
    allocator = PageAllocator(64, pmd_order=3)
    assert allocator.alloc_bulk(3).tolist() == [0, 1, 2]
    assert allocator.alloc_bulk(7).tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert allocator.alloc_bulk(20).tolist() == list(range(10, 30))
    allocator.free_bulk(np.array([29, 4, 12]))
    assert allocator.alloc_bulk(2).tolist() == [29, 30]
    assert allocator.alloc_bulk(3).tolist() == [31, 4, 12]
    assert allocator.alloc_bulk(64) is None
    assert allocator.free_pages == 32


def test_a_part_of_a_block_at_the_end():
    allocator = PageAllocator(13, pmd_order=3)
    assert allocator.alloc(0) == 8
    assert allocator.alloc(3) == 0
    assert allocator.alloc(3) == -1
    assert allocator.alloc(2) == -1
    assert allocator.alloc_bulk(4).tolist() == [9, 10, 11, 12]
    assert allocator.alloc(0) == -1
    assert allocator.free_pages == 0


def test_double_free():
    allocator = PageAllocator(16, pmd_order=3)
    allocator.alloc_bulk(3)
    allocator.free(1, 0)
    with pytest.raises(ModelError, match=r"^pages of block 0 freed twice: mask 0x2$"):
        allocator.free(1, 0)


@settings(deadline=None, max_examples=100)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("one"), st.integers(0, 3)),
            st.tuples(st.just("bulk"), st.integers(1, 20)),
            st.tuples(st.just("free"), st.integers(0, 100)),
        ),
        max_size=60,
    ),
    pages=st.integers(8, 70),
)
def test_no_page_is_given_out_twice(steps, pages):
    allocator = PageAllocator(pages, pmd_order=3)
    held: list[list[int]] = []
    for kind, n in steps:
        used = {page for group in held for page in group}
        if kind == "one":
            first = allocator.alloc(n)
            if first < 0:
                free = set(range(pages)) - used
                assert not any(set(range(i, i + (1 << n))) <= free for i in range(0, pages, 1 << n))
                continue
            assert first % (1 << n) == 0
            got = list(range(first, first + (1 << n)))
        elif kind == "bulk":
            bulk = allocator.alloc_bulk(n)
            if bulk is None:
                assert n > pages - len(used)
                continue
            got = bulk.tolist()
            assert len(got) == n
        else:
            if held:
                group = held.pop(n % len(held))
                consecutive = group == list(range(group[0], group[0] + len(group)))
                if n % 2 and consecutive:
                    allocator.free_range(group[0], len(group))
                else:
                    allocator.free_bulk(np.array(group[::-1]))
                assert allocator.free_pages == pages - sum(map(len, held))
            continue
        assert not used & set(got)
        assert max(got) < pages
        held.append(got)
        assert allocator.free_pages == pages - sum(map(len, held))
    for group in held:
        allocator.free_bulk(np.array(group))
    # Whole again, but for the part of a block at the end.
    assert allocator.free_pages == pages
    assert [allocator.alloc(3) >= 0 for _ in range(pages // 8 + 1)] == [True] * (pages // 8) + [False]
