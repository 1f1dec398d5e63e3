"""Whole runs of every driver on real traces: contents right, nothing left, the same run twice."""

import json
from pathlib import Path

import attrs
import pytest
from gpusvm.errors import InputError
from gpusvm.run.execute import execute
from gpusvm.run.spec import RunSpec
from gpusvm.workload import load

MIB = 1 << 20
DRIVERS = ["xe", "nouveau", "nouveau:populate=explicit", "dmirror", "svmdev", "kfd"]

# The shortest traces to run: irregular accesses with atomics, and a stencil that both sides touch in turn.
TRACES = ["gups", "jacobi"]


def spec(driver: str, workload: str, **changes: object) -> RunSpec:
    return attrs.evolve(RunSpec(driver=driver, workload=workload, vram_bytes=1024 * MIB), **changes)


@pytest.mark.parametrize("workload", TRACES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_contents_are_right_with_the_quirks_fixed(driver: str, workload: str) -> None:
    result = execute(spec(driver, workload, quirks="fixed"))
    trace = load(workload)
    assert result["accesses"] == len(trace)
    assert result["integrity"]["mismatches"] == 0
    assert result["integrity"]["known"] == {}
    assert result["integrity"]["reads_checked"] > 10_000
    # Faults only add to what the host's phases take without them.
    assert result["sim_ns"] > int((trace.cpu_phases.end_ns - trace.cpu_phases.start_ns).sum())


@pytest.mark.parametrize("driver", DRIVERS)
def test_as_written_every_mismatch_has_a_name(driver: str) -> None:
    result = execute(spec(driver, "jacobi"))
    assert result["integrity"]["mismatches"] == 0
    # As written, a fault inside a block that a device has whole is told the frames of its head: only nouveau, after an
    # explicit populate, meets that.
    assert set(result["integrity"]["known"]) == ({"mm_s1"} if driver == "nouveau:populate=explicit" else set())


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_run_with_one_seed_is_one_run(driver: str) -> None:
    first, second = (execute(spec(driver, "jacobi", seed=7)) for _ in range(2))
    first["wall_s"] = second["wall_s"] = 0.0
    assert json.dumps(first) == json.dumps(second)


def test_events_are_the_same_byte_for_byte(tmp_path: Path) -> None:
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for file in files:
        execute(spec("xe", "gups", events=True), events_to=file)
    text = files[0].read_bytes()
    assert text == files[1].read_bytes()
    assert len(text.splitlines()) > 1000


def test_less_vram_than_the_footprint_shows_evictions() -> None:
    roomy, tight = (execute(spec("xe", "gups", vram_bytes=vram * MIB)) for vram in (1024, 48))
    assert roomy["evictions"] == 0
    assert tight["evictions"] is not None
    assert tight["evictions"] > 0
    assert tight["integrity"]["mismatches"] == 0
    assert tight["sim_ns"] > roomy["sim_ns"]


def test_vram_smaller_than_one_range_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"^VRAM of 1048576 bytes is smaller than one range \(2097152 bytes\); give it at least that$",
    ):
        execute(spec("xe", "gups", vram_bytes=MIB))


def test_a_topology_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^unknown topology 'singel', did you mean 'single'\? \(or the path of a .toml file\)$"
    ):
        execute(spec("xe", "gups", topology="singel"))
