"""Let pytest run checks: one item for each check and driver, and in its report what the cell came to."""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import pytest

from gpusvm.conformance.pytest_plugin import PROPERTY, Cells
from gpusvm.conformance.suite.catalogue import catalogue, choose
from gpusvm.conformance.suite.check import Check, check_of
from gpusvm.conformance.suite.column import Column, read_columns
from gpusvm.conformance.suite.statements import check_statements
from gpusvm.conformance.suite.status import Status
from gpusvm.conformance.suite.verdict import Verdict, before, judged, limited
from gpusvm.errors import InputError, PluginError
from gpusvm.plugins import Installed

__all__ = ["REGISTRY", "Checks", "columns", "summary"]

REGISTRY: Final = pytest.StashKey[Installed]()
"""Where whoever starts pytest leaves the drivers, if they are not those that are installed."""

_COLUMNS: Final = pytest.StashKey[tuple[Column, ...]]()
_CHECKS: Final = pytest.StashKey["Checks"]()
_VERDICT: Final = pytest.StashKey[Verdict]()
_TRACE: Final = pytest.StashKey[list[str]]()

# What a function of pytest's raises is about the check, not about the driver, but for one.
_FAILED: Final = pytest.fail.Exception
_SKIPPED: Final = (pytest.skip.Exception, pytest.xfail.Exception)


def columns(config: pytest.Config) -> tuple[Column, ...]:
    """Return the drivers under test. UsageError, in one line, for what is wrong with them."""
    if _COLUMNS not in config.stash:
        try:
            registry = config.stash.get(REGISTRY, Installed(tuple(config.getoption("gpusvm_without")))).registry()
            found = read_columns(
                config.getoption("gpusvm_driver"),
                registry,
                quirks=config.getoption("gpusvm_quirks"),
                beside=config.getoption("gpusvm_beside"),
            )
            with _mutated(config):
                pass
        except (InputError, PluginError) as error:
            raise pytest.UsageError(str(error)) from None
        config.stash[_COLUMNS] = found
    return config.stash[_COLUMNS]


class Checks:
    """Be the plugin that is registered once a check is there."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._problem: pytest.UsageError | None = None

    @classmethod
    def of(cls, config: pytest.Config) -> "Checks":
        """Return the one of a run, registering it."""
        if _CHECKS not in config.stash:
            config.stash[_CHECKS] = cls(config)
            config.pluginmanager.register(config.stash[_CHECKS], "gpusvm-checks")
        return config.stash[_CHECKS]

    def give_drivers(self, metafunc: pytest.Metafunc) -> None:
        """Make an item of a check for each driver, which holds the driver in the place of its lab."""
        try:
            found = columns(self._config)
        except pytest.UsageError as problem:  # raised here, it would be one of many errors
            self._problem, found = problem, ()
        metafunc.parametrize("lab", found, ids=[column.driver for column in found])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Select checks, and say what cannot be."""
        try:
            self._select(config, items)
        except pytest.UsageError as problem:
            if not hasattr(config, "workerinput"):
                raise
            # The controller takes a worker that ends by itself for a defect of its own: it is told by one item.
            self._problem = problem
            items[:] = [item for item in items if _check(item) is not None][:1]

    def _select(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self._problem is not None:
            raise self._problem
        checks = _no_repeat(items)
        try:
            chosen = choose(
                checks.values(), globs=config.getoption("gpusvm_check"), profiles=config.getoption("gpusvm_profile")
            )
            if len(chosen) == len(checks) and {check.id for check in catalogue()} <= checks.keys():
                check_statements(columns(config), chosen)
        except InputError as error:
            raise pytest.UsageError(str(error)) from None
        ids = {check.id for check in chosen}
        left = [item for item in items if _id(item) not in {None, *ids}]
        if left:
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in left]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Leave out what a driver says it cannot do."""
        if self._problem is not None:
            pytest.fail(str(self._problem), pytrace=False)
        found = _check_and_column(item)
        if found is not None:
            check, column = found
            verdict = before(check, column.spec.info.capabilities, column.statement)
            if verdict is not None:
                item.stash[_VERDICT] = verdict
                pytest.skip(f"{verdict.status}: {verdict.reason}")

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """Give a check its lab, and take that down again, which is a part of the check."""
        found = _check_and_column(pyfuncitem)
        if found is None:
            return (yield)
        lab = found[1].lab()
        pyfuncitem.funcargs["lab"] = lab
        try:
            with limited(self._config.getoption("gpusvm_limit_s")), _mutated(self._config):
                result = yield
                lab.close()
        except BaseException:
            pyfuncitem.stash[_TRACE] = lab.trace()
            lab.abandon()
            raise
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Judge what happened, and let the report carry it to whoever collects."""
        report = yield
        found = _check_and_column(item)
        if found is None:
            return report
        check, column = found
        verdict = _judge(item, call, check, column)
        if verdict is None:
            return report
        cell = {
            "check": check.id,
            "driver": column.driver,
            "status": verdict.status.value,
            "reason": verdict.reason,
            "ref": verdict.ref,
            "place": check.place,
            "seconds": round(call.duration, 3),
            "details": report.longreprtext
            if call.excinfo is not None and verdict.status is not Status.UNSUPPORTED
            else "",
            "trace": item.stash.get(_TRACE, []),
        }
        report.user_properties.append((PROPERTY, cell))
        if verdict.status is Status.XFAIL:
            report.outcome = "skipped"
            report.wasxfail = verdict.reason
        elif verdict.status.is_failure and not report.failed:  # an unexpected pass, or a check that skips
            report.outcome = "failed"
            report.longrepr = verdict.reason
        return report


