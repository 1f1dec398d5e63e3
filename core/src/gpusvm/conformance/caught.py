"""Run the conformance suite against the mutants, which are bugs that Linux had, and drivers that break one rule each:
which check notices what.

A check catches a mutant on a driver if the driver passes it without the mutant, and not with it. All quirks are fixed,
so that what drivers are known to do wrong hides nothing. `gpusvm.conformance.shown` turns it around: what made a check
fail.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import frozen

from gpusvm.conformance.hunt import HuntPlan
from gpusvm.conformance.mutants import BROKEN, MUTANTS, OPS_BROKEN, load
from gpusvm.conformance.suite.check import SPEC_VERSION, Check
from gpusvm.conformance.suite.column import Column, read_columns
from gpusvm.conformance.suite.status import Status
from gpusvm.conformance.suite.verdict import HangError, Verdict, before, judged, limited
from gpusvm.documents import structure
from gpusvm.errors import InputError
from gpusvm.plugins import Installed

__all__ = ["Ended", "Trial", "catchers", "ended", "likely_first", "places", "read_trials", "trial", "write_trials"]

SCHEMA: Final = 2
LIMIT_S: Final = 10.0
"""How much of a CPU's time a check may take: some mutants never end."""
HANGS_MAX: Final = 3
"""After how many checks without an end a trial is over: the others would hang as well."""


@frozen(kw_only=True)
class Trial:
    """Hold what checks of a driver came to with a mutant, or without one where `mutant` is empty.

    `failed` are those that do not pass, `passed` the others that ran, and `unsupported` are not for the driver. Of
    those that failed `hung` are the ones that had no end, which depends on how fast the machine is, and `late` the ones
    that went through, and whose machines could not be taken down then.
    """

    mutant: str
    driver: str
    failed: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    hung: tuple[str, ...] = ()
    late: tuple[str, ...] = ()

    def tried(self) -> set[str]:
        """Return the ids of all checks that it knows of."""
        return {*self.failed, *self.passed, *self.unsupported}

    def without(self, checks: Collection[str]) -> "Trial":
        """Return it without some checks."""
        left: dict[str, Any] = {key: tuple(each for each in getattr(self, key) if each not in checks) for key in _LISTS}
        return attrs.evolve(self, **left)

    def and_also(self, later: "Trial") -> "Trial":
        """Return it with more checks."""
        kept = self.without(later.tried())
        both: dict[str, Any] = {key: (*getattr(kept, key), *getattr(later, key)) for key in _LISTS}
        return attrs.evolve(self, **both)


def places(plan: HuntPlan) -> dict[str, tuple[str, ...]]:
    """Return for each mutant the drivers, by their specs, to run the suite on: those that exploration has it on, or
    those that run through its code; and for each broken driver which that is.
    """
    mutants = {
        name: tuple(dict.fromkeys(case.driver for case in plan.case if name in case.mutants)) or mutant.drivers
        for name, mutant in MUTANTS.items()
    }
    return mutants | {name: (broken.driver,) for name, broken in {**BROKEN, **OPS_BROKEN}.items()}


@frozen
class Ended:
    """Say how a check ended, and whether it had gone through by then (`late`)."""

    verdict: Verdict
    late: bool


def ended(check: Check, column: Column) -> Ended | None:
    """Run one check of one driver in this process, and judge it; None if it is not for the driver."""
    if before(check, column.spec.info.capabilities, column.statement) is not None:
        return None
    lab = column.lab()
    error: BaseException | None = None
    late = False
    try:
        with limited(LIMIT_S, of_cpu=True):
            check.run(lab)
            late = True
            lab.close()
    except (Exception, HangError) as raised:  # noqa: BLE001  # whatever it is, it is judged
        error = raised
        lab.abandon()
    return Ended(judged(check, error, None), late)


def trial(
    mutant: str, driver: str, checks: Sequence[Check], *, every: bool = False, known: Collection[str] = ()
) -> tuple[Trial, Trial]:
    """Run checks of a driver with a mutant until one catches it, or `every` one; what they came to, and what those that
    failed come to without the mutant, of which those in `known` are not run again: the driver passes them. InputError
    for names that there are not.
    """
    (column,) = read_columns([driver], Installed(()).registry(), quirks="fixed")
    bug = BROKEN.get(mutant) or OPS_BROKEN.get(mutant) or load(mutant)
    found, plain = Trial(mutant=mutant, driver=driver), Trial(mutant="", driver=driver)
    for check in checks:
        with bug.active():
            found = _and(found, check, ended(check, column))
        if check.id in found.failed and check.id not in known:
            plain = _and(plain, check, ended(check, column))
        catches = check.id in found.failed and (check.id in known or check.id in plain.passed)
        if (catches and not every) or len(found.hung) >= HANGS_MAX:
            break
    return found, plain


