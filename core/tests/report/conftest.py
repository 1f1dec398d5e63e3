import json
from pathlib import Path

import pytest
from gpusvm.compare import Comparison


@pytest.fixture
def comparison():
    runs = json.loads((Path(__file__).parents[1] / "compare" / "example.json").read_text())["runs"]
    return Comparison(
        drivers=("xe", "nouveau", "dmirror", "xe:chunk_sizes=64K+4K"),
        workloads=("triad", "bfs"),
        runs=tuple(runs),
        failures=(),
        document={"versions": {"gpusvm-core": "0.1.0"}},
    )
