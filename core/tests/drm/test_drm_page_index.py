"""Indices from a page to its allocation, held against a dictionary; their size against a count of the nodes."""

from errno import ENOMEM

import numpy as np
import pytest
from gpusvm.drm import INTERVAL_NODE_BYTES, XA_NODE_BYTES, OffsetMap, XArray, page_index
from gpusvm.errors import KernelError
from gpusvm.kernel import Kernel
from gpusvm.mm.api import MEMORY_DEVICE_PRIVATE, DevPagemap
from hypothesis import given
from hypothesis import strategies as st

FIRST, PAGES = 1 << 20, 1 << 14


def pgmap():
    return DevPagemap(MEMORY_DEVICE_PRIVATE, FIRST, PAGES, None, ops=None)


def pfns(first, n):
    return np.arange(FIRST + first, FIRST + first + n, dtype=np.int64)


def xa_nodes(allocations):
    """Count the nodes of an xarray that holds [first, first + n) of each allocation, from what xa_store_range says."""
    used = set()
    for first, n in allocations:
        at = first
        while at < first + n:
            shift = 0
            while shift < 12 and at % (64 << shift) == 0 and at + (64 << shift) <= first + n:
                shift += 6
            used |= {(above, at >> above + 6) for above in range(shift, 18, 6)}
            at += 1 << shift
    return len(used)


@pytest.mark.parametrize("kind", [OffsetMap, XArray])
@given(
    calls=st.lists(
        st.one_of(
            st.tuples(st.just("attach"), st.integers(0, 255), st.sampled_from([1, 3, 16, 64, 512, 513])),
            st.tuples(st.just("detach"), st.integers(0, 20), st.just(0)),
            st.tuples(st.just("find"), st.integers(0, PAGES - 1), st.just(0)),
        ),
        max_size=40,
    )
)
def test_an_index_finds_what_a_dictionary_finds(kind, calls):
    kernel = Kernel()
    index = kind(kernel, pgmap())
    pages, live, nodes_max, finds = {}, [], 0, 0
    for what, a, b in calls:
        first = a * 64 % (PAGES - 600)
        if what == "attach" and not any(page in pages for page in range(first, first + b)):
            live.append((first, b))
            pages.update(dict.fromkeys(range(first, first + b), live[-1]))
            index.attach(live[-1], pfns(first, b))
            nodes_max = max(nodes_max, len(live) if kind is OffsetMap else xa_nodes(live))
        elif what == "detach" and live:
            gone = live.pop(a % len(live))
            for page in range(gone[0], gone[0] + gone[1]):
                del pages[page]
            index.detach(pfns(*gone))
        elif what == "find":
            finds += 1
            assert index.find(FIRST + a) is pages.get(a)
    assert index.costs.lookups == finds
    assert index.costs.nodes == (len(live) if kind is OffsetMap else xa_nodes(live))
    assert index.costs.nodes_max == nodes_max
    assert index.costs.bytes_max == nodes_max * (INTERVAL_NODE_BYTES if kind is OffsetMap else XA_NODE_BYTES)
    kernel.close()


@pytest.mark.parametrize("kind", [OffsetMap, XArray])
def test_an_allocation_in_pieces_is_found_by_each_of_them(kind):
    index = kind(Kernel(), pgmap())
    scattered = np.concatenate([pfns(0, 2), pfns(64, 16), pfns(4096, 1)])
    index.attach("scattered", scattered)
    index.attach("between", pfns(2, 62))
    assert {index.find(int(pfn)) for pfn in scattered} == {"scattered"}
    assert index.find(FIRST + 63) == "between"
    assert index.find(FIRST + 80) is None
    index.detach(scattered)
    assert index.find(FIRST) is None
    assert index.find(FIRST + 2) == "between"


def test_what_a_lookup_loads():
    kernel = Kernel()
    tree, array = OffsetMap(kernel, pgmap()), XArray(kernel, pgmap())
    for n in range(7):
        for index in (tree, array):
            index.attach(n, pfns(512 * n, 512 if n else 1))
    tree.find(FIRST)  # a balanced tree of seven nodes has three levels
    array.find(FIRST)  # 16,384 pages are three levels of 64, down to a single page
    array.find(FIRST + 512)  # a block of 512 pages is in eight slots of the second level
    assert (tree.costs.loads, array.costs.loads) == (3, 3 + 2)


def test_an_xarray_that_gets_no_node_enters_nothing():
    kernel = Kernel()
    index = XArray(kernel, pgmap())
    kernel.arm("page_index.xa_node")
    with pytest.raises(KernelError) as refused:
        index.attach("one", pfns(0, 512))
    assert refused.value.errno == ENOMEM
    assert index.find(FIRST) is None
    assert index.costs.nodes == 0


def test_zone_device_data_is_no_index():
    assert page_index("zone_device_data", Kernel(), pgmap()) is None
