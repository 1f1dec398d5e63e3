"""Spread independent jobs over processes, behind an interface that a cluster engine can take over."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent import futures
from itertools import islice
from typing import Protocol, TypeVar

from attrs import frozen

from gpusvm.errors import ModelError

__all__ = ["Executor", "ProcessExecutor", "SerialExecutor", "available_cpus", "may_fork"]

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Executor(Protocol):
    """Call a function on each of some jobs.

    `function` is importable by its name, jobs and results can be pickled. Jobs from an iterator are taken when there is
    room for them. Yields (index of the job, result) as they finish, in any order. Closing the iterator, or an exception
    in whoever reads it, ends the jobs that run and drops the others. An exception of `function` ends it too and is
    raised here.
    """

    def run(self, function: Callable[[_Job], _Result], jobs: Iterable[_Job], /) -> Iterator[tuple[int, _Result]]: ...


@frozen
class SerialExecutor:
    """Run the jobs one after the other in this process."""

    def run(self, function: Callable[[_Job], _Result], jobs: Iterable[_Job], /) -> Iterator[tuple[int, _Result]]:
        for index, job in enumerate(jobs):
            yield index, function(job)


@frozen
class ProcessExecutor:
    """Run the jobs in `processes` new processes (spawned, so that no state of this one leaks into a run).

    What they print goes to standard error. `prepare` is called first in each of them. As always with spawned processes,
    a script that uses it needs an ``if __name__ == "__main__"``. With `fork` they are forked where that is safe, on
    Linux in a process that has no other thread: they need not import anything, and begin with this one's state.
    """

    processes: int
    prepare: Callable[[], None] | None = None
    fork: bool = False

    def run(self, function: Callable[[_Job], _Result], jobs: Iterable[_Job], /) -> Iterator[tuple[int, _Result]]:
        processes = min(self.processes, len(jobs)) if isinstance(jobs, Sized) else self.processes
        pool = futures.ProcessPoolExecutor(
            max_workers=max(1, processes),
            mp_context=multiprocessing.get_context("fork" if self.fork and may_fork() else "spawn"),
            initializer=_begin_worker,
            initargs=(self.prepare,),
        )
        try:
            waiting = enumerate(jobs)
            running: dict[futures.Future[_Result], int] = {}
            while True:
                # One job more than there are processes lies ready for whichever is free first.
                for index, job in islice(waiting, processes + 1 - len(running)):
                    running[pool.submit(function, job)] = index
                if not running:
                    break
                for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                    try:
                        result = future.result()
                    except futures.BrokenExecutor as exc:
                        raise ModelError(
                            "a worker process ended without a result (killed, perhaps for its memory); use fewer --jobs"
                        ) from exc
                    yield running.pop(future), result
        except BaseException:
            _end(pool)
            raise
        pool.shutdown()


def may_fork() -> bool:
    """Say whether a process forked from this one is safe: on Linux, and if this one has no other thread."""
    return sys.platform == "linux" and threading.active_count() == 1


def available_cpus() -> int:
    """Count the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin_worker(prepare: Callable[[], None] | None) -> None:
    # Standard output belongs to the parent, which may be writing JSON there.
    os.dup2(2, 1)
    # A terminal sends SIGINT to every process in the foreground; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that was killed ends nobody, and a worker that waits for jobs would wait forever.
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if prepare is not None:
        prepare()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end(pool: futures.ProcessPoolExecutor) -> None:
    """End the workers at once. Python 3.14 has ``terminate_workers()`` for this; before it, only the private list."""
    processes = list((pool._processes or {}).values())
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    # The pool's own thread waits for them too, and who waits second is not told the status: so let that thread end.
    pool.shutdown(wait=True, cancel_futures=True)
    for process in processes:
        process.join()
