"""What the kernel's primitives cost: `pytest benchmarks/bench_kernel.py`.

Each benchmark does its operation 1000 times a round, so the time of a round in ms is the time of one operation in us.
"""

import attrs
import greenlet
import pytest
from gpusvm.kernel import Costs, Kernel, Kref, SeededChoices, Work

ROUND = range(1000)


def _kernel(*, checked):
    free = {field.name: 0 for field in attrs.fields(Costs) if field.name not in {"copies", "assumed"}}
    return Kernel(costs=Costs(**free | {"bind_base": 1}, copies={}, assumed=frozenset()), checked=checked)


@pytest.fixture(params=[True, False], ids=["checked", "unchecked"])
def kernel(request):
    with _kernel(checked=request.param) as kernel:
        yield kernel


def test_charge(benchmark, kernel):
    charge = kernel.charge

    def run():
        for _ in ROUND:
            charge("bind_base")

    benchmark(run)
    assert kernel.now_ns == kernel.charged["bind_base"]


@pytest.mark.parametrize("kind", ["mutex", "spinlock"])
def test_lock_pair(benchmark, kernel, kind):
    lock = getattr(kernel, kind)("l")

    def run():
        for _ in ROUND:
            lock.lock()
            lock.unlock()

    benchmark(run)


def test_nested_mutex_pair(benchmark, kernel):
    outer, lock = kernel.rwsem("outer"), kernel.mutex("l")

    def run():
        for _ in ROUND:
            lock.lock()
            lock.unlock()

    with outer.read():
        benchmark(run)


def test_rwsem_read_pair(benchmark, kernel):
    sem = kernel.rwsem("s")

    def run():
        for _ in ROUND:
            sem.down_read()
            sem.up_read()

    benchmark(run)


def test_atomic_section(benchmark, kernel):
    def run():
        for _ in ROUND:
            with kernel.atomic():
                pass

    benchmark(run)


def test_kref_pair(benchmark, kernel):
    ref = Kref(kernel, "bo", lambda: None)

    def run():
        for _ in ROUND:
            ref.get()
            ref.put()

    benchmark(run)


def test_bare_greenlet_switch(benchmark):
    """Switch there and back: what the next one stands on."""
    main = greenlet.getcurrent()

    def body():
        while True:
            main.switch()

    other = greenlet.greenlet(body)

    def run():
        for _ in ROUND:
            other.switch()

    benchmark(run)


def test_switch(benchmark, kernel):
    """Two tasks that overtake each other in virtual time: 1000 switches."""

    def work():
        for _ in range(500):
            kernel.charge("bind_base")

    def run():
        kernel.spawn(work, name="a")
        kernel.spawn(work, name="b")
        kernel.settle()

    benchmark(run)


def test_spawn_and_join(benchmark, kernel):
    def run():
        for _ in ROUND:
            kernel.spawn(int, name="task").join()

    benchmark(run)


def test_queue_and_flush(benchmark, kernel):
    queue, work = kernel.workqueue("wq"), Work(int, "work")

    def run():
        for _ in ROUND:
            queue.queue(work)
            queue.flush()

    benchmark(run)


def test_explored_schedules(benchmark):
    """Ten schedules of four tasks with 25 mutex pairs each: 2000 yield points."""
    steps = []

    def run():
        steps.clear()
        for seed in range(10):
            with Kernel(mode="explored", choices=SeededChoices(seed)) as kernel:
                mutex = kernel.mutex("m")

                def work(mutex=mutex):
                    for _ in range(25):
                        with mutex:
                            pass

                for name in "abcd":
                    kernel.spawn(work, name=name)
                kernel.settle()
                steps.append(kernel.sched.steps)

    benchmark(run)
    assert min(steps) >= 200
