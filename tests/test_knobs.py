"""docs/reference/knobs.md: every knob is addressable with keys that there are, or it says why not."""

import pytest
from attrs import evolve, frozen
from generators import knobs
from generators.shipped import SHIPPED, info_of

IDS = [f"K{number}" for number in range(1, 49)]


@pytest.mark.parametrize("name", SHIPPED)
def test_each_knob_has_keys_or_a_reason(name):
    turns = knobs.turns(info_of(name))
    assert [turn.knob for turn in turns] == IDS
    assert [turn.knob for turn in turns if not (turn.keys or turn.note)] == []


def test_a_key_that_disappears_is_told():
    @frozen
    class Nothing:
        pass

    with pytest.raises(ValueError, match="knobs") as caught:
        knobs.turns(evolve(info_of("nouveau"), tunables=Nothing))
    assert str(caught.value) == "knobs.toml: K2: driver nouveau has no key 'chunk_bytes'"
    with pytest.raises(ValueError, match="knobs") as caught:
        knobs.turns(evolve(info_of("nouveau"), quirks=Nothing))
    assert str(caught.value) == "knobs.toml: K8: driver nouveau has no key 'quirk.freed_svmm'"
    with pytest.raises(ValueError, match="knobs") as caught:
        knobs.turns(evolve(info_of("dmirror"), strategies={}))
    assert str(caught.value) == "knobs.toml: K13: driver dmirror has no key 'place'"


def test_a_combination_that_is_no_longer_refused_is_told():
    with pytest.raises(ValueError, match="knobs") as caught:
        knobs.refusal("xe:evict_order=lru")
    assert str(caught.value) == "knobs.toml: 'xe:evict_order=lru' is not refused"


REFUSED = {
    "xe:page_to_bo=chunk": "page_to_bo=chunk: one dev_pagemap covers the VRAM of a tile, and many objects lie in it, "
    "so that it cannot lead to the one of a page",
    "nouveau:page_to_bo=zone_device_data": "page_to_bo=zone_device_data: the one word that a page has names the svmm "
    "that it was migrated for",
    "xe:embedding=chunk": "embedding=chunk: a drm_pagemap points to one dev_pagemap, and memory that grows by chunks "
    "has one for each",
    "xe:embedding=dev_in_drm+p2p_provider": "embedding=dev_in_drm+p2p_provider: xe_pagemap has 2 dev_pagemaps, in its "
    "drm_pagemap and in its pci_p2pdma_pagemap, and a page leads to one: core, which asks a page for its drm_pagemap, "
    "needs that in drm_pagemap; drivers/pci/p2pdma.c:to_p2p_pgmap needs that in pci_p2pdma_pagemap",
    "xe:allow_mixed=on,need_64k=on": "allow_mixed=on, need_64k=on: a page of VRAM between pages of system memory is "
    "mapped by itself, and VRAM is mapped in pages of 64 KiB at least",
    "xe:notifier_size=64K": "notifier_size=64K is below the largest of chunk_sizes, 2M: a range lies within one "
    "notifier window, so it would never be used",
}


def test_every_combination_that_the_page_calls_refused_is_among_them():
    assert {each["spec"] for each in knobs._data()["combination"] if "spec" in each} == set(REFUSED)


@pytest.mark.parametrize("spec", REFUSED)
def test_what_cannot_work_is_refused_with_its_reason(spec):
    assert knobs.refusal(spec) == REFUSED[spec]
