import json
from pathlib import Path

import attrs
import pytest
from gpusvm.compare import Comparison
from gpusvm.compare.plan import Plan, PlannedRun
from gpusvm.run.spec import RunSpec

EXAMPLE = Path(__file__).with_name("example.json")


@pytest.fixture
def example():
    """Four driver specs on two workloads, as compare.json holds them."""
    return json.loads(EXAMPLE.read_text())


@pytest.fixture
def plan(example):
    """The plan that the example could have come from."""
    runs = []
    for result in example["runs"]:
        spec = RunSpec(driver=result["driver"], workload=result["workload"], vram_bytes=result["vram_bytes"])
        inputs = {
            "trace": "0" * 64,
            "costs": "1" * 64,
            "topology": "2" * 64,
            "core": "0.1.0",
            "driver": "gpusvm-xe 0.1.0",
        }
        runs.append(PlannedRun(spec=spec, key=spec.key(inputs=inputs), inputs=inputs, accesses=result["accesses"]))
    return Plan(
        drivers=("xe", "nouveau", "dmirror", "xe:chunk_sizes=64K+4K"),
        workloads=("triad", "bfs"),
        runs=tuple(runs),
        document={
            "schema": 1,
            "versions": {"python": "3.11.7", "numpy": "2.4.6", "gpusvm-core": "0.1.0", "xe": "gpusvm-xe 0.1.0"},
            "workloads": {name: {"sha256": "0" * 64, "accesses": 163962} for name in ("triad", "bfs")},
            "costs": {"name": "h100-pcie5", "sha256": "1" * 64},
            "topology": {"name": "single", "sha256": "2" * 64},
            "runs": [{"key": run.key, "spec": attrs.asdict(run.spec)} for run in runs],
        },
        registry={},
    )


@pytest.fixture
def comparison(example, plan):
    return Comparison(
        drivers=plan.drivers,
        workloads=plan.workloads,
        runs=tuple(example["runs"]),
        failures=(),
        document=plan.document,
    )
