"""Contents as tokens: every read finds what was last written, or says what it found, and quirks are told apart."""

import numpy as np
import pytest
from gpusvm.mm.contents import WINDOW_SHIFT, describe_token
from gpusvm.mm.page import POISON_DEVICE, POISON_FREED, POISON_NEW


@pytest.fixture
def one(lab):
    return lab(ram_pages=256)


def vpns(*pages):
    return np.array(pages, np.int64)


def cleared(one, n):
    pfns = one.pages.alloc_pages_bulk(n)
    one.memory.contents.clear(pfns)
    return pfns


def test_a_write_is_read(one):
    contents = one.memory.contents
    pfns = cleared(one, 4)
    pages = vpns(10, 11, 12, 13)
    contents.read_many(one.mm, pages, pfns)
    contents.write_many(one.mm, pages[1:3], pfns[1:3], writer=3)
    contents.read_many(one.mm, pages, pfns)
    assert [contents.token(pfn) for pfn in pfns.tolist()] == [0, 1 << 8 | 3, 2 << 8 | 3, 0]
    assert contents.read(one.mm, 11, int(pfns[1])) == 1 << 8 | 3
    token = contents.write(one.mm, 11, int(pfns[1]))
    assert token == 3 << 8
    assert contents.read(one.mm, 11, int(pfns[1])) == token
    assert (contents.reads_checked, contents.mismatch_count) == (10, 0)


def test_the_last_write_of_a_batch_wins(one):
    contents = one.memory.contents
    (pfn,) = cleared(one, 1).tolist()
    contents.write_many(one.mm, vpns(5, 5, 5), vpns(pfn, pfn, pfn))
    assert contents.token(pfn) == contents.expected(one.mm, 5) == 3 << 8


def test_reads_of_a_batch_see_what_was_before_it(one):
    contents = one.memory.contents
    pfns = cleared(one, 2)
    order = np.array([0, 0, 1, 0])
    contents.access_many(one.mm, vpns(7, 8)[order], pfns[order], np.array([True, False, False, True]))
    assert contents.token(int(pfns[0])) == 2 << 8
    assert (contents.reads_checked, contents.mismatch_count) == (2, 0)
    contents.access_many(one.mm, vpns(7, 8), pfns, np.array([True, True]))
    contents.access_many(one.mm, vpns(7, 8), pfns, np.array([False, False]))
    assert (contents.reads_checked, contents.mismatch_count) == (4, 0)


def test_lost_data_is_a_mismatch_that_says_what_and_where(one):
    contents = one.memory.contents
    pfns = cleared(one, 3)
    contents.write_many(one.mm, vpns(7, 8, 9), pfns)
    one.memory.folio_put(int(pfns[1]))
    contents.clear(pfns[2:])
    contents.read_many(one.mm, vpns(7, 8, 9), pfns)
    assert contents.mismatch_count == 2
    assert [str(mismatch) for mismatch in contents.mismatches] == [
        f"main read page 0x8 of p at 0 ns and found freed memory in pfn {pfns[1]:#x} instead of version 2 by writer 0",
        f"main read page 0x9 of p at 0 ns and found zeros in pfn {pfns[2]:#x} instead of version 3 by writer 0",
    ]
    contents.read_many(one.mm, vpns(*[9] * 20), np.repeat(pfns[2:], 20))
    assert contents.mismatch_count == 22
    assert len(contents.mismatches) == 16


def test_memory_that_nobody_wrote_is_poison(one):
    contents = one.memory.contents
    (new,) = one.pages.alloc_pages_bulk(1).tolist()
    assert contents.token(new) == POISON_NEW
    one.memory.folio_put(new)
    assert contents.token(new) == POISON_FREED
    block = one.pages.alloc_folio(3)
    assert [contents.token(block + i) for i in range(8)] == [POISON_FREED] + [
        POISON_NEW
    ] * 7  # the first was used above
    one.memory.folio_put(block)
    assert [contents.token(block + i) for i in range(8)] == [POISON_FREED] * 8
    device = one.device.alloc()
    assert contents.token(device) == POISON_DEVICE
    words = [describe_token(token) for token in (POISON_NEW, POISON_FREED, POISON_DEVICE, 0, 5 << 8 | 2)]
    assert words == ["new system memory", "freed memory", "new device memory", "zeros", "version 5 by writer 2"]


def test_copies_between_zones(one):
    contents = one.memory.contents
    pfns = cleared(one, 4)
    device = vpns(*[one.device.alloc() for _ in range(4)])
    contents.write_many(one.mm, vpns(0, 1, 2, 3), pfns)
    contents.copy(device, pfns[::-1].copy())
    contents.read_many(one.mm, vpns(3, 2, 1, 0), device)
    mixed = np.concatenate([device[:2], pfns[:2]])
    contents.copy(mixed[2:], mixed[:2])
    contents.read_many(one.mm, vpns(3, 2, 3, 2), mixed)
    contents.copy_folio(int(device[0]), int(pfns[0]), 2)
    contents.read_many(one.mm, vpns(3, 2), device[:2])
    contents.clear(mixed)
    assert not contents.mismatches
    assert [contents.token(pfn) for pfn in mixed.tolist()] == [0] * 4


