"""The GPU's page table: mapping, filtering, and accesses that are checked against the contents of memory."""

import numpy as np
import pytest
from gpusvm.errors import ModelError
from gpusvm.gpu import ATOMIC, NEED_OF_OP, READ, REMOTE, WRITE, GpuPageTable
from gpusvm.kernel import Kernel
from gpusvm.mm import MemoryManager
from hypothesis import given
from hypothesis import strategies as st

RAM_PAGES = 256


def make() -> tuple[MemoryManager, GpuPageTable]:
    kernel = Kernel()
    memory = MemoryManager(kernel, ram_pages=RAM_PAGES, thp="never")
    return memory, GpuPageTable(kernel, memory, memory.mm_alloc("test"))


def vpns(*pages: int) -> "np.typing.NDArray[np.int64]":
    return np.array(pages, np.int64)


def test_an_access_misses_without_its_permission() -> None:
    _, table = make()
    table.map_run(10, 100, 2, READ)
    table.map_run(12, 102, 1, READ | WRITE)
    batch = vpns(9, 10, 10, 12, 12)
    need = NEED_OF_OP[np.array([0, 0, 1, 1, 2])]
    assert table.missing(batch, need).tolist() == [True, False, True, False, True]


def test_mapped_pages_count_each_page_once() -> None:
    _, table = make()
    table.map_run(10, 100, 4, READ)
    table.map_run(12, 200, 4, READ | WRITE)
    assert table.mapped_pages == 6
    assert table.unmap(0, 12) == 2
    assert table.mapped_pages == 4
    assert table.pfns(12, 14).tolist() == [200, 201]


def test_map_pages_skips_where_there_is_no_permission() -> None:
    _, table = make()
    table.map_run(8, 50, 1, READ)
    table.map_pages(7, vpns(70, 71, 72), np.array([READ, 0, WRITE], np.uint8))
    assert table.perms(7, 10).tolist() == [READ, READ, WRITE]
    assert table.pfns(7, 10).tolist() == [70, 50, 72]


def test_reserved_windows_do_not_overlap() -> None:
    _, table = make()
    table.reserve(0x100, 0x200)
    with pytest.raises(ModelError, match=r"^GPU page table: window 0x1ff-0x300 overlaps 0x100-0x200$"):
        table.reserve(0x1FF, 0x300)


def test_a_read_sees_what_was_written_through_another_mapping_of_the_page() -> None:
    memory, table = make()
    pfn = memory.alloc_folio(0)
    assert pfn is not None
    table.map_run(10, pfn, 1, READ | WRITE)
    table.access(vpns(10), NEED_OF_OP[[1]])
    table.access(vpns(10), NEED_OF_OP[[0]])
    assert (memory.contents.reads_checked, memory.contents.mismatch_count) == (1, 0)


def test_a_read_of_another_page_is_a_mismatch() -> None:
    memory, table = make()
    first, second = memory.alloc_folio(0), memory.alloc_folio(0)
    assert first is not None
    assert second is not None
    table.map_run(10, first, 1, READ | WRITE)
    table.access(vpns(10), NEED_OF_OP[[1]])
    table.map_run(10, second, 1, READ)  # a wrong mapping
    table.access(vpns(10), NEED_OF_OP[[0]])
    assert memory.contents.mismatch_count == 1
    assert memory.contents.known == {}


def test_a_mismatch_through_a_stale_entry_names_its_quirk() -> None:
    memory, table = make()
    old, new = memory.alloc_folio(0), memory.alloc_folio(0)
    assert old is not None
    assert new is not None
    table.map_run(10, old, 1, READ | WRITE)
    table.access(vpns(10), NEED_OF_OP[[1]])
    assert table.mark_stale(10, 12, "some_quirk") == 1
    memory.contents.write(table.mm, 10, new)  # the address has moved to another page
    table.access(vpns(10), NEED_OF_OP[[0]])
    assert memory.contents.mismatch_count == 0
    assert memory.contents.known == {"some_quirk": 1}


def test_remote_accesses_are_told_apart() -> None:
    memory, table = make()
    pfns = memory.alloc_pages_bulk(4)
    assert pfns is not None
    table.map_pages(10, pfns, READ | WRITE | ATOMIC | REMOTE)
    table.access(vpns(10, 11, 12, 13), NEED_OF_OP[[1, 1, 1, 1]])
    assert table.access(vpns(10, 11, 12), NEED_OF_OP[[0, 1, 2]]) == (1, 2)


@given(
    st.lists(
        st.tuples(st.sampled_from(["map", "unmap"]), st.integers(0, 60), st.integers(1, 20), st.integers(1, 15)),
        max_size=20,
    )
)
def test_the_table_is_a_dictionary_of_pages(steps: list[tuple[str, int, int, int]]) -> None:
    _, table = make()
    table.reserve(0, 32)  # part of the space in a window of its own, the rest in one that opens by itself
    model: dict[int, tuple[int, int]] = {}
    base = 1 << 20
    for what, at, pages, perm in steps:
        # Ranges lie in one window or the other, as a driver's do.
        vpn = at if at + pages <= 32 else base + at
        if what == "map":
            table.map_run(vpn, 1000 + at, pages, perm)
            model |= {vpn + i: (1000 + at + i, perm) for i in range(pages)}
        else:
            cleared = table.unmap(vpn, vpn + pages)
            assert cleared == sum(model.pop(vpn + i, None) is not None for i in range(pages))
    assert table.mapped_pages == len(model)
    for first, end in ((0, 32), (base, base + 100)):
        found = zip(table.pfns(first, end).tolist(), table.perms(first, end).tolist(), strict=True)
        for vpn, (pfn, perm) in enumerate(found, first):
            assert (perm and (pfn, perm)) == (model.get(vpn, 0))


def test_a_mapping_may_span_windows() -> None:
    _, table = make()
    edge = 3 << 18
    table.map_run(edge - 2, 100, 1, READ)
    table.map_run(edge - 1, 200, 3, READ | WRITE)
    table.map_run(edge + 100, 300, 1, READ)
    assert table.mapped_pages == 5
    assert table.pfns(edge - 2, edge + 2).tolist() == [100, 200, 201, 202]
    assert not table.missing(vpns(edge - 2, edge - 1, edge + 1, edge + 100), NEED_OF_OP[np.array([0, 1, 1, 0])]).any()
    assert table.unmap(edge - 2, edge + 101) == 5
