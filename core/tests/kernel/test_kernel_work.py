import pytest
from gpusvm.errors import KernelError, ModelError
from gpusvm.kernel import Work


def test_a_work_is_queued_once_and_may_queue_itself_again(kernel):
    queue = kernel.workqueue("wq")
    ran = []

    def run():
        ran.append((kernel.now_ns, kernel.current.name, work.pending))
        kernel.charge("tlb_invalidate")
        if len(ran) < 3:
            assert queue.queue(work)
            assert not queue.queue(work)

    work = Work(run, "work")
    assert not work.cancel()
    assert queue.queue(work)
    assert work.pending
    assert not queue.queue(work)
    queue.flush()
    assert kernel.now_ns == 1000
    assert queue.busy
    queue.drain()
    assert ran == [(0, "kworker/wq:0", False), (1000, "kworker/wq:0", False), (2000, "kworker/wq:0", False)]
    assert not queue.busy
    assert [task.name for task in kernel.tasks] == ["main"]


def test_max_active_bounds_what_runs_at_once(kernel):
    queue = kernel.workqueue("wq", max_active=2)
    spans = []

    def run(name):
        begin = kernel.now_ns
        kernel.sleep_ns(100)
        spans.append((name, begin, kernel.now_ns))

    for name in "abcd":
        queue.queue(Work(lambda name=name: run(name), name))
    queue.flush()
    assert spans == [("a", 0, 100), ("b", 0, 100), ("c", 100, 200), ("d", 100, 200)]
    with pytest.raises(ModelError) as caught:
        kernel.workqueue("wq", max_active=0)
    assert str(caught.value) == "workqueue 'wq': max_active is 0 and counts from 1"


def test_a_work_never_runs_twice_at_once(kernel):
    queue = kernel.workqueue("wq", max_active=2)
    spans = []

    def run():
        begin = kernel.now_ns
        if not spans:
            queue.queue(work)
        spans.append(begin)
        kernel.sleep_ns(100)

    work = Work(run, "work")
    queue.queue(work)
    kernel.settle()
    assert spans == [0, 100]


def test_cancel_sync_waits_for_a_running_work(kernel):
    queue = kernel.workqueue("wq")
    ran = []

    def run():
        kernel.sleep_ns(100)
        ran.append(kernel.now_ns)

    first, second = Work(run, "first"), Work(run, "second")
    assert not first.cancel_sync()
    queue.queue(first)
    queue.queue(second)
    kernel.sleep_ns(10)
    assert second.cancel_sync()
    assert not first.cancel_sync()
    assert (ran, kernel.now_ns) == ([100], 100)
    queue.flush()
    assert ran == [100]


def test_flush_of_one_work(kernel):
    queue = kernel.workqueue("wq")
    ran = []
    works = [Work(lambda n=n: (kernel.sleep_ns(100), ran.append(n)), f"work {n}") for n in range(3)]
    works[0].flush()
    for work in works:
        queue.queue(work)
    works[1].flush()
    assert ran == [0, 1]
    assert kernel.now_ns == 200
    queue.flush()
    assert ran == [0, 1, 2]


def test_a_work_that_waits_for_itself(kernel):
    queue = kernel.workqueue("wq")
    other = Work(lambda: None, "other")
    work = Work(lambda: work._wait_idle(kernel), "work")
    queue.queue(other)
    queue.queue(work)
    with pytest.raises(ModelError) as caught:
        kernel.settle()
    assert str(caught.value) == "work 'work' waits for its own end"


def test_delayed_work(kernel):
    queue = kernel.workqueue("wq")
    ran = []
    work = Work(lambda: ran.append(kernel.now_ns), "work")
    assert queue.queue_delayed(work, 500)
    assert not queue.queue_delayed(work, 100)
    kernel.settle()
    assert (ran, work.pending) == ([], True)
    kernel.run_until(500)
    assert (ran, work.pending) == ([500], False)
    queue.queue_delayed(work, 500)
    assert work.cancel_sync()
    kernel.run_until(2000)
    assert ran == [500]


def test_a_failing_work_is_told_to_main_and_the_rest_runs(kernel):
    queue = kernel.workqueue("wq")
    ran = []

    def fail():
        raise KernelError(5)

    queue.queue(Work(fail, "fail"))
    queue.queue(Work(lambda: ran.append("next"), "next"))
    with pytest.raises(KernelError, match="-EIO"):
        queue.flush()
    queue.flush()
    assert ran == ["next"]


def test_timer_moves_cancels_and_arms_itself(kernel):
    fired = []

    def fire():
        fired.append((kernel.now_ns, kernel.current.name))
        if len(fired) < 3:
            timer.arm(kernel.now_ns + 100)

    timer = kernel.timer("t", fire)
    timer.arm(500)
    timer.arm(200)
    assert timer.pending
    kernel.run_until(350)
    assert fired == [(200, "timer/t"), (300, "timer/t")]
    assert timer.cancel()
    assert not timer.cancel()
    kernel.run_until(1000)
    assert len(fired) == 2
    timer.arm(10)
    kernel.settle()
    assert fired[2:] == [(1000, "timer/t")]


def test_timer_cancel_sync_waits_for_its_function():
    from gpusvm.kernel import Kernel, SeededChoices

    for seed in range(20):
        kernel = Kernel(mode="explored", choices=SeededChoices(seed))
        ended = []

        def fire(kernel=kernel, ended=ended):
            kernel.step()
            kernel.step()
            ended.append(True)

        timer = kernel.timer("t", fire)
        timer.arm(0)
        kernel.step()
        kernel.step()
        pending = timer.cancel_sync()
        assert pending is not bool(ended)


def test_srcu_waits_for_readers_that_were_there_before(kernel):
    srcu = kernel.srcu("unplug")
    order = []

    def reader(start_ns, length_ns):
        kernel.sleep_ns(start_ns)
        index = srcu.read_lock()
        kernel.sleep_ns(length_ns)
        srcu.read_unlock(index)
        order.append((kernel.now_ns, "reader"))

    def synchronize(start_ns):
        kernel.sleep_ns(start_ns)
        srcu.synchronize()
        order.append((kernel.now_ns, "synchronized"))

    kernel.spawn(reader, 0, 100, name="before")
    kernel.spawn(synchronize, 10, name="first")
    kernel.spawn(reader, 20, 500, name="after")
    kernel.spawn(synchronize, 30, name="second")
    kernel.settle()
    assert order == [(100, "reader"), (100, "synchronized"), (520, "reader"), (520, "synchronized")]


def test_srcu_sections_nest_and_belong_to_their_task(kernel):
    srcu = kernel.srcu("unplug")
    outer, inner = srcu.read_lock(), srcu.read_lock()
    srcu.read_unlock(inner)
    srcu.read_unlock(outer)
    with pytest.raises(ModelError) as caught:
        srcu.read_unlock(outer)
    assert str(caught.value) == ("srcu 'unplug': task 'main' ends a read section with index 0 that it did not begin")