def test_a_batch_may_span_zones_and_windows(one):
    contents = one.memory.contents
    pfns = np.array([one.device.alloc(), int(cleared(one, 1)[0]), one.device.alloc()])
    contents.clear(pfns)
    far = vpns(5, (1 << WINDOW_SHIFT) + 5, (9 << WINDOW_SHIFT) - 1)
    contents.write_many(one.mm, far, pfns)
    contents.read_many(one.mm, far[::-1].copy(), pfns[::-1].copy())
    assert (contents.reads_checked, contents.mismatch_count) == (3, 0)
    assert [contents.expected(one.mm, int(vpn)) for vpn in far] == [1 << 8, 2 << 8, 3 << 8]


def test_the_zero_page(one):
    contents = one.memory.contents
    contents.read_many(one.mm, vpns(1, 2), vpns(one.memory.zero_pfn, one.memory.zero_pfn))
    contents.read_many(one.mm, vpns(1, 2), vpns(-1, -1))
    assert contents.read(one.mm, 3, -1) == 0
    contents.write(one.mm, 1, int(cleared(one, 1)[0]))
    contents.read_many(one.mm, vpns(1, 2), vpns(-1, one.memory.zero_pfn))
    assert contents.mismatch_count == 1


def test_unmapped_pages_are_forgotten(one):
    contents = one.memory.contents
    pfns = cleared(one, 4)
    top = (1 << WINDOW_SHIFT) - 2
    pages = vpns(top, top + 1, top + 2, top + 3)
    contents.write_many(one.mm, pages, pfns)
    contents.forget(one.mm, top + 1, top + 3)
    assert [contents.expected(one.mm, vpn) for vpn in pages.tolist()] == [1 << 8, 0, 0, 4 << 8]
    contents.forget_mm(one.mm)
    assert contents.expected(one.mm, top) == 0


def test_processes_are_apart(one):
    contents = one.memory.contents
    two = one.memory.mm_alloc("q")
    pfns = cleared(one, 2)
    contents.write(one.mm, 4, int(pfns[0]))
    contents.read(two, 4, int(pfns[1]))
    assert contents.mismatch_count == 0


# --- quirks


def test_what_a_quirk_spoils_is_known(one):
    contents = one.memory.contents
    pfns = cleared(one, 3)
    pages = vpns(20, 21, 22)
    contents.write_many(one.mm, pages, pfns)
    # A stale GPU mapping of page 20 still names the page that page 21 lives in now.
    contents.read_many(one.mm, pages[:1], pfns[1:2], quirk="stale")
    assert contents.known == {"stale": 1}
    contents.write_many(one.mm, pages[:1], pfns[1:2], quirk="stale")
    contents.read_many(one.mm, pages, pfns)  # 20 lost the write, 21 found it
    assert contents.known == {"stale": 3}
    assert contents.mismatch_count == 0
    # The page's spoilt contents travel with copies, and are gone when it is written or cleared.
    contents.copy(pfns[2:], pfns[1:2])
    contents.read_many(one.mm, pages[1:], pfns[[2, 2]])
    assert contents.known == {"stale": 5}
    contents.write_many(one.mm, pages, pfns)
    assert not contents.tainted_vpns
    assert not contents.tainted_pfns
    contents.read_many(one.mm, pages, pfns)
    contents.clear(pfns[:1])
    contents.read_many(one.mm, pages, pfns)
    assert contents.known == {"stale": 5}
    assert contents.mismatch_count == 1


def test_taint_by_hand_and_its_end(one):
    contents = one.memory.contents
    pfns = cleared(one, 2)
    contents.write_many(one.mm, vpns(1, 2), pfns)
    contents.taint(one.mm, vpns(1, 2), "cow")
    contents.taint_pfns(pfns, "cow")
    contents.forget(one.mm, 1, 2)
    assert contents.tainted_vpns == {(one.mm, 2): "cow"}
    contents.clear_folio(int(pfns[0]), 1)
    contents.copy_folio(int(pfns[1]), int(pfns[0]), 1)
    assert contents.tainted_pfns == {}
    contents.write(one.mm, 2, int(pfns[1]))
    assert contents.tainted_vpns == {}
    contents.taint(one.mm, vpns(3), "cow")
    contents.forget_mm(one.mm)
    assert contents.tainted_vpns == {}


def test_mode_none_does_nothing(lab):
    one = lab(contents="none")
    contents = one.memory.contents
    pfns = one.pages.alloc_pages_bulk(4)
    contents.write_many(one.mm, vpns(1, 2, 3, 4), pfns)
    contents.clear(pfns)
    contents.copy(pfns[:2], pfns[2:])
    contents.copy_folio(int(pfns[0]), int(pfns[1]), 1)
    contents.clear_folio(int(pfns[0]), 1)
    contents.read_many(one.mm, vpns(1, 2, 3, 4), pfns)
    assert contents.write(one.mm, 1, int(pfns[0])) == 0
    contents.read(one.mm, 1, int(pfns[0]))
    assert (contents.reads_checked, contents.mismatch_count) == (0, 0)
    one.map(16)
    one.device.migrate(one.mm, one.va(0), one.va(16))
    one.read(*range(16))
    one.check_quiescent()
