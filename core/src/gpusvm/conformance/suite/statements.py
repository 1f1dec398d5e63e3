"""Look for entries of a driver's `conformance.toml` that no check can meet."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpusvm.conformance.suite.check import Check
from gpusvm.conformance.suite.column import Column
from gpusvm.conformance.suite.expected import Statement
from gpusvm.conformance.suite.verdict import before
from gpusvm.errors import InputError, nearest

if TYPE_CHECKING:
    from gpusvm.driver import DriverSpec

__all__ = ["check_statements", "statement_problems"]


def check_statements(columns: Sequence[Column], checks: Sequence[Check]) -> None:
    """Raise InputError, in one line with every problem, for entries about checks that do not run; `checks` are all."""
    found = (problem for column in columns for problem in statement_problems(column.statement, column.spec, checks))
    problems = list(dict.fromkeys(found))
    if problems:
        raise InputError("; ".join(problems))


def statement_problems(statement: Statement, spec: "DriverSpec", checks: Sequence[Check]) -> Iterator[str]:
    """Yield what is wrong with entries about checks that do not run, each with its line; `checks` are all there are."""
    known = {check.id: check for check in checks}
    for name, expected in statement.expected.items():
        if name not in known:
            yield f"{expected.place}: no check is called {name!r}; {nearest(name, known)}"
            continue
        verdict = before(known[name], spec.info.capabilities, statement)
        if verdict is not None:
            yield f"{expected.place}: {name} is {verdict.status} on {spec.name}: {verdict.reason}"
