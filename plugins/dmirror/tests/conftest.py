"""What the tests of dmirror share: benches that are torn down, and so checked for leaks, when the test is over."""

import pytest
from gpusvm.testing import Bench
from gpusvm_dmirror.plugin import INFO
from hmm_harness import Hmm


@pytest.fixture
def bench():
    made = []

    def make(spec="dmirror", **options):
        made.append(Bench(spec, drivers={"dmirror": INFO}, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def events():
    """Return the trace events of one kind that a bench has left so far, without time and task."""

    def of(bench, kind):
        return [event[3:] for event in bench.kernel.tracer.events if event[2] == kind]

    return of


@pytest.fixture(params=["hmm_device_private", "hmm_device_coherent"])
def hmm(request):
    """One device: minor 0 or 2."""
    made = Hmm(0 if request.param == "hmm_device_private" else 2)
    yield made
    made.teardown()


@pytest.fixture(params=["hmm2_device_private", "hmm2_device_coherent"])
def hmm2(request):
    """Two devices: minors 0 and 1, or 2 and 3."""
    made = Hmm(*((0, 1) if request.param == "hmm2_device_private" else (2, 3)))
    yield made
    made.teardown()
