"""`assumed_ns`: what of a run rests on assumptions, whoever spent the time, and that stages add up to latencies."""

from importlib import resources

import pytest
from gpusvm.run.execute import execute
from gpusvm.run.spec import RunSpec

VRAM = 256 << 20


def run(driver, costs, **options):
    return execute(
        RunSpec(driver=driver, workload="jacobi", vram_bytes=VRAM, costs=str(costs), checked=False, **options)
    )


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """Write the h100 profile with some kinds changed; its path."""
    text = resources.files("gpusvm.run").joinpath("profiles", "h100-pcie5.toml").read_text("utf-8")

    def make(name, assumed):
        blocks = []
        for block in text.split("\n["):
            event = block.split("]")[0]
            kind = "assumed" if event in assumed else "fitted"
            blocks.append(
                "\n".join(f'kind = "{kind}"' if line.startswith("kind") else line for line in block.split("\n"))
            )
        path = tmp_path_factory.mktemp("costs") / f"{name}.toml"
        path.write_text("\n[".join(blocks), encoding="utf-8")
        return path

    return make


def test_nothing_is_assumed_where_nothing_is(profile):
    assert run("xe", profile("none", set()))["assumed_ns"] == 0


@pytest.mark.parametrize("event", ["cost.remote_bytes_per_row", "cost.remote_ns_per_byte"])
def test_accesses_in_place_rest_on_the_bytes_of_a_row_and_on_the_rate(profile, event):
    result = run("nouveau", profile("remote", {event}))
    assert result["assumed_ns"] == result["remote_ns"] > 0


def test_an_assumed_copy_counts_for_as_long_as_the_engine_is_busy(profile):
    result = run("xe", profile("copies", {"copy.gather.h2d"}))
    assert 0.017933 * result["migrated_to_device_bytes"] < result["assumed_ns"] < result["stage_ns"]["migrate"]


@pytest.mark.parametrize("driver", ["xe", "nouveau", "dmirror", "svmdev", "kfd"])
def test_the_stages_add_up_to_the_latencies(driver):
    result = run(driver, "h100-pcie5")
    assert sum(result["stage_ns"].values()) == pytest.approx(
        result["fault_latency_ns"]["mean"] * result["gpu_faults"], abs=0.05 * result["gpu_faults"] + 1
    )
