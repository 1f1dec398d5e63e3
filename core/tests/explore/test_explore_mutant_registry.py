"""The registry of mutants: ids, activation, and that nothing stays behind."""

import re

import pytest
from gpusvm.conformance.mutants import MUTANTS, Mutant, Swap, load
from gpusvm.conformance.mutants.mutant import instead
from gpusvm.errors import InputError, ModelError
from gpusvm.explore import chunk

IN_CORE = [mutant for mutant in MUTANTS.values() if all(s.target.startswith("gpusvm.") for s in mutant.swaps)]


def guards(mutant):
    return [swap.place()[2] for swap in mutant.swaps]


def made(mutant_id, *swaps, scope="drm"):
    return Mutant(
        id=mutant_id,
        title="",
        where="",
        fix="",
        evidence="C",
        importance="S",
        oracle=(),
        scope=scope,
        drivers=(),
        swaps=swaps,
    )


def test_load_by_id_in_either_case():
    assert load("mm-03B") is load("MM-03b") is MUTANTS["MM-03b"]


def test_an_unknown_id_is_answered_with_the_nearest():
    with pytest.raises(InputError) as raised:
        load("GS-3")
    assert str(raised.value) == "unknown mutant 'GS-3', did you mean 'GS-03'?"


def test_ids_are_those_of_the_gallery_and_words_are_complete():
    for mutant_id, mutant in MUTANTS.items():
        assert mutant_id == mutant.id
        assert re.fullmatch(r"[A-Z]{2}-\d{2}[a-z]?", mutant_id)
        assert mutant.title[0].isupper()
        assert not mutant.title.endswith(".")
        assert re.fullmatch(r"\S+\.c:\w+", mutant.where)
        assert re.fullmatch(r"[CTVR]([+/][CTVR])*", mutant.evidence)
        assert mutant.oracle
        assert all(re.fullmatch(r"I-[A-Z]+", oracle) for oracle in mutant.oracle)


@pytest.mark.parametrize("mutant", IN_CORE, ids=lambda mutant: mutant.id)
def test_every_guard_is_there_is_replaced_and_comes_back(mutant):
    before = guards(mutant)
    with mutant.active():
        assert all(now is not then for now, then in zip(guards(mutant), before, strict=True))
    assert all(now is then for now, then in zip(guards(mutant), before, strict=True))


def test_an_error_inside_leaves_nothing_behind():
    mutant = load("GS-01")
    before = guards(mutant)
    with pytest.raises(ModelError, match="found"), mutant.active():
        raise ModelError("found")
    assert guards(mutant) == before


def test_two_can_be_active_at_once_and_end_in_any_order():
    first, second = load("GS-01"), load("GS-03")
    before = guards(first), guards(second)
    one, two = first.active(), second.active()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert guards(first) == before[0]
    assert all(now is not then for now, then in zip(guards(second), before[1], strict=True))
    two.__exit__(None, None, None)
    assert (guards(first), guards(second)) == before


def test_the_same_guard_is_not_replaced_twice():
    with load("GS-01").active():
        other = made("XX-01", Swap("gpusvm.drm.pages:time_left", instead(None)), load("GS-01").swaps[0])
        before = guards(other)
        with pytest.raises(InputError) as raised, other.active():
            pass
        assert str(raised.value) == "mutant XX-01: gpusvm.drm.pages:err_unmap is replaced by GS-01 already"
        assert guards(other) == before


def test_a_guard_that_is_gone_is_a_defect_of_the_mutant():
    mutant = made("XX-01", Swap("gpusvm.drm.pages:GpuSvmPages.unmapp", instead(None)))
    with pytest.raises(ModelError) as raised, mutant.active():
        pass
    assert str(raised.value) == (
        "there is no guard gpusvm.drm.pages:GpuSvmPages.unmapp: the mutant that removes it is out of date"
    )


def test_a_driver_that_is_not_installed_is_named():
    mutant = made("XX-01", Swap("gpusvm_nosuch.vm:Vm.close", instead(None)), scope="xe")
    with pytest.raises(InputError) as raised, mutant.active():
        pass
    assert str(raised.value) == "mutant XX-01: it is a bug of xe, and gpusvm_nosuch is not installed"


def test_no_machine_goes_on_that_was_booted_with_a_bug_or_before_it(monkeypatch):
    """Of one exploration after another, of the same case, the second goes on with the machine of the first."""
    kept = []
    monkeypatch.setattr(chunk, "_LAST", kept)
    kept.append("booted without")
    with load("GS-01").active():
        assert kept == []
        kept.append("booted with")
    assert kept == []
