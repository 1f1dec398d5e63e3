"""Look for entries of a driver's `conformance.toml` that no check can meet."""

from collections.abc import Iterator, Sequence

from gpusvm.conformance.suite.check import Check
from gpusvm.conformance.suite.column import Column
from gpusvm.conformance.suite.verdict import before
from gpusvm.errors import InputError, nearest

__all__ = ["check_statements"]


def check_statements(columns: Sequence[Column], checks: Sequence[Check]) -> None:
    """Raise InputError, in one line with every problem, for entries about checks that do not run; `checks` are all."""
    problems = list(dict.fromkeys(problem for column in columns for problem in _problems(column, checks)))
    if problems:
        raise InputError("; ".join(problems))


def _problems(column: Column, checks: Sequence[Check]) -> Iterator[str]:
    known = {check.id: check for check in checks}
    statement = column.statement
    for name in statement.expected:
        if name not in known:
            yield f"{statement.source}: no check is called {name!r}; {nearest(name, known)}"
            continue
        verdict = before(known[name], column.spec.info.capabilities, statement)
        if verdict is not None:
            yield f"{statement.source}: {name} is {verdict.status} on {column.spec.name}: {verdict.reason}"
