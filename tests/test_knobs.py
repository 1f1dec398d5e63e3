"""docs/reference/knobs.md: every knob is addressable with keys that there are, or it says why not."""

import ast
import re
from pathlib import Path

import attrs
import pytest
from attrs import evolve, frozen
from generators import knobs
from generators.shipped import SHIPPED, info_of
from gpusvm.driver import read_spec
from gpusvm.errors import InputError

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


def _strings(path):
    """Return every string of a test file; what an f-string puts in is a "?"."""
    inner = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def _accepted(spec, name):
    """Tell whether the driver takes the settings; of those of an f-string that is not known."""
    try:
        read_spec(spec, {name: info_of(name)})
    except InputError:
        return "?" in spec
    return True


def _settings(path, name, *, own):
    """Return the keys that a test file sets: in spec strings, and in the driver's own tests in bare settings."""
    for text in _strings(path):
        texts = [spec[1] for spec in re.finditer(rf"(?<!\w){name}:(\w\S*=\S+)", text)]
        if own and re.fullmatch(r"\w+=[^\s,]+(,\w+=[^\s,]+)*", text):
            texts.append(text)
        for settings in texts:
            if _accepted(f"{name}:{settings}", name):
                yield from (part.partition("=")[0] for part in settings.split(","))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_tunable_is_set_by_a_test(name):
    """The test then says what that changes; a key that no test sets may do nothing."""
    here = Path(__file__)
    own = sorted((here.parents[1] / "plugins" / name / "tests").rglob("*.py"))
    several = [path for path in sorted(here.parent.rglob("*.py")) if path != here]
    found = {key for path in own for key in _settings(path, name, own=True)}
    found |= {key for path in several for key in _settings(path, name, own=False)}
    assert [each.name for each in attrs.fields(info_of(name).tunables) if each.name not in found] == []


def test_what_counts_as_a_setting(tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text(
        'b = bench(f"kfd:range_min={k}K,hive=on"), bench("kfd:runpm=perhaps")\n'
        'c = "with kfd:home_tries=2 more", "ring_entries=4", "access=in_place,xnack=maybe", "home_tries = 3"\n',
        encoding="utf-8",
    )
    assert set(_settings(path, "kfd", own=True)) == {"range_min", "hive", "home_tries", "ring_entries"}
    assert set(_settings(path, "kfd", own=False)) == {"range_min", "hive", "home_tries"}
    assert set(_settings(path, "xe", own=False)) == set()
