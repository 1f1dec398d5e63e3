"""Let two threads race in a real kernel, and compare what comes of it with what the model allows."""

import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

from attrs import define, evolve, frozen

from gpusvm.driver.operations import PROCESS_OPERATIONS, OperationRace
from gpusvm.errors import InputError, nearest
from gpusvm.plugins import Registry, load_drivers
from gpusvm.realkernel.answers import HANG
from gpusvm.realkernel.build import Built, find_built
from gpusvm.realkernel.guest import Guest, GuestDiedError, Hardware, Variant
from gpusvm.realkernel.operations import read_operation
from gpusvm.realkernel.races.allowed import Allowed, allowed_outcomes
from gpusvm.realkernel.races.files import read_races
from gpusvm.realkernel.races.outcome import BLOCK_PAGES, CRASH, Outcome, for_block, line_of, observed
from gpusvm.realkernel.races.recorded import read_recorded
from gpusvm.realkernel.races.result import RaceResult, Races
from gpusvm.realkernel.result import check_directory
from gpusvm.realkernel.targets import Asked, ask_as, ask_to_race

__all__ = ["RaceListener", "RaceProgress", "race"]

# Loops that one side waits before it begins, as a power of two: an operation takes some tens of thousands.
_DELAY_BITS: Final = 17.0


@frozen(kw_only=True)
class RaceProgress:
    """Say which race is at work, on which side, and how far: `total` is None where nobody knows."""

    race: str
    side: str
    done: int
    total: int | None


class RaceListener(Protocol):
    """Hear how far it is."""

    def __call__(self, progress: RaceProgress, /) -> None: ...


def race(
    driver: str,
    *,
    names: Sequence[str] = (),
    files: Sequence[Path] = (),
    profile: str | None = None,
    tries: int = 200,
    seed: int = 1,
    preemptions: int | None = 2,
    schedules: int | None = None,
    recorded: Path | None = None,
    kernel: str = "7.3",
    shop: Path | None = None,
    out: Path | None = None,
    registry: Registry | None = None,
    progress: RaceListener | None = None,
) -> Races:
    """Have two threads on two CPUs of a real kernel do races, `tries` times each, and compare what came of them with
    what the model allows.

    `names` are races of `driver`, a spec string, `files` texts of others (for `profile`); without either all of the
    driver's. One side of each try is delayed by chance, out of `seed`: the same seed, the same delays, which do not
    make a kernel do the same. The model runs all orders with at most `preemptions` preemptions (None: all), and at most
    `schedules` of them. With `recorded`, a ``race.json``, no kernel is booted: its outcomes are those of that file, and
    `driver` is what it says. `out` is a new or empty directory for what `Races.save` writes. InputError for what cannot
    be asked.
    """
    for option, value in (("--tries", tries), ("--schedules", schedules)):
        if value is not None and value < 1:
            raise InputError(f"{option}: expected 1 or more, got {value}")
    if out is not None:
        check_directory(out)
    began = time.monotonic()
    work = _Work(drivers=registry or load_drivers(), tell=progress or _nobody)
    if recorded is None:
        found = work.chosen(driver, names, files, profile)
        found.header |= {"tries": tries, "seed": seed}
        built = find_built(kernel, shop=shop)
    else:
        found = work.recorded(recorded, names, files, profile)
    found.header["preemptions"] = preemptions
    work.check(found)
    for each in found.results:
        each.allowed = work.explored(each.race, preemptions, schedules)
    if recorded is None:
        for group in work.by_profile(found.results):
            found.header |= _ask(built, work.asked(group[0].race), group, tries=tries, seed=seed, tell=work.tell)
    found.seconds = time.monotonic() - began
    if out is not None:
        found.save(out)
    return found


