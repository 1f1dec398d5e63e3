import mmap

import numpy as np
import pytest
from gpusvm.explore.checkpoint import Checkpoint
from gpusvm.mm.sparse import zeros


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.uint8])
@pytest.mark.parametrize("nr", [3, 1 << 21])
def test_they_are_zero_and_can_be_written(nr, dtype):
    found = zeros(nr, dtype)
    assert (found.shape, found.dtype, found.flags.writeable) == ((nr,), dtype, True)
    assert not found[:: nr // 3].any()
    found[nr - 1] = 7
    found.data[0] = 5
    assert found[[0, 1, nr - 1]].tolist() == [5, 0, 7]


def test_a_large_one_is_memory_of_its_own():
    large, small = zeros(1 << 17, np.int64), zeros((1 << 17) - 1, np.int64)
    assert isinstance(large.base.obj, mmap.mmap)
    assert small.base is None


def test_a_checkpoint_puts_a_large_one_back():
    large = zeros(1 << 17, np.int64)
    large[5] = 1
    checkpoint = Checkpoint([large])
    large[5], large[6] = 2, 3
    checkpoint.restore()
    assert large[4:8].tolist() == [0, 1, 0, 0]
