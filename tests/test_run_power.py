"""Power in whole runs: what a run tells of it, and that no run ends well in which a promise was broken."""

import io

import pytest
from gpusvm.check import InvariantError
from gpusvm.plugins import load_drivers, survey_drivers
from gpusvm.report import print_survey
from gpusvm.run.execute import execute
from gpusvm.run.spec import RunResult, RunSpec
from gpusvm_xe.pm import XeRuntimePm

DRIVERS = load_drivers()


def run(driver: str, topology: str = "single") -> RunResult:
    return execute(RunSpec(driver=driver, workload="jacobi", vram_bytes=1 << 30, topology=topology), drivers=DRIVERS)


def test_xe_says_which_references_kept_its_device_awake() -> None:
    result = run("xe:autosuspend_ms=1")
    assert result["pm"] is not None
    (device,) = result["pm"]["devices"]
    assert (device["device"], device["resumes"], device["awake_ns"]) == ("gpu0", 0, result["sim_ns"])
    assert device["states"] == [{"from_ns": 0, "state": "D0"}]
    holders = {each["holder"]: each for each in device["holders"]}
    assert list(holders) == ["ioctl", "vm", "pagefault", "populate_mm", "bo"]
    assert holders["vm"]["spans_ns"] == [[0, result["sim_ns"]]]
    assert holders["vm"]["held_ns"] == result["sim_ns"]
    assert holders["bo"]["refs_max"] == result["objects"]["bos_max"]
    assert holders["bo"]["held_ns"] > holders["pagefault"]["held_ns"] > holders["populate_mm"]["held_ns"] > 0
    vm, bo = device["references"]
    assert vm == {"holder": "vm", "count": 1, "since_ns": [0]}
    assert bo["holder"] == "bo"
    assert bo["count"] == len(bo["since_ns"]) > 1
    assert bo["since_ns"] == sorted(bo["since_ns"])


def test_nouveau_sleeps_while_its_file_is_open() -> None:
    """It holds references in its calls only; the driver says so, and the report has no word of its own on it."""
    result = run("nouveau:autosuspend_ms=10")
    assert result["pm"] is not None
    (device,) = result["pm"]["devices"]
    states = device["states"]
    assert [each["state"] for each in states] == ["D0", "D3cold", "D0"]
    assert states[1]["from_ns"] >= 10_000_000
    asleep = states[2]["from_ns"] - states[1]["from_ns"]
    assert device["awake_ns"] == result["sim_ns"] - asleep
    assert device["resumes"] == result["pm"]["resumes"] == 1
    assert [each["holder"] for each in device["holders"]] == ["ioctl"]
    assert device["references"] == []


def test_kfd_is_awake_for_as_long_as_its_process_lives() -> None:
    result = run("kfd:autosuspend_ms=1")
    assert result["pm"] is not None
    (device,) = result["pm"]["devices"]
    assert device["states"] == [{"from_ns": 0, "state": "D0"}]
    assert [(each["holder"], each["spans_ns"]) for each in device["holders"]] == [
        ("process_device", [[0, result["sim_ns"]]])
    ]


def test_each_device_of_a_machine_is_told_apart() -> None:
    result = run("xe", "dual")
    assert result["pm"] is not None
    devices = result["pm"]["devices"]
    assert [each["device"] for each in devices] == ["gpu0", "gpu1"]
    assert result["pm"]["awake_ns"] == sum(each["awake_ns"] for each in devices)
    assert all("vm" in [each["holder"] for each in device["holders"]] for device in devices)


def test_a_driver_without_runtime_pm_has_no_power() -> None:
    assert run("dmirror")["pm"] is None


def does_nothing(*_: object) -> None:
    """Forget a reference."""


def test_a_run_in_which_a_device_falls_asleep_under_its_pages_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the objects nor the address space hold references, and the device has woken again when the run ends."""
    for name in ("pages_present", "pages_gone", "vm_open", "vm_close"):
        monkeypatch.setattr(XeRuntimePm, name, does_nothing)
    with pytest.raises(InvariantError) as caught:
        run("xe:autosuspend_ms=0,d3cold_mib=0")
    (violation,) = caught.value.violations
    assert violation.invariant == 53
    assert violation.what.startswith("gpu0 is in D3hot, and pages of it are in use: ")
    assert violation.pfns


def test_only_a_promise_can_be_broken() -> None:
    """nouveau promises nothing: its pages are elsewhere while it sleeps."""
    promised = {name: DRIVERS[name].awake_with_pages for name in ("xe", "nouveau", "dmirror", "svmdev", "kfd")}
    assert promised == {"xe": True, "nouveau": False, "dmirror": False, "svmdev": False, "kfd": True}
    assert run("nouveau:populate=explicit,autosuspend_ms=1")["integrity"]["mismatches"] == 0


@pytest.mark.parametrize(("driver", "line"), [("xe", "promised"), ("nouveau", "not promised"), ("dmirror", None)])
def test_what_is_promised_is_said_of_drivers_that_manage_power(driver: str, line: str | None) -> None:
    file = io.StringIO()
    print_survey(survey_drivers().only([driver]), full=False, file=file)
    said = [
        row.partition("awake with pages")[2].strip()
        for row in file.getvalue().splitlines()
        if "awake with pages" in row
    ]
    assert said == ([] if line is None else [line])
