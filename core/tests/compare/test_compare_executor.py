import math
import multiprocessing
import os

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
