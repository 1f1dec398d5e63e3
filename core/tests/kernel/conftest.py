"""Kernels whose costs a test chooses, and places in the test's own source."""

import inspect
from pathlib import Path

import attrs
import pytest
from gpusvm.kernel import Costs, Kernel


def _costs():
    free = {field.name: 0 for field in attrs.fields(Costs) if field.name not in {"copies", "assumed"}}
    return Costs(**free | {"bind_base": 100, "tlb_invalidate": 1000}, copies={}, assumed=frozenset())


@pytest.fixture
def kernel():
    """A timed kernel in which bind_base costs 100 ns, tlb_invalidate 1000 ns, and nothing else anything."""
    with Kernel(costs=_costs()) as kernel:
        yield kernel


@pytest.fixture
def unchecked():
    with Kernel(costs=_costs(), checked=False) as kernel:
        yield kernel


@pytest.fixture
def place():
    """A function that returns the place, as errors name it, of the line of the test file that ends in ``# marker``."""

    def find(marker):
        path = Path(inspect.stack()[1].filename)
        lines = path.read_text(encoding="utf-8").splitlines()
        at = [number for number, line in enumerate(lines, 1) if line.endswith(f"# {marker}")]
        assert len(at) == 1, f"{marker!r} is on lines {at}"
        return f"{path.parent.name}/{path.name}:{at[0]}"

    return find
