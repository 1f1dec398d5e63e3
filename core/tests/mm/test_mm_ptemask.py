"""Masks, arrays of truth values, arrays of indices and runs say the same."""

from itertools import pairwise

import numpy as np
from gpusvm.mm import ptemask
from hypothesis import given
from hypothesis import strategies as st

masks = st.one_of(
    st.integers(0, (1 << 512) - 1),
    st.builds(lambda first, n: ((1 << n) - 1) << first, st.integers(0, 511), st.integers(0, 40)).map(
        lambda mask: mask & ((1 << 512) - 1)
    ),
    st.sets(st.integers(0, 511), max_size=6).map(lambda pages: sum(1 << page for page in pages)),
)


def pages_of(mask: int) -> list[int]:
    return [i for i in range(512) if mask >> i & 1]


@given(masks)
def test_the_four_forms_agree(mask: int) -> None:
    pages = pages_of(mask)
    assert ptemask.indices(mask).tolist() == pages
    assert np.flatnonzero(ptemask.bools(mask, 512)).tolist() == pages
    assert ptemask.from_bools(ptemask.bools(mask, 512)) == mask
    assert ptemask.from_indices(np.array(pages, np.int64), 512) == mask
    assert [i for first, n in ptemask.runs(mask) for i in range(first, first + n)] == pages


@given(masks)
def test_runs_are_maximal(mask: int) -> None:
    runs = ptemask.runs(mask)
    assert all(n > 0 for _, n in runs)
    assert all(first + n < following for (first, n), (following, _) in pairwise(runs))
    if mask:
        assert ptemask.is_run(mask) == (len(runs) == 1)
        assert ptemask.lowest(mask) == runs[0][0]


def test_a_span_is_so_many_pages() -> None:
    assert ptemask.span(0, 512) == (1 << 512) - 1
    assert ptemask.span(3, 2) == 0b11000
    assert ptemask.span(3, 0) == 0
