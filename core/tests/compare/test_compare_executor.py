import math
import multiprocessing
import os
import sys
import threading

import pytest
from gpusvm.compare import ProcessExecutor, SerialExecutor, available_cpus
from gpusvm.errors import ModelError


@pytest.mark.parametrize("executor", [SerialExecutor(), ProcessExecutor(2)], ids=["serial", "processes"])
def test_every_job_is_answered_under_its_index(executor):
    answers = dict(executor.run(math.factorial, [5, 3, 10]))
    assert answers == {0: 120, 1: 6, 2: 3628800}


@pytest.mark.parametrize("executor", [SerialExecutor(), ProcessExecutor(2)], ids=["serial", "processes"])
def test_an_exception_of_the_function_is_raised(executor):
    with pytest.raises(ValueError, match=r"factorial\(\) not defined for negative values"):
        list(executor.run(math.factorial, [-1]))


def code(answer: int) -> int:
    return STATE["answer"] * answer


STATE = {"answer": 1}


def test_forked_workers_begin_with_the_state_of_their_parent(monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # what runs the tests may have threads of its own
    monkeypatch.setitem(STATE, "answer", 7)
    started = 7 if sys.platform == "linux" else 1
    assert sorted(answer for _, answer in ProcessExecutor(2, fork=True).run(code, [1, 2])) == [started, 2 * started]


def test_beside_other_threads_they_are_spawned(monkeypatch):
    """A spawned worker knows nothing of what its parent has changed; the function has to be one that it finds."""
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(usual + 7)
    try:
        answers = list(ProcessExecutor(2, fork=True).run(eval, ["__import__('sys').getrecursionlimit()"]))
    finally:
        sys.setrecursionlimit(usual)
    assert answers == [(0, 1000)]


def test_no_jobs_start_no_process():
    assert list(ProcessExecutor(2).run(math.factorial, [])) == []


def test_a_killed_worker_is_reported():
    with pytest.raises(ModelError) as caught:
        list(ProcessExecutor(1).run(os._exit, [9]))
    assert str(caught.value) == (
        "a worker process ended without a result (killed, perhaps for its memory); use fewer --jobs"
    )


def test_closing_ends_the_workers():
    before = set(multiprocessing.active_children())
    answers = ProcessExecutor(2).run(math.factorial, [1, 2, 3, 4, 5, 6])
    next(answers)
    workers = set(multiprocessing.active_children()) - before
    assert workers
    answers.close()
    assert not any(worker.is_alive() for worker in workers)


def test_there_is_a_cpu():
    assert 1 <= available_cpus() <= os.cpu_count()
