"""Explore what the model allows two threads that race: all orders within a number of preemptions."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from attrs import Factory, define, evolve

from gpusvm.driver.operations import PROCESS_OPERATIONS, OperationRace
from gpusvm.errors import DeadlockError, GpusvmError, InputError, LivelockError
from gpusvm.explore.checkpoint import Checkpoint
from gpusvm.explore.dfs import DepthFirst
from gpusvm.explore.execution import STEPS_MAX
from gpusvm.explore.livelock import LivelockWatch
from gpusvm.explore.scheduler import SchedulerChoices
from gpusvm.explore.schedulers import read_scheduler
from gpusvm.kernel import Abandoned, CarryOn
from gpusvm.mm import Geometry
from gpusvm.realkernel.answers import HANG
from gpusvm.realkernel.operations import read_operation
from gpusvm.realkernel.races.outcome import CRASH, Outcome, for_block
from gpusvm.realkernel.sequence import Player
from gpusvm.realkernel.targets import Asked

if TYPE_CHECKING:
    from gpusvm.explore.footprint import Footprints

__all__ = ["MODEL_BLOCK_ORDER", "Allowed", "allowed_outcomes"]

MODEL_BLOCK_ORDER: Final = 3
"""A huge page of the model that is explored has so few pages: `for_block` of eight."""


@define(kw_only=True)
class Allowed:
    """Hold what the model allows: outcomes, and how many orders were run to find them.

    `exhausted`: there are no more orders within the bound; `bounded`: there are some beyond it. `broken` are the
    outcomes that end with CRASH or HANG, with what the model says of them.
    """

    outcomes: set[Outcome] = Factory(set)
    broken: dict[Outcome, str] = Factory(dict)
    schedules: int = 0
    exhausted: bool = False
    bounded: bool = False


class _Scene:
    """Be a machine on which everything before a race is done, and that does the race again and again."""

    def __init__(self, asked: Asked, race: OperationRace) -> None:
        self.race = for_block(race, 1 << MODEL_BLOCK_ORDER)
        self.asked = asked
        geometry = Geometry(pmd_order=MODEL_BLOCK_ORDER)
        self.player = Player(asked.spec, asked.target, devices=asked.devices, explored=geometry)
        self.kernel = self.player.machine.kernel
        self.kernel.set_choices(CarryOn())
        for text in self.race.before:
            self._answer(text)
        self.kernel.settle()
        self.answers: dict[int, str] = {}
        self._livelocks = LivelockWatch(self.player.machine.memory, lambda: len(self.answers))

    def do(self, choices: SchedulerChoices, found: Allowed) -> None:
        """Do the race once, and note what came of it, unless it was abandoned."""
        sched = self.kernel.sched
        sched.steps_begun = sched.steps  # type: ignore[attr-defined]  # an explored kernel's scheduler counts them
        sched.steps_max = sched.steps + STEPS_MAX  # type: ignore[attr-defined]  # as above
        self._livelocks.begin()
        ended, why = None, ""
        try:
            self._race(choices)
        except Abandoned:
            return
        except (DeadlockError, LivelockError) as error:
            ended, why = HANG, str(error)
        except (GpusvmError, AssertionError) as error:
            ended, why = CRASH, f"{type(error).__name__}: {error}"
        finally:
            self._livelocks.end()
        # A side that came to its end while the other hangs or dies has told nobody of it.
        count = len(self.answers) if ended is None or {0, 1} <= {*self.answers} else 0
        outcome = (*(self.answers[number] for number in range(count)), *(() if ended is None else (ended,)))
        found.outcomes.add(outcome)
        if ended is not None:
            found.broken.setdefault(outcome, why.splitlines()[0])

    def _race(self, choices: SchedulerChoices) -> None:
        sides = [
            self.kernel.spawn(self._do, number, text, name=name)
            for number, (name, text) in enumerate((("left", self.race.left), ("right", self.race.right)))
        ]
        self.kernel.set_choices(choices)
        for task in sides:
            task.join()
        for number, text in enumerate(self.race.after, 2):
            self._do(number, text)

    def _do(self, number: int, text: str) -> None:
        self.answers[number] = self._answer(text)

    def _answer(self, text: str) -> str:
        target = self.asked.target
        forms = {**PROCESS_OPERATIONS, **target.operations}
        answer = self.player.answer(read_operation(text, forms, devices=self.asked.devices))
        return str(evolve(answer, events=()))


def allowed_outcomes(
    race: OperationRace,
    asked: Asked,
    *,
    preemptions: int | None = 2,
    schedules: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Allowed:
    """Explore a race in the model that answers as `asked` says (`ask_to_race`).

    `preemptions`: the most in an order, None: however many. At most `schedules` orders are run. InputError for an
    operation that there is not.
    """
    found = Allowed()
    orders = _orders(preemptions, (asked.spec.info.make.__module__.partition(".")[0],))
    footprints: Footprints = orders.footprints  # type: ignore[assignment]  # it reduces
    with ExitStack() as watched:
        watched.enter_context(footprints.watching())
        scene = _Scene(asked, race)
        checkpoint = Checkpoint([scene])
        while (schedules is None or found.schedules < schedules) and orders.new_execution():
            if found.schedules:
                scene.kernel.close()  # tasks that an error has left waiting
                checkpoint.restore()
            footprints.begin(scene.kernel)
            scene.do(SchedulerChoices(orders), found)
            footprints.end()
            found.schedules += 1
            if progress is not None:
                progress(found.schedules)
        scene.kernel.close()
    found.exhausted, found.bounded = orders.exhausted, orders.beyond > 0
    return found


def _orders(preemptions: int | None, packages: Sequence[str]) -> DepthFirst:
    spec = read_scheduler(f"dfs:preemptions={'all' if preemptions is None else preemptions}")
    made = spec.make(packages=packages)
    if not isinstance(made, DepthFirst):
        raise InputError(f"a race is explored depth first, not by {spec.text}")
    return made
