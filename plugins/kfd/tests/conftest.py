"""What the tests of kfd share: benches that are torn down, and so checked for leaks, when the test is over."""

import pytest
from gpusvm.machine import load_topology
from gpusvm.testing import Bench
from gpusvm_kfd.plugin import INFO


@pytest.fixture
def bench():
    made = []

    def make(spec="kfd", *, hardware="single", **options):
        options.setdefault("thp", "never")
        made.append(Bench(spec, drivers={"kfd": INFO}, topology=load_topology(hardware), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def ranges():
    """Return the ranges of a bench's process as (first page, pages, where they are), from an address on."""

    def of(b, addr):
        first = addr >> 12
        return [(each.start - first, each.pages, each.actual_loc) for each in b.vm.process.svms.objects]

    return of
