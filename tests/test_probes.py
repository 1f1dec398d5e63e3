"""Every driver behaves as Linux's does, or the difference is known and has a reason: S1 to S45, each by doing it."""

import json

import pytest
from gpusvm.conformance.probes import PROBES, Lab, Observation, expectations
from gpusvm.conformance.probes import probe as probe_module
from gpusvm.errors import InputError, ModelError
from gpusvm.plugins import load_drivers

DRIVERS = dict(load_drivers())
IDS = [f"S{number}" for number in range(1, 46)]
OF_LINUX = ("xe", "nouveau", "dmirror")


@pytest.mark.parametrize("driver", sorted(DRIVERS))
@pytest.mark.parametrize("id_", [id_ for id_ in IDS if id_ in PROBES])
def test_what_is_seen_is_expected(id_: str, driver: str) -> None:
    seen = PROBES[id_].observe(driver, DRIVERS)
    row = expectations()[id_]
    assert seen.observed == row.seen.get(driver, seen.expected), seen
    assert seen.agrees
    if driver in row.seen:
        # Once it is gone, the deviation has to go from the table.
        assert seen.observed != seen.expected


def test_every_question_has_a_probe_or_a_reason_why_not() -> None:
    table = expectations()
    assert list(table) == IDS
    assert [id_ for id_ in IDS if id_ not in PROBES] == ["S43"]
    assert {id_: row.not_probed != "" for id_, row in table.items()} == {id_: id_ not in PROBES for id_ in IDS}


def test_the_table_speaks_of_every_driver() -> None:
    for id_ in PROBES:
        row = expectations()[id_]
        assert {*row.linux, *row.model} == set(DRIVERS), id_
        assert "xe" in row.linux, id_


def test_what_the_reference_says_nothing_of_is_little() -> None:
    assert {driver: [id_ for id_ in IDS if driver in expectations()[id_].model] for driver in OF_LINUX} == {
        "xe": [],
        "nouveau": ["S12", "S34"],
        "dmirror": ["S17", "S20", "S21", "S33", "S34", "S35", "S36", "S44"],
    }


def test_surprises_are_gone_when_fixed() -> None:
    for driver in ("xe", "nouveau"):
        assert PROBES["S22"].observe(driver, DRIVERS, quirks="fixed").observed == "none"
    assert PROBES["S45"].observe("nouveau", DRIVERS, quirks="fixed").observed == "always what was written last"
    for driver in ("nouveau", "dmirror"):
        assert PROBES["S28"].observe(driver, DRIVERS, quirks="fixed").observed == "the page"


def test_an_observation_as_plain_values() -> None:
    seen = PROBES["S28"].observe("nouveau", DRIVERS)
    assert json.loads(json.dumps(seen.to_json())) == {
        "id": "S28",
        "title": "what mprotect, and MADV_DONTNEED, of one page take from the GPU, of a block of small pages",
        "driver": "nouveau",
        "observed": "the whole block, and the page",
        "expected": "the page",
        "declared": None,
        "deviation": "mprotect splits the area, and __split_huge_pmd announces the whole PMD even where no huge page "
        "is mapped (quirk mm_q16, recorded on 7.3.4)",
        "reference": "xe_svm_range_notifier_event_begin; nouveau_svmm_invalidate; dmirror_do_update; __split_huge_pmd",
    }
    assert PROBES["S1"].observe("xe", DRIVERS).declared == str(DRIVERS["xe"].capabilities.migrate_on_fault)


def test_other_settings_of_a_driver_show() -> None:
    """A probe sees what a driver does, and not what its table says."""
    assert PROBES["S1"].observe("xe:migrate_after=2", DRIVERS).observed == "RAM"
    assert PROBES["S25"].observe("xe:timeslice_ms=2", DRIVERS).observed.endswith("the GPU keeps it for 2 ms")
    seen = PROBES["S42"].observe("svmdev:same_owner=0", DRIVERS)
    assert (seen.driver, seen.observed, seen.agrees) == ("svmdev", "two", False)


def test_a_probe_that_leaves_something_behind_fails() -> None:
    def leak(lab: Lab) -> str:
        lab.bench().kernel.ledger.get("page", "somebody")
        return "nothing"

    probe = probe_module.Probe(id="S1", title="", reference="", capability=None, ask=leak)
    with pytest.raises(ModelError, match="somebody"):
        probe.observe("dmirror", DRIVERS)


def test_two_probes_of_one_name() -> None:
    with pytest.raises(ModelError, match=r"^two probes are called S1$"):
        probe_module.probe("S1", "", reference="")(lambda _: "")


def test_a_deviation_without_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpusvm.conformance.probes import expectation

    class _Files:
        def __init__(self, text: str) -> None:
            self.text = text

        def files(self, _: str) -> "_Files":
            return self

        def joinpath(self, _: str) -> "_Files":
            return self

        def read_text(self, _: str) -> str:
            return self.text

    for text, message in (
        ('[S1]\nlinux.xe = "a"\ndeviation.xe = "b"', "S1: xe: a deviation needs both what is seen and its reason"),
        ('[S1]\nlinux.xe = "a"\nmodel.xe = "b"', "S1: xe: is in both linux and model"),
        ("[S1]\nlinux.xe = 1", "S1: linux[xe]: expected a text, got 1"),
    ):
        monkeypatch.setattr(expectation, "resources", _Files(text))
        with pytest.raises(InputError) as caught:
            expectation.expectations.__wrapped__()
        assert str(caught.value) == f"expected.toml: {message}"


def test_observations_are_values() -> None:
    values = dict.fromkeys(("id", "title", "driver", "observed", "reference"), "S1")
    assert not Observation(**values, expected=None, declared=None, deviation=None).agrees
