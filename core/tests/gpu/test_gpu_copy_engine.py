"""The copy engine: how long a clear and a copy take, and under which events their time is accounted."""

import pytest
from gpusvm.gpu import D2H, H2D, CopyEngine, Link, Shape
from gpusvm.kernel import Kernel
from gpusvm.run.costs import load_profile

PAGE, PMD = 4096, 2 << 20


def engine(shape: Shape) -> CopyEngine:
    kernel = Kernel(costs=load_profile("h100-pcie5").costs)
    return CopyEngine(kernel, Link(kernel), shape=shape)


@pytest.mark.parametrize("shape", ["gather", "per_piece"])
def test_a_clear_in_one_piece_takes_what_the_profile_says(shape: Shape) -> None:
    e = engine(shape)
    costs = e.kernel.costs
    assert costs is not None
    assert e.clear(PMD) == e.busy_ns == costs.bo_clear_ns(PMD)


def test_clears_of_many_pieces_are_queued_behind_one_another() -> None:
    e = engine("per_piece")
    costs = e.kernel.costs
    assert costs is not None
    per_piece_ns = costs.copies["per_piece", "h2d"].per_piece_ns
    assert e.clear(512 * PAGE, 512) == costs.bo_clear_ns(PMD) + 511 * per_piece_ns
    assert e.clear(512 * PAGE, 512) < 2 * costs.copy_ns("per_piece", "h2d", PMD, 512)


def test_the_time_of_an_engine_is_accounted_under_the_constants_that_it_rests_on() -> None:
    e = engine("per_piece")
    costs = e.kernel.costs
    assert costs is not None
    e.copy(H2D, PMD, 512)
    e.copy(D2H, PAGE, 1)
    e.clear(PMD)
    assert e.kernel.now_ns == 0
    assert dict(e.kernel.charged) == {
        "copy_per_piece_h2d": costs.copy_ns("per_piece", "h2d", PMD, 512),
        "copy_per_piece_d2h": costs.copy_ns("per_piece", "d2h", PAGE, 1),
        "bo_clear_base": costs.bo_clear_base,
        "bo_clear_per_byte": costs.bo_clear_ns(PMD) - costs.bo_clear_base,
    }
    assert sum(e.kernel.charged.values()) == e.busy_ns


def test_without_costs_nothing_takes_time() -> None:
    kernel = Kernel()
    e = CopyEngine(kernel, Link(kernel), shape="gather")
    assert (e.copy(H2D, PMD, 1), e.clear(PMD), e.busy_ns) == (0, 0, 0)


def test_what_is_done_later_is_done_in_order_and_before_the_next_copy() -> None:
    e = engine("gather")
    done: list[str] = []
    e.later(lambda: done.append("first"))
    e.later(lambda: done.append("second"))
    assert done == []
    e.copy(H2D, PMD, 1)
    assert done == ["first", "second"]


def test_what_is_done_later_is_done_by_a_worker_if_nothing_follows() -> None:
    e = engine("gather")
    done: list[str] = []
    e.later(lambda: done.append(e.kernel.current.name))
    e.kernel.settle()
    assert done == ["kworker/copy engine:0"]
