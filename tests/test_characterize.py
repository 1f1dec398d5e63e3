"""gpusvm characterize: what drivers do, side by side, and what of it is a finding."""

import io
import json
from importlib import resources

import gpusvm
import jsonschema
import pytest
from attrs import evolve
from gpusvm.cli import run
from gpusvm.conformance.characterizing import characterize
from gpusvm.conformance.probes import expectations
from gpusvm.driver import yes
from gpusvm.errors import InputError
from gpusvm.plugins import Registry, load_drivers
from gpusvm.report import print_characterization

DRIVERS = load_drivers()


def _liar() -> Registry:
    info = DRIVERS["dmirror"]
    capabilities = evolve(info.capabilities, migrate_on_fault=yes("at once"))
    return Registry.of(evolve(info, name="liar", capabilities=capabilities), info)


def _shown(found: gpusvm.Characterization) -> list[str]:
    text = io.StringIO()
    print_characterization(found, file=text)
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    return [line for line in lines if line.strip("─ ")]


def test_by_question_then_driver() -> None:
    heard = []
    found = characterize(
        ["xe", "dmirror"], probes=["S8", "S1"], progress=lambda done, total, what: heard.append((done, total, what[:2]))
    )
    assert [(each.id, each.driver, each.observed) for each in found.observations] == [
        ("S1", "xe", "VRAM"),
        ("S1", "dmirror", "RAM"),
        ("S8", "xe", "the whole block"),
        ("S8", "dmirror", "the page, and the whole block"),
    ]
    assert heard == [(0, 4, "S1"), (1, 4, "S1"), (2, 4, "S8"), (3, 4, "S8")]
    assert (found.drivers, found.findings, found.deviations) == (("xe", "dmirror"), (), ())


def test_all_installed_ones() -> None:
    assert gpusvm.characterize(probes=["S16"]).drivers == tuple(DRIVERS)
    assert gpusvm.characterize("xe", probes=["S16"]).drivers == ("xe",)


def test_as_a_table() -> None:
    deviation = expectations()["S28"].deviation["nouveau"]
    lines = _shown(characterize(["xe", "nouveau"], probes=["S16", "S28"]))
    assert lines[:2] == [
        "question xe nouveau",
        "S16 GPU access of an address where nothing is mapped refused with ENOENT refused with EFAULT",
    ]
    assert lines[2].startswith("S28 what mprotect, and MADV_DONTNEED, of one page take from the GPU, of a ")
    assert lines[-2:] == [
        f"* S28 nouveau: its code alone reads as 'the page; 511 of 512 mapped for DMA'; {deviation}",
        "2 questions to 2 drivers: 1 known deviation, 0 findings",
    ]


def test_without_room_for_columns() -> None:
    eight = [f"xe:tries={tries}" for tries in range(1, 9)]
    assert _shown(characterize(eight, probes=["S16"])) == [
        "S16 GPU access of an address where nothing is mapped",
        *(f"{each} refused with ENOENT" for each in eight),
        "1 question to 8 drivers: 0 known deviations, 0 findings",
    ]


def test_a_finding() -> None:
    found = characterize(["liar", "dmirror"], probes=["S1"], registry=_liar())
    assert [each.driver for each in found.findings] == ["liar"]
    lines = _shown(found)
    assert "S1 first GPU touch of anonymous memory RAM ! RAM" in lines
    assert lines[-2:] == [
        "! S1 liar: RAM, and it declares migrate_on_fault: yes, at once",
        "1 question to 2 drivers: 0 known deviations, 1 finding",
    ]


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["characterize", "xe", "nouveau", "--probe", "S28", "--probe", "S32", "--json"]) == 0
    out = capsys.readouterr()
    document = json.loads(out.out)
    schema = resources.files("gpusvm.report").joinpath("schema", "characterize-1.json").read_text("utf-8")
    jsonschema.validate(document, json.loads(schema))
    assert document == characterize(["xe", "nouveau"], probes=["S28", "S32"]).to_dict()
    assert [(each["id"], each["driver"], each["deviation"] is None) for each in document["probes"]] == [
        ("S28", "xe", True),
        ("S28", "nouveau", False),
        ("S32", "xe", True),
        ("S32", "nouveau", True),
    ]
    assert out.err == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_code_of_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    from gpusvm.plugins import installed

    monkeypatch.setattr(installed, "_load", lambda _: _liar())
    assert run(["characterize", "liar", "--probe", "S1", *(["--json"] if as_json else [])]) == 1
    out = capsys.readouterr()
    said = "gpusvm: liar: S1: RAM, and it declares migrate_on_fault: yes, at once\n"
    assert out.err == (said if as_json else "")
    assert as_json is (json.loads(out.out)["schema"] == 1 if as_json else False)


@pytest.mark.parametrize(
    ("drivers", "probes", "message"),
    [
        (["xe"], ["s1"], "unknown probe 's1', did you mean 'S1'?"),
        (["xe"], ["S46"], "unknown probe 'S46', the probes are S1 to S45"),
        (["xe"], ["S1", "S1"], "probe 'S1' is given twice"),
        (["xe", "xe"], [], "driver spec 'xe' is given twice"),
        (["xf"], [], f"driver spec 'xf': unknown driver 'xf'; valid: {', '.join(DRIVERS)}"),
    ],
)
def test_bad_input(drivers: list[str], probes: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        characterize(drivers, probes=probes)
    assert str(caught.value) == message


def test_no_driver() -> None:
    with pytest.raises(InputError, match=r"^no driver plugin is installed; "):
        characterize(registry=Registry.of())
