"""Run a small concurrent program of `gpusvm.explore` on the driver that is asked, in a few random orders."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpusvm.conformance.explored import run
from gpusvm.explore.operation import Operation
from gpusvm.explore.scenario import Scenario

if TYPE_CHECKING:
    from gpusvm.conformance.suite import Lab
    from gpusvm.driver import DriverSpec

__all__ = ["told"]


def told(
    lab: "Lab",
    *,
    setup: Sequence[str],
    tasks: Mapping[str, Sequence[str]],
    end: Sequence[str] = (),
    orders: int = 4,
    beside: "Sequence[DriverSpec]" = (),
    **machine: Any,
) -> None:
    """Run a program in some orders of its tasks; lines and `machine` are as in a scenario (`gpusvm explore`);
    `beside` has drivers of their own for the devices behind the first.

    AssertionError with the first thing that broke: an invariant, contents, an errno without a reason, a lock, a leak,
    no end.
    """

    def lines(some: Sequence[str]) -> tuple[Operation, ...]:
        return tuple(map(Operation.parse, some))

    scenario = Scenario(
        name="story",
        about="a check of the conformance suite",
        setup=lines(setup),
        tasks={name: lines(some) for name, some in tasks.items()},
        end=lines(end),
        **machine,
    )
    run(lab, scenario, schedules=orders, beside=beside)
