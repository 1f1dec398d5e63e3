"""However many struct pages a zone uses and however many change at once, each of them is found, and nothing else."""

import random

import pytest
from gpusvm.check.shadow import ZoneShadow
from gpusvm.mm.page import PG_ANON_EXCLUSIVE, PG_LOCKED, PG_LRU, Zone

COLUMNS = ("m_flags", "m_refcount", "m_mapcount", "m_entire", "m_mapping")


def a_zone(used):
    zone = Zone(0, 256, None)
    zone.used = used
    shadow = ZoneShadow(zone)
    assert shadow.look() is None
    return zone, shadow


@pytest.mark.parametrize("used", [1, 7, 32, 33, 200])
@pytest.mark.parametrize("changes", [1, 3, 60])
def test_every_page_that_changes_is_found(used, changes):
    draw = random.Random(used * 100 + changes)
    zone, shadow = a_zone(used)
    for _ in range(50):
        touched = set()
        for _ in range(changes):
            i = draw.randrange(used)
            column = getattr(zone, draw.choice(COLUMNS))
            before = column[i]
            column[i] = draw.choice([0, 1, 2, 255, 256, 4095])
            if column[i] != before:
                touched.add(i)
        seen = {i for i in touched if any(getattr(zone, name)[i] != old for name, old in _was(shadow, i))}
        found = shadow.look()
        assert sorted(found or []) == sorted(seen)
        assert shadow.look() is None


def _was(shadow, i):
    at = 0
    for name, view in zip(COLUMNS, shadow.views, strict=True):
        column = memoryview(shadow.seen[at : at + view.nbytes]).cast(view.format)
        at += view.nbytes
        yield name, column[i]


@pytest.mark.parametrize("used", [8, 100])
@pytest.mark.parametrize("pages", [1, 8])
def test_what_lost_exclusive_is_told_once(used, pages):
    zone, shadow = a_zone(used)
    for i in range(pages):
        zone.m_flags[i] = PG_ANON_EXCLUSIVE | PG_LOCKED
    assert shadow.look() == list(range(pages))
    assert shadow.lost == []
    for i in range(pages):
        zone.m_flags[i] = PG_LOCKED | PG_LRU
    assert shadow.look() == list(range(pages))
    assert shadow.lost == list(range(pages))


@pytest.mark.parametrize("pages", [1, 40])
def test_pages_that_are_used_now_are_new(pages):
    zone, shadow = a_zone(4)
    zone.used = 4 + pages
    for i in range(4, 4 + pages):
        zone.m_refcount[i] = 1
    assert shadow.look() == list(range(4, 4 + pages))
