"""Spread the checks over processes that are forked once everything is imported and collected.

A new interpreter for each process would take longer to import the suite and to collect it than it then takes for its
share of the checks.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Final

import pytest

from gpusvm.explore.garbage import seldom_collected

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

__all__ = ["Forked"]

# A program that is run over and over takes long: begun last, it would keep one process busy when the others are done.
_LONG: Final = ("test_orders.", "test_what_fails.")

_AHEAD: Final = 2


class Forked:
    """Be the plugin that has `jobs` processes run the items of a session, and hears their reports in this one.

    Only for where a process may be forked (`gpusvm.run.executor.may_fork`). A process that ends while it runs an item
    fails that item, and another takes its place. The plugins `deaf` are there in this process only.
    """

    def __init__(self, jobs: int, *, deaf: Sequence[object]) -> None:
        self._jobs = jobs
        self._deaf = deaf

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run what was collected."""
        items = deque(sorted(session.items, key=lambda item: not item.nodeid.rpartition("/")[2].startswith(_LONG)))
        workers: list[_Worker] = []
        try:
            # The processes begin with this: a collection in each of them would go through, and so copy, all that was
            # imported.
            with seldom_collected():
                while items or workers:
                    while items and len(workers) < self._jobs:
                        workers.append(_Worker(session, items, workers, self._deaf))
                    for worker in _ready(workers):
                        if not worker.hear():
                            workers.remove(worker)
        finally:
            for worker in workers:
                worker.end()
        return True


def _ready(workers: "list[_Worker]") -> "Iterator[_Worker]":
    by_line: dict[Any, _Worker] = {worker.line: worker for worker in workers}
    return (by_line[line] for line in wait(by_line))


class _Worker:
    """Be a process that runs items one after the other, as this one knows it."""

    def __init__(
        self, session: pytest.Session, items: deque[pytest.Item], others: "list[_Worker]", deaf: Sequence[object]
    ) -> None:
        self._session = session
        self._items = items
        self._number = {item: number for number, item in enumerate(session.items)}
        self._dealt: deque[pytest.Item] = deque()
        self.line, theirs = multiprocessing.Pipe()
        # A line is at its end once nobody has the other side: no process may keep one that is not its own.
        foreign = [self.line, *(other.line for other in others)]
        self._process: ForkProcess = multiprocessing.get_context("fork").Process(
            target=_work, args=(session, theirs, foreign, deaf), daemon=True
        )
        self._process.start()
        theirs.close()
        for _ in range(_AHEAD):
            self._deal()

    def hear(self) -> bool:
        """Take a message; whether there will be more."""
        try:
            report = self.line.recv()
        except (EOFError, ConnectionResetError):  # reset: it has not read all that was sent to it
            self._ended()
            return False
        hook = self._session.config.hook
        if report is not None:
            hook.pytest_runtest_logreport(
                report=hook.pytest_report_from_serializable(config=self._session.config, data=report)
            )
            return True
        item = self._dealt.popleft()
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._deal()
        return True

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self.line.close()

    def _deal(self) -> None:
        """Give it an item more, or tell it that there is none."""
        with suppress(BrokenPipeError):  # it has ended, which is what is heard next
            if self._items:
                self._dealt.append(self._items.popleft())
                self.line.send(self._number[self._dealt[-1]])
            else:
                self.line.send(None)

    def _ended(self) -> None:
        """See to what it was about: all is done, or it ended while it ran an item."""
        self._process.join()
        self.line.close()
        if not self._dealt:
            return
        item = self._dealt.popleft()
        self._items.extendleft(reversed(self._dealt))
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"the process that ran it ended with {self._process.exitcode}",
            when="call",
        )
        item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


class _Sender:
    """Be the plugin that sends on every report of a process."""

    def __init__(self, config: pytest.Config, line: "Connection[Any, Any]") -> None:
        self._config = config
        self._line = line

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._line.send(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self) -> None:
        self._line.send(None)


def _work(
    session: pytest.Session,
    line: "Connection[Any, Any]",
    foreign: "Sequence[Connection[Any, Any]]",
    deaf: Sequence[object],
) -> None:
    """Run the items whose numbers come along a line, until it is said that there are no more."""
    # Standard output belongs to the parent, which may be writing JSON there; and the parent ends this one itself when a
    # terminal sends SIGINT to both.
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in foreign:
        other.close()
    config = session.config
    for plugin in deaf:
        config.pluginmanager.unregister(plugin)
    config.pluginmanager.register(_Sender(config, line))
    with suppress(EOFError, BrokenPipeError):  # the parent has ended
        while (number := line.recv()) is not None:
            # What follows is not known yet: nothing is kept for it.
            config.hook.pytest_runtest_protocol(item=session.items[number], nextitem=None)
