"""Make a scheduler from its name and parameters: ``NAME[:KEY=VALUE[,KEY=VALUE…]]``.

random    pct:depth=3    pct:depth=2,steps=100    delay:delays=2    dfs:preemptions=3    dfs:reduction=off
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import Factory, frozen

from gpusvm.driver import split_spec
from gpusvm.errors import InputError, nearest
from gpusvm.explore.delay import Delay
from gpusvm.explore.dfs import DepthFirst
from gpusvm.explore.footprint import Footprints
from gpusvm.explore.pct import Pct
from gpusvm.explore.random_walk import RandomWalk

if TYPE_CHECKING:
    from gpusvm.explore.scheduler import Scheduler

__all__ = ["SCHEDULERS", "Parameter", "SchedulerInfo", "SchedulerSpec", "read_scheduler"]

Value = int | str | None


@frozen(kw_only=True)
class Parameter:
    """Say what one parameter of a scheduler means and may be: an int from `least` on, or one of `words`."""

    name: str
    about: str
    default: Value
    least: int = 0
    words: Mapping[str, Value] = Factory(dict)

    def read(self, text: str) -> Value:
        """Read a value; ValueError says what was expected."""
        if text in self.words:
            return self.words[text]
        if self.default is None or isinstance(self.default, int):
            if text.isascii() and text.isdigit() and int(text) >= self.least:
                return int(text)
            words = "".join(f" or {word}" for word in self.words)
            raise ValueError(f"expected a whole number from {self.least} on{words}, got {text!r}")
        raise ValueError(f"{text!r} is none of its values; {nearest(text, self.words)}")

    def write(self, value: Value) -> str:
        return next((word for word, meant in self.words.items() if meant == value), str(value))


@frozen(kw_only=True)
class SchedulerInfo:
    """Say what a scheduler is called, what it does in one line, and its parameters.

    `parallel` ones can share an exploration between processes, each taking every n-th schedule.
    """

    name: str
    about: str
    parameters: tuple[Parameter, ...] = ()
    parallel: bool = True


_STEPS: Final = Parameter(
    name="steps", about="choices that an execution is expected to have", default=None, least=1, words={"seen": None}
)

SCHEDULERS: Final[Mapping[str, SchedulerInfo]] = {
    info.name: info
    for info in (
        SchedulerInfo(name="random", about="pick evenly at every point"),
        SchedulerInfo(
            name="pct",
            about="run the highest of random priorities, change depth - 1 of them at random points",
            parameters=(Parameter(name="depth", about="orders that a bug needs", default=3, least=1), _STEPS),
        ),
        SchedulerInfo(
            name="delay",
            about="run each task to its next wait, in turn, with random delays",
            parameters=(Parameter(name="delays", about="the most in an execution", default=2), _STEPS),
        ),
        SchedulerInfo(
            name="dfs",
            about="run all orders within a number of preemptions, equivalent ones once",
            parameters=(
                Parameter(name="preemptions", about="the most in an execution", default=2, words={"all": None}),
                Parameter(
                    name="reduction",
                    about="whether equivalent orders are skipped",
                    default="on",
                    words={"on": "on", "off": "off"},
                ),
            ),
            parallel=False,
        ),
    )
}
"""What `read_scheduler` knows, by name."""


@frozen(kw_only=True)
class SchedulerSpec:
    """Hold one spec string, read: `text` is the normalised one, `values` has every parameter."""

    text: str
    info: SchedulerInfo
    values: Mapping[str, Value]

    def make(self, *, seed: int = 0, first: int = 0, stride: int = 1, packages: Sequence[str] = ()) -> Scheduler:
        """Return a scheduler at its beginning.

        It draws the schedules first, first + stride, … of `seed`. "dfs" draws nothing and explores its whole tree:
        InputError if it is to take a part. `packages` are the modules of the drivers, whose objects "dfs" watches.
        """
        values: Any = self.values
        match self.info.name:
            case "random":
                return RandomWalk(seed=seed, first=first, stride=stride)
            case "pct":
                return Pct(depth=values["depth"], steps=values["steps"], seed=seed, first=first, stride=stride)
            case "delay":
                return Delay(delays=values["delays"], steps=values["steps"], seed=seed, first=first, stride=stride)
        if stride != 1 or first != 0:
            raise InputError("scheduler 'dfs' explores one tree in one process and takes no part of it: use one job")
        footprints = Footprints(*packages) if values["reduction"] == "on" else None
        return DepthFirst(preemptions=values["preemptions"], footprints=footprints)


def read_scheduler(text: str) -> SchedulerSpec:
    """Read a spec string. InputError, in one line, with the nearest name, for what there is not."""
    name, options = split_spec(text, what="scheduler")
    info = SCHEDULERS.get(name)
    if info is None:
        raise InputError(f"scheduler {text!r}: unknown scheduler {name!r}; {nearest(name, SCHEDULERS)}")
    parameters = {each.name: each for each in info.parameters}
    values = {each.name: each.default for each in info.parameters}
    given: dict[str, str] = {}
    for key, word in options.items():
        if not parameters:
            raise InputError(f"scheduler {text!r}: {name} has no parameters, got {key!r}")
        if key not in parameters:
            raise InputError(f"scheduler {text!r}: unknown key {key!r} of {name}; {nearest(key, parameters)}")
        try:
            values[key] = parameters[key].read(word)
        except ValueError as error:
            raise InputError(f"scheduler {text!r}: {key}: {error}") from None
        given[key] = parameters[key].write(values[key])
    normalised = ",".join(f"{key}={given[key]}" for key in sorted(given))
    return SchedulerSpec(text=f"{name}:{normalised}" if normalised else name, info=info, values=values)
