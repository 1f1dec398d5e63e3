"""Whatever fails once, the driver rolls back or retires: nothing leaks, nothing is lost, and errnos have a reason."""

import io
import json
from importlib import resources

import gpusvm
import jsonschema
import pytest
from gpusvm.cli import run
from gpusvm.conformance.injection import inject, programs, sweep, to_json
from gpusvm.errors import InputError
from gpusvm.kernel.inject import Injector
from gpusvm.plugins import Registry, load_drivers
from gpusvm.report import print_sweeps

DRIVERS = load_drivers()

# What the programs of the sweep do not pass on xe, and why.
NOT_PASSED = {
    "alloc.hmm_dma_list": "no driver here uses hmm_dma_map",
    "alloc.hmm_pfns": "no driver here uses hmm_dma_map",
    "page_index.xa_node": "pages lead to their objects by a pointer, not by an xarray (page_to_bo)",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "found"),
    [
        ("xe", "26 programs, 24 sites, 1131 failures, 337 refused to the program"),
        ("nouveau", "19 programs, 8 sites, 204 failures, 85 refused to the program"),
        ("dmirror", "20 programs, 8 sites, 177 failures, 80 refused to the program"),
        ("kfd", "21 programs, 11 sites, 370 failures, 226 refused to the program"),
        ("svmdev", "21 programs, 18 sites, 605 failures, 236 refused to the program"),
    ],
)
def test_everything_fails_once(driver: str, found: str) -> None:
    swept = sweep(driver, DRIVERS)
    assert [str(each) for each in swept.findings] == []
    assert str(swept) == f"{driver}: {found}, 0 findings"
    if driver == "xe":
        assert swept.not_passed == sorted(NOT_PASSED)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_fault_that_fails(driver: str) -> None:
    swept = sweep(driver, DRIVERS, only=["fault", "refused"])
    assert [str(each) for each in swept.findings] == []
    assert sum(swept.failures.values()) > 0
    assert swept.programs >= 2
    assert ("dma.link" in swept.failures) is (driver in {"xe", "svmdev"})  # behind an IOMMU


def test_a_failure_that_breaks_something_is_found() -> None:
    """What xe as written does wrong when RAM for a page is short (quirk mm_s3)."""
    swept = sweep("xe", DRIVERS, quirks="as_written", only=["fault"])
    first = next(each for each in swept.findings if each.site == "alloc.folio")
    assert str(first).startswith("fault: alloc.folio fails on passing 1: invariant mm_s3: ")


def test_what_is_refused_for_good_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that does not go away is no longer one: the second attempt has to succeed."""
    passing = Injector.passing
    monkeypatch.setattr(Injector, "passing", lambda self, site: passing(self, site) or site in self.failed)
    swept = sweep("dmirror", DRIVERS, only=["fork"])
    assert {each.site for each in swept.findings} >= {"alloc.folio"}


def test_names_of_programs() -> None:
    assert [program.name for program in programs()] == list(dict.fromkeys(program.name for program in programs()))


@pytest.mark.parametrize(
    ("drivers", "only", "message"),
    [
        (["dmirror"], ["falt"], "unknown program 'falt', did you mean 'fault'?"),
        (["dmirror", "dmirror"], [], "driver spec 'dmirror' is given twice"),
        (["dmirrow"], [], "driver spec 'dmirrow': unknown driver 'dmirrow'; did you mean 'dmirror'?"),
    ],
)
def test_bad_input(drivers: list[str], only: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        inject(drivers, only=only)
    assert str(caught.value) == message


def test_no_driver() -> None:
    with pytest.raises(InputError, match=r"^no driver plugin is installed; "):
        inject(registry=Registry.of())


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inject", "dmirror", "--program", "refused", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schema = resources.files("gpusvm.report").joinpath("schema", "inject-1.json").read_text("utf-8")
    jsonschema.validate(document, json.loads(schema))
    sweeps = gpusvm.inject(["dmirror"], only=["refused"])
    assert document == json.loads(to_json(sweeps))
    (found,) = document["sweeps"]
    assert (found["driver"], found["programs"], found["findings"]) == ("dmirror", 1, [])
    assert found["failures"] == sum(found["by_site"].values()) > 0
    text = io.StringIO()
    print_sweeps(sweeps, file=text)
    lines = [line.split() for line in text.getvalue().splitlines() if line.strip("─ ")]
    assert lines[0][-1] == "dmirror"
    assert ["failures", str(found["failures"])] in lines
    assert lines[-1] == ["findings", "0"]


def test_findings_and_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inject", "xe", "--program", "fault", "--quirks", "as_written"]) == 1
    assert "xe: fault: alloc.folio fails on passing 1: invariant mm_s3: " in capsys.readouterr().out


def test_the_list_of_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inject", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed["scenarios"]] == [program.name for program in programs()]
    assert run(["inject", "--list"]) == 0
    assert "the GPU touches what is not mapped" in capsys.readouterr().out