def _and(so_far: Trial, check: Check, how: Ended | None) -> Trial:
    name = (check.id,)
    if how is None:
        return so_far.and_also(attrs.evolve(_nothing(so_far), unsupported=name))
    if how.verdict.status is Status.PASS:
        return so_far.and_also(attrs.evolve(_nothing(so_far), passed=name))
    hung = name if how.verdict.reason.startswith("no end after") else ()
    late = name if how.late else ()
    return so_far.and_also(attrs.evolve(_nothing(so_far), failed=name, hung=hung, late=late))


def _nothing(like: Trial) -> Trial:
    return Trial(mutant=like.mutant, driver=like.driver)


def likely_first(checks: Iterable[Check], mutant: str, plan: HuntPlan) -> list[Check]:
    """Order checks for a mutant: those of programs in which exploration finds it come first, other programs next."""
    mine = {case.scenario for case in plan.case if mutant in case.mutants}

    def rank(check: Check) -> int:
        area, _, rest = check.id.partition(".")
        return 2 if area != "orders" else 0 if rest.partition(".")[0] in mine else 1

    return sorted(checks, key=rank)


def catchers(mutant: str, trials: Mapping[tuple[str, str], Trial]) -> dict[str, tuple[str, ...]]:
    """Return by driver the checks that catch a mutant, in the order of the suite, those that hang last."""
    found = {}
    for (name, driver), one in trials.items():
        plain = trials.get(("", driver))
        if name == mutant and plain is not None:
            mine = [each for each in one.failed if each in plain.passed]
            found[driver] = tuple(sorted(mine, key=lambda each: each in one.hung))
    return found


def read_trials(path: Path) -> dict[tuple[str, str], Trial]:
    """Read a file that `write_trials` wrote, by mutant and driver; nothing if it is of another version of the suite."""
    document = json.loads(path.read_text("utf-8"))
    if document.get("schema") != SCHEMA:
        raise InputError(f"{path.name}: expected schema {SCHEMA}, got {document.get('schema')!r}")
    if document.get("spec") != SPEC_VERSION:
        return {}
    ids: list[str] = document["checks"]
    found = {}
    for number, flat in enumerate(document["trials"]):
        named = {**flat, **{key: [ids[each] for each in _read_runs(flat.get(key, ""))] for key in _LISTS}}
        one = structure(named, Trial, source=f"{path.name}: trials[{number}]")
        found[one.mutant, one.driver] = one
    return found


def write_trials(trials: Iterable[Trial], checks: Sequence[str], path: Path, *, command: str) -> None:
    """Write trials one to a line, with the checks by their numbers; of checks that are no more nothing is kept."""
    number = {name: at for at, name in enumerate(checks)}

    def flat(one: Trial) -> dict[str, Any]:
        said = attrs.asdict(one)
        lists = {key: _runs(sorted(number[each] for each in said[key] if each in number)) for key in _LISTS}
        return {"mutant": one.mutant, "driver": one.driver, **{key: text for key, text in lists.items() if text}}

    head = {"schema": SCHEMA, "spec": SPEC_VERSION, "command": command}
    lines = [json.dumps(flat(one), separators=(",", ":")) for one in trials]
    names = ",\n".join(json.dumps(name) for name in checks)
    text = json.dumps(head)[:-1] + f', "checks": [\n{names}\n], "trials": [\n' + ",\n".join(lines) + "\n]}\n"
    half = path.with_suffix(".part")
    half.write_text(text, "utf-8")
    half.replace(path)


def _runs(numbers: Sequence[int]) -> str:
    """Write ascending numbers as runs: ``0-3 7``."""
    found: list[list[int]] = []
    for each in numbers:
        if found and found[-1][1] == each - 1:
            found[-1][1] = each
        else:
            found.append([each, each])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def _read_runs(text: str) -> list[int]:
    found: list[int] = []
    for run in text.split():
        first, _, last = run.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


_LISTS: Final = ("failed", "passed", "unsupported", "hung", "late")