def _mutated(config: pytest.Config) -> AbstractContextManager[object]:
    """Return what has a bug of Linux in every machine, where one is asked for: the checks alone run with it."""
    name = config.getoption("gpusvm_mutant")
    if name is None:
        return nullcontext()
    from gpusvm.conformance.mutants import load_any

    return load_any(name).active()


def _judge(item: pytest.Item, call: pytest.CallInfo[None], check: Check, column: Column) -> Verdict | None:
    """Return what a phase of an item says of its cell, None if that is nothing."""
    error = None if call.excinfo is None else call.excinfo.value
    if call.when == "call":
        if isinstance(error, _FAILED):
            error = AssertionError(str(error)).with_traceback(error.__traceback__)
        if isinstance(error, _SKIPPED):
            reason = f"the check skips ({error}): only what a driver declares leaves a check out"
            return Verdict(status=Status.ERROR, reason=reason, ref=check.ref)
        return judged(check, error, column.expected(check))
    if _VERDICT in item.stash:
        return item.stash[_VERDICT] if call.when == "setup" else None
    if error is not None:
        return judged(check, RuntimeError(f"{call.when}: {error}"), None)
    if call.when == "setup":
        return Verdict(status=Status.NOT_RUN, reason="it has begun, and no more was heard of it", ref=check.ref)
    return None


def _check(item: pytest.Item) -> Check | None:
    return check_of(getattr(item, "function", None))


def _check_and_column(item: pytest.Item) -> tuple[Check, Column] | None:
    check = _check(item)
    if check is None:
        return None
    assert isinstance(item, pytest.Function)
    column = item.callspec.params["lab"]
    return (check, column) if isinstance(column, Column) else None


def _id(item: pytest.Item) -> str | None:
    check = _check(item)
    return None if check is None else check.id


def _no_repeat(items: list[pytest.Item]) -> dict[str, Check]:
    """Return the checks by id. UsageError if two functions have one."""
    found: dict[str, Check] = {}
    for item in items:
        check = _check(item)
        if check is not None and found.setdefault(check.id, check) is not check:
            places = f"{found[check.id].place} and {check.place}"
            raise pytest.UsageError(f"two checks are called {check.id!r}: {places}")
    return found


def summary(cells: Cells) -> Iterator[str]:
    """Say in a line for each driver how many of its checks came to what."""
    drivers = dict.fromkeys(cell["driver"] for cell in cells.values())
    for driver in drivers:
        counts = Counter(cell["status"] for cell in cells.values() if cell["driver"] == driver)
        yield f"{driver}: " + ", ".join(f"{counts[each]} {each.value}" for each in Status if counts[each])
