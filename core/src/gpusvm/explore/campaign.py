"""Explore one scenario on one driver: many executions under one scheduler, within a budget, with what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Final

from attrs import Factory, define, evolve, field

from gpusvm.explore.coverage import PLACES_EVERY, STATES_EVERY, Coverage, is_looked_at
from gpusvm.explore.execution import Execution, Failure, execute
from gpusvm.explore.fingerprint import Fingerprint
from gpusvm.explore.reached import reached
from gpusvm.explore.recording import Recording, first_difference, recorded
from gpusvm.explore.replay import Replay
from gpusvm.explore.stage import Stage
from gpusvm.explore.watch_log import LOG

if TYPE_CHECKING:
    from gpusvm.explore.footprint import Footprints
    from gpusvm.explore.scheduler import Scheduler
    from gpusvm.explore.world import World

__all__ = ["SELF_TEST_EVERY", "Campaign"]

PROGRESS_S: Final = 0.2
"""How often a campaign says how far it is."""

SELF_TEST_EVERY: Final = 1000
"""One execution in so many is run again on a freshly booted machine, and has to be the same in every step."""

_WATCHED_TIMES: Final = 4  # rarer by so much, where looking at the places of an execution takes another one


@define
class Campaign:
    """Run executions of a world one after the other.

    ``boot`` makes the world; it is booted once and put back between executions. ``first`` is the number of the first
    schedule. `lists_code`: the coverage says what the machine's code has. ``schedules``, ``steps``, ``abandoned`` and
    ``self_tests`` count; ``exhausted`` says that the scheduler had no more to give. `footprints`, which a scheduler may
    want, have to be watching. `progress` is called five times a second while it runs.
    """

    boot: Callable[[], World]
    scheduler: Scheduler
    failures_max: int = 0
    footprints: Footprints | None = None
    first: int = 0
    self_test_every: int = SELF_TEST_EVERY
    places_every: int = PLACES_EVERY
    states_every: int = STATES_EVERY
    lists_code: bool = True
    schedules: int = 0
    abandoned: int = 0
    steps: int = 0
    self_tests: int = 0
    seconds: float = 0.0
    exhausted: bool = False
    coverage: Coverage = Factory(Coverage)
    progress: Callable[[], None] | None = None
    stage: Stage = field(init=False)
    _test_due: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        if self.footprints is not None:
            self.footprints.boot()
        self.stage = Stage(self.boot)

    def run(self, *, schedules: int | None = None, seconds: float | None = None) -> Iterator[tuple[int, Execution]]:
        """Run until a budget is used up or nothing is left; yield (schedule, execution) of each that failed.

        One that is not the same when it is repeated has failed too, with the kind "nondeterminism".
        """
        begun = told = perf_counter()
        spent = self.seconds
        while (schedules is None or self.schedules < schedules) and (
            seconds is None or perf_counter() - begun < seconds
        ):
            if not self.scheduler.new_execution():
                self.exhausted = True
                break
            number = self.first + self.schedules
            execution = self._execute(number)
            self.schedules += 1
            self.abandoned += execution.abandoned
            self.steps += execution.steps
            now = perf_counter()
            self.seconds = spent + now - begun
            if self.progress is not None and now - told >= PROGRESS_S:
                told = now
                self.progress()
            if execution.failure is not None:
                yield number, execution
        self.seconds = spent + perf_counter() - begun

    def _execute(self, number: int) -> Execution:
        world = self.stage.ready()
        if self.lists_code and not self.coverage.known_sites:
            self.coverage.list_code(world)
        before = dict(world.kernel.inject_sites)
        if self.self_test_every and number % self.self_test_every == self.self_test_every - 1:
            self._test_due = True
        if self.footprints is not None:
            # What a recording looks at would count as touched: it is made of a repetition.
            execution = execute(
                world,
                self.scheduler,
                failures_max=self.failures_max,
                footprints=self.footprints,
                at_rest=self._look_at(world, number),
            )
            self.coverage.add(execution, world.kernel.inject_sites, before)
            if is_looked_at(number, _WATCHED_TIMES * self.places_every) and not execution.abandoned:
                self._watched_places(execution)
            return self._watched_self_test(execution)
        if self._test_due:
            with recorded(world) as recording:
                execution = execute(world, self.scheduler, failures_max=self.failures_max)
            self.coverage.add_places(recording.places)
            # An execution that was abandoned cannot be repeated to its end: the next one then.
            if not execution.abandoned:
                self._test_due = False
                execution = self._self_test(execution, recording)
        elif is_looked_at(number, self.places_every):
            with reached(world) as found:
                execution = execute(world, self.scheduler, failures_max=self.failures_max)
            self.coverage.add_places(found.places)
        else:
            execution = execute(
                world, self.scheduler, failures_max=self.failures_max, at_rest=self._look_at(world, number)
            )
        self.coverage.add(execution, world.kernel.inject_sites, before)
        return execution

    def _look_at(self, world: World, number: int) -> Callable[[], None] | None:
        """Return what looks at the state of an execution's end, if it is one of those that are looked at."""
        if not is_looked_at(number, self.states_every, first=1):
            return None

        def look() -> None:
            with LOG.paused():
                self.coverage.add_state(Fingerprint(world).take())

        return look

    def _watched_places(self, execution: Execution) -> None:
        """Repeat an execution to see its places: looking at them would count as touching."""
        with LOG.paused():
            world = self.stage.ready()
            replay = Replay(execution.taken)
            replay.new_execution()
            with reached(world) as found:
                execute(world, replay, failures_max=self.failures_max)
            self.coverage.add_places(found.places)

    def _watched_self_test(self, execution: Execution) -> Execution:
        """Repeat an execution twice, put back and freshly booted, if a test is due and it came to its end."""
        if not self._test_due or execution.abandoned:
            return execution
        self._test_due = False
        with LOG.paused():
            world = self.stage.ready()
            replay = Replay(execution.taken)
            replay.new_execution()
            with recorded(world) as recording:
                execute(world, replay, failures_max=self.failures_max)
            self.coverage.add_places(recording.places)
            return self._self_test(execution, recording)

    def _self_test(self, execution: Execution, recording: Recording) -> Execution:
        """Run an execution once more on a freshly booted machine, and compare the two in every line of a recording."""
        self.self_tests += 1
        world = self.stage.anew()
        replay = Replay(execution.taken)
        replay.new_execution()
        with recorded(world) as again:
            repeated = execute(world, replay, failures_max=self.failures_max)
        difference = first_difference(
            [*recording.lines(), *_end(execution)],
            [*again.lines(), *_end(repeated)],
        )
        world.kernel.close()
        if difference is None:
            return execution
        message = f"the same answers led to another execution on a freshly booted machine: {difference}"
        failure = Failure(kind="nondeterminism", invariant="I-SAME", message=message)
        return evolve(execution, failure=failure)


def _end(execution: Execution) -> list[str]:
    failure = execution.failure
    return [f"{execution.steps} steps", "good" if failure is None else f"{failure.kind}: {failure.message}"]
