"""Say of each check what has made it fail: a check that nothing fails has yet to show that it can.

What `gpusvm.conformance.caught` finds out, read the other way round. A failure shows most where little else fails: what
breaks everything fails a check before it comes to its point.
"""

from collections.abc import Iterable, Mapping

from attrs import frozen

from gpusvm.conformance.caught import Trial

__all__ = ["Showing", "quiet", "shown"]


@frozen(kw_only=True)
class Showing:
    """Be one failure of a check: `by` a mutant or a broken driver, on a driver, where `fails` of the `ran` checks fail
    with it. `late`: the check went through, and its machines could not be taken down; `hung`: it had no end.
    """

    check: str
    by: str
    driver: str
    fails: int
    ran: int
    late: bool
    hung: bool


def shown(trials: Mapping[tuple[str, str], Trial]) -> dict[str, tuple[Showing, ...]]:
    """Return by check what failed it, and only with what was broken; the most telling comes first."""
    found: dict[str, list[Showing]] = {}
    for (by, driver), one in trials.items():
        plain = trials.get(("", driver))
        if not by or plain is None:
            continue
        passes = set(plain.passed)
        failed = [each for each in one.failed if each in passes]
        late, hung = set(one.late), set(one.hung)
        for check in failed:
            found.setdefault(check, []).append(
                Showing(
                    check=check,
                    by=by,
                    driver=driver,
                    fails=len(failed),
                    ran=len(one.failed) + len(one.passed),
                    late=check in late,
                    hung=check in hung,
                )
            )
    return {check: tuple(sorted(some, key=_telling)) for check, some in found.items()}


def quiet(checks: Iterable[str], trials: Mapping[tuple[str, str], Trial]) -> list[str]:
    """Return those of some checks that nothing has failed by what they look at: that machines cannot be taken down, or
    that there is no end, fails any check.
    """
    by_check = shown(trials)
    return [check for check in checks if all(each.late or each.hung for each in by_check.get(check, ()))]


def _telling(one: Showing) -> tuple[bool, bool, int]:
    return one.hung, one.late, one.fails
