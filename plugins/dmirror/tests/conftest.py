"""What the tests of dmirror share: benches that are torn down, and so checked for leaks, when the test is over."""

import pytest
from gpusvm.testing import Bench
from gpusvm_dmirror.plugin import INFO


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
