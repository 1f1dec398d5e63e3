"""What pytest loads in every run of an environment that has gpusvm: no more than it takes to notice a check.

A driver is imported when the first check of one is collected, and not before; `gpusvm.conformance.pytest_checks` does
the work.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

PROPERTY: Final = "gpusvm_conformance"
"""What a report carries a cell under, from whichever process ran it."""

Cells = dict[str, dict[str, Any]]
CELLS: Final = pytest.StashKey[Cells]()
"""Where the process that hears all reports keeps the cells, by node id."""

_ATTRIBUTE: Final = "__gpusvm_check__"


@pytest.hookimpl(trylast=True)
def pytest_addoption(parser: pytest.Parser) -> None:
    """Say which drivers and which checks are meant."""
    group = parser.getgroup("gpusvm", "gpusvm: conformance of drivers")
    group.addoption(
        "--gpusvm-driver",
        action="append",
        default=[],
        metavar="SPEC",
        help="driver under test, by its spec; may be given several times; all installed ones if none is",
    )
    with suppress(ValueError):  # another plugin may have an option of this name, and the long one does the same
        group.addoption(
            "--driver", action="append", dest="gpusvm_driver", metavar="SPEC", help="short for --gpusvm-driver"
        )
    group.addoption(
        "--gpusvm-profile", action="append", default=[], metavar="NAME", help="run the checks of this profile only"
    )
    group.addoption(
        "--gpusvm-check",
        action="append",
        default=[],
        metavar="ID",
        help="run the check of this id only, or those that a glob fits",
    )
    group.addoption(
        "--gpusvm-without", action="append", default=[], metavar="NAME", help="leave a driver plugin out, broken or not"
    )
    group.addoption(
        "--gpusvm-quirks",
        choices=("as_written", "fixed"),
        default="as_written",
        help="what every quirk is set to that a spec does not name",
    )
    group.addoption(
        "--gpusvm-beside",
        default="",
        metavar="SPEC",
        help="driver that stands beside the one under test where a machine has two; the suite's own if none is named",
    )
    group.addoption("--gpusvm-mutant", default=None, metavar="ID", help="switch a historical bug on while a check runs")
    group.addoption("--gpusvm-limit-s", type=float, default=60.0, metavar="SECONDS", help="how long one check may take")


def pytest_configure(config: pytest.Config) -> None:
    """Be ready to hear of cells."""
    config.stash[CELLS] = {}
    config.pluginmanager.register(_Recorder(config.stash[CELLS]), "gpusvm-cells")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Look at the drivers that are named, once for all processes: what is wrong is said before any of them starts."""
    if session.config.getoption("gpusvm_driver") and not hasattr(session.config, "workerinput"):
        from gpusvm.conformance.pytest_checks import columns

        columns(session.config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a check the drivers under test."""
    if hasattr(metafunc.function, _ATTRIBUTE):
        from gpusvm.conformance.pytest_checks import Checks

        Checks.of(metafunc.config).give_drivers(metafunc)


def pytest_terminal_summary(terminalreporter: "TerminalReporter", config: pytest.Config) -> None:
    """Say what the drivers came to, if any was checked."""
    if config.stash[CELLS]:
        from gpusvm.conformance.pytest_checks import summary

        terminalreporter.section("conformance")
        for line in summary(config.stash[CELLS]):
            terminalreporter.write_line(line)


class _Recorder:
    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a cell; of a check that ended its process nothing comes but that it had begun."""
        found: list[Any] = [value for name, value in report.user_properties if name == PROPERTY]
        if found:
            self._cells[report.nodeid] = found[-1]
        elif report.failed and report.nodeid in self._cells:
            cell = self._cells[report.nodeid]
            cell.update(status="error", reason=f"its process ended while it ran ({cell['place']})")