@define
class _Work:
    """Find out what is raced, and have the model do it. `spec` is the spec string of the driver."""

    drivers: Registry
    tell: RaceListener
    spec: str = ""

    def chosen(self, driver: str, names: Sequence[str], files: Sequence[Path], profile: str | None) -> Races:
        """Return the races of a driver, and of files, that nobody has done yet."""
        self.spec = driver
        asked = ask_as(driver, profile, self.drivers)
        if profile is not None and not files:
            raise InputError("--profile: a race of the driver has its own; give it for a file of races")
        races = [] if files and not names else _named(names, asked.target.races, driver)
        races += [each for file in files for each in read_races(file, asked.profile.name)]
        results = [RaceResult(race=evolve(each, profile=each.profile or asked.profile.name)) for each in races]
        return Races(header={"target": asked.target.driver, "spec": driver}, results=results)

    def recorded(self, path: Path, names: Sequence[str], files: Sequence[Path], profile: str | None) -> Races:
        """Return the races of a recording, with what the kernel did."""
        if files or profile is not None:
            raise InputError("--recorded: the recording says what the races are; leave files and --profile out")
        found = read_recorded(path)
        self.spec = found.header["spec"]
        chosen = _named(names, [each.race for each in found.results], str(path))
        found.results = [each for each in found.results if each.race in chosen]
        return found

    def asked(self, race: OperationRace) -> Asked:
        """Return the driver with what a race needs."""
        return ask_to_race(self.spec, race.profile, self.drivers)

    def check(self, found: Races) -> None:
        """Raise InputError for an operation that there is not."""
        for each in found.results:
            asked, race = self.asked(each.race), for_block(each.race, BLOCK_PAGES)
            forms = {**PROCESS_OPERATIONS, **asked.target.operations}
            for operation in (*race.before, race.left, race.right, *race.after):
                try:
                    read_operation(operation, forms, devices=asked.devices)
                except InputError as exc:
                    raise InputError(f"race {race.name}: {exc}") from None

    def explored(self, race: OperationRace, preemptions: int | None, schedules: int | None) -> Allowed:
        """Return what the model allows."""

        def tell(done: int) -> None:
            self.tell(RaceProgress(race=race.name, side="orders of the model", done=done, total=schedules))

        return allowed_outcomes(race, self.asked(race), preemptions=preemptions, schedules=schedules, progress=tell)

    def by_profile(self, results: Sequence[RaceResult]) -> list[list[RaceResult]]:
        """Put together what one guest can do."""
        groups: dict[str | None, list[RaceResult]] = {}
        for each in results:
            groups.setdefault(each.race.profile, []).append(each)
        return list(groups.values())


def _named(names: Sequence[str], races: Sequence[OperationRace], where: str) -> list[OperationRace]:
    by_name = {each.name: each for each in races}
    if not by_name:
        raise InputError(f"{where} has no races")
    for name in names:
        if name not in by_name:
            raise InputError(f"--race: unknown race {name!r} of {where}; {nearest(name, by_name)}")
    return [by_name[name] for name in names or by_name]


def _ask(
    built: Built, asked: Asked, results: Sequence[RaceResult], *, tries: int, seed: int, tell: RaceListener
) -> dict[str, Any]:
    """Have a kernel do the races that need the same devices; what answered."""
    with Guest(built, Variant.of(asked), Hardware(cpus=2)) as guest:
        for each in results:
            race = for_block(each.race, BLOCK_PAGES)
            chance = Random(f"{each.race.name} {seed}")  # noqa: S311  # no secret
            for done in range(tries):
                delay = int(2 ** chance.uniform(0, _DELAY_BITS))
                outcome = _try(guest, asked, race, delay)
                if outcome not in each.kernel:
                    each.delays[outcome] = delay
                    each.serial[outcome] = guest.said if outcome[-1] in {HANG, CRASH} else ""
                each.kernel[outcome] += 1
                tell(RaceProgress(race=each.race.name, side="tries of the kernel", done=done + 1, total=tries))
        return guest.header()


def _try(guest: Guest, asked: Asked, race: OperationRace, delay: int) -> Outcome:
    try:
        answers = guest.sequence([*race.before, line_of(race, delay), *race.after])
    except GuestDiedError:
        guest.restart()
        return (CRASH,)
    return observed(race, answers, asked.target)


def _nobody(_: RaceProgress, /) -> None:
    pass
