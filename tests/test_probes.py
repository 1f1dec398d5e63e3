"""Every driver behaves as Linux's does, or the difference is known and has a reason: S1 to S45, each by doing it."""

import errno
import json
from collections.abc import Callable

import pytest
from attrs import evolve
from gpusvm.conformance.probes import PROBES, Lab, Observation, Probe, expectations
from gpusvm.conformance.probes import probe as probe_module
from gpusvm.driver import no, yes
from gpusvm.errors import InputError, KernelError, ModelError
from gpusvm.plugins import Registry, load_drivers

DRIVERS = load_drivers()
IDS = [f"S{number}" for number in range(1, 46)]
OF_LINUX = ("xe", "nouveau", "dmirror")


@pytest.mark.parametrize("driver", sorted(DRIVERS))
@pytest.mark.parametrize("id_", IDS)
def test_what_is_seen_is_expected(id_: str, driver: str) -> None:
    seen = PROBES[id_].observe(driver, DRIVERS)
    row = expectations()[id_]
    assert seen.observed == row.seen.get(driver, seen.expected), seen
    assert seen.finding is None
    if driver in row.seen:
        # Once it is gone, the deviation has to go from the table.
        assert seen.observed != seen.expected
    assert seen.deviation == row.deviation.get(driver)


def test_every_question_has_a_probe() -> None:
    assert list(PROBES) == list(expectations()) == IDS


def test_the_table_speaks_of_every_driver() -> None:
    for id_ in PROBES:
        row = expectations()[id_]
        assert {*row.linux, *row.model} >= set(DRIVERS), id_
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
        seen = PROBES["S28"].observe(driver, DRIVERS, quirks="fixed")
        assert (seen.observed, seen.deviation, seen.finding) == (seen.expected, None, None)


def test_an_observation_as_plain_values() -> None:
    seen = PROBES["S28"].observe("nouveau", DRIVERS)
    assert json.loads(json.dumps(seen.to_dict())) == {
        "id": "S28",
        "title": "what mprotect, and MADV_DONTNEED, of one page take from the GPU, of a block of small pages, and how "
        "much of it stays mapped for DMA",
        "driver": "nouveau",
        "observed": "the whole block, and the page; 0 of 512 mapped for DMA, and 511 of 512 mapped for DMA",
        "expected": "the page; 511 of 512 mapped for DMA",
        "declared": None,
        "deviation": "mprotect splits the area, and __split_huge_pmd announces the whole PMD even where no huge page "
        "is mapped (quirk mm_q16, recorded on 7.3.4)",
        "reference": "xe_svm_range_notifier_event_begin; drm_gpusvm_range_unmap_pages; nouveau_svmm_invalidate; "
        "dmirror_do_update; __split_huge_pmd",
    }
    assert PROBES["S1"].observe("xe", DRIVERS).declared == (
        "migrate_on_fault: yes, the range of the fault, 2 MiB, 64 KiB or 4 KiB, all or nothing"
    )


def test_other_settings_of_a_driver_show() -> None:
    """A probe sees what a driver does, and not what its table says."""
    assert PROBES["S1"].observe("xe:migrate_after=2", DRIVERS).observed == "RAM"
    assert PROBES["S25"].observe("xe:timeslice_ms=2", DRIVERS).observed.endswith("keeps it for 2 ms, and for 8 ms")
    seen = PROBES["S42"].observe("svmdev:same_owner=0", DRIVERS)
    assert (seen.driver, seen.observed, seen.expected) == ("svmdev:same_owner=0", "two", "one")
    assert seen.finding is None  # other settings are there to be different


def _observed(ask: Callable[[Lab], str], *, driver: str = "dmirror", drivers: Registry = DRIVERS) -> Observation:
    return Probe(id="S1", title="", reference="", ask=ask).observe(driver, drivers)


def test_a_probe_that_leaves_something_behind() -> None:
    def leak(lab: Lab) -> str:
        lab.bench().kernel.ledger.get("page", "somebody")
        return "nothing"

    seen = _observed(leak)
    assert seen.observed == seen.finding
    assert seen.observed.startswith("broke: ")
    assert "somebody" in seen.observed


def test_a_driver_that_breaks_down() -> None:
    def refuse(lab: Lab) -> str:
        lab.bench()
        raise KernelError(errno.ENOMEM, "no room")

    def stumble(lab: Lab) -> str:
        return lab.bench().no_such_thing  # type: ignore[attr-defined, no-any-return]  # which is the point

    assert _observed(refuse).finding == "broke: -ENOMEM: no room"
    finding = _observed(stumble).finding
    assert finding is not None
    assert finding.startswith("broke: AttributeError: 'Bench' object has no attribute 'no_such_thing' (")
    assert "test_probes.py:" in finding


def test_what_a_driver_declares_and_does_not_do() -> None:
    info = DRIVERS["dmirror"]
    lies = {
        "S1": ("migrate_on_fault", yes("at once")),
        "S6": ("multi_device_p2p", yes("over a cable")),
        "S10": ("eviction", yes("the oldest")),
        "S24": ("atomics", no("never")),
        "S32": ("runtime_pm", yes("a reference for each page")),
        "S37": ("unplug", yes("nothing is left")),
        "S41": ("device_memory", no("there is none")),
    }
    for id_, (name, declared) in lies.items():
        liar = evolve(info, name="liar", capabilities=evolve(info.capabilities, **{name: declared}))
        seen = PROBES[id_].observe("liar", Registry.of(liar))
        supported = "yes" if declared else "no"
        assert seen.finding == f"{seen.observed}, and it declares {name}: {supported}, {declared.how}"
        assert PROBES[id_].observe("honest", Registry.of(evolve(info, name="honest"))).finding is None


def test_a_driver_of_linux_that_does_something_else() -> None:
    info = DRIVERS["xe"]
    other = evolve(info, make=lambda host: info.make(evolve(host, tunables=info.tunables(timeslice_ms=7))))
    seen = PROBES["S9"].observe("xe", Registry.of(other))
    assert seen.finding == "the CPU waits 7 ms for it, and Linux: the CPU waits 5 ms for it"


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
        ('[S1]\nlinux.xe = "a"\nnote.nouveau = "b"', "S1: nouveau: a note on what nothing is expected of"),
        ("[S1]\nlinux.xe = 1", "S1: linux[xe]: expected a text, got 1"),
    ):
        monkeypatch.setattr(expectation, "resources", _Files(text))
        with pytest.raises(InputError) as caught:
            expectation.expectations.__wrapped__()
        assert str(caught.value) == f"expected.toml: {message}"
