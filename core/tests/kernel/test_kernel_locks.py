import pytest
from gpusvm.errors import LockdepError


def test_mutex_keeps_others_out_in_order(kernel):
    mutex = kernel.mutex("m")
    order = []

    def work(name):
        with mutex:
            order.append(f"{name} in")
            kernel.charge("tlb_invalidate")
            order.append(f"{name} out")

    for name in "abc":
        kernel.spawn(work, name, name=name)
    kernel.settle()
    assert order == ["a in", "a out", "b in", "b out", "c in", "c out"]
    assert kernel.now_ns == 3000


def test_mutex_is_handed_to_a_waiter_that_was_overtaken_once(kernel):
    mutex = kernel.mutex("m")
    order = []

    def greedy():
        for _ in range(3):
            with mutex:
                order.append("greedy")
                kernel.charge("bind_base")

    def patient():
        with mutex:
            order.append("patient")

    kernel.spawn(greedy, name="greedy")
    kernel.spawn(patient, name="patient")
    kernel.settle()
    assert order == ["greedy", "greedy", "patient", "greedy"]


def test_mutex_trylock_never_waits(kernel):
    mutex = kernel.mutex("m")

    def holder():
        assert mutex.trylock()
        kernel.sleep_ns(100)
        mutex.unlock()

    kernel.spawn(holder, name="holder")
    kernel.sleep_ns(50)
    assert mutex.locked
    assert not mutex.trylock()
    kernel.settle()
    assert mutex.trylock()
    mutex.unlock()


def test_readers_share_and_a_waiting_writer_keeps_new_readers_out(kernel):
    sem = kernel.rwsem("s")
    order = []

    def reader(name, start_ns):
        kernel.sleep_ns(start_ns)
        with sem.read():
            order.append((kernel.now_ns, name))
            kernel.sleep_ns(100)

    def writer(start_ns):
        kernel.sleep_ns(start_ns)
        with sem.write():
            order.append((kernel.now_ns, "writer"))
            assert sem.is_write_locked
            kernel.sleep_ns(100)

    kernel.spawn(reader, "r1", 0, name="r1")
    kernel.spawn(reader, "r2", 10, name="r2")
    kernel.spawn(writer, 20, name="w1")
    kernel.spawn(reader, "r3", 30, name="r3")
    kernel.spawn(writer, 40, name="w2")
    kernel.spawn(reader, "r4", 50, name="r4")
    kernel.run_until(60)
    assert sem.is_contended
    assert not sem.down_read_trylock()
    kernel.settle()
    # r4 goes in with r3, before the second writer: rwsem_mark_wake() lets all waiting readers in once the first is next
    assert order == [(0, "r1"), (10, "r2"), (110, "writer"), (210, "r3"), (210, "r4"), (310, "writer")]
    assert not sem.is_locked


def test_downgrade_lets_readers_in_and_keeps_writers_out(kernel):
    sem = kernel.rwsem("s")
    order = []

    def reader():
        with sem.read():
            order.append((kernel.now_ns, "reader"))

    def writer():
        with sem.write():
            order.append((kernel.now_ns, "writer"))

    with sem.write():
        kernel.spawn(reader, name="reader")
        kernel.spawn(writer, name="writer")
        kernel.sleep_ns(10)
        sem.downgrade_write()
        kernel.sleep_ns(10)
        assert sem.is_locked
        assert not sem.is_write_locked
    kernel.settle()
    assert order == [(10, "reader"), (20, "writer")]


def test_rwsem_trylocks(kernel):
    sem = kernel.rwsem("s")
    assert sem.down_write_trylock()
    assert not sem.down_read_trylock()
    sem.up_write()
    assert sem.down_read_trylock()
    assert not sem.down_write_trylock()
    sem.up_read()
    assert not sem.is_locked


def test_a_spinlock_costs_the_time_that_it_is_held(kernel):
    lock = kernel.spinlock("s")
    seen = []

    def work(name):
        with lock:
            kernel.charge("tlb_invalidate")
            seen.append((kernel.now_ns, name))

    kernel.spawn(work, "a", name="a")
    kernel.spawn(work, "b", name="b")
    kernel.settle()
    assert seen == [(1000, "a"), (2000, "b")]


@pytest.mark.parametrize("checked", ["kernel", "unchecked"])
def test_unlock_by_another_owner(request, checked, place):
    kernel = request.getfixturevalue(checked)
    mutex, lock, sem = kernel.mutex("m"), kernel.spinlock("l"), kernel.rwsem("s")
    done = kernel.completion("done")

    def holder():
        with mutex, sem.write():
            done.wait()

    kernel.spawn(holder, name="holder")
    kernel.settle()
    with pytest.raises(LockdepError) as caught:
        mutex.unlock()  # wrong mutex
    where = place("wrong mutex")
    assert str(caught.value) == f"wrong owner: task 'main' unlocks mutex 'm' at {where}, which task 'holder' owns"
    with pytest.raises(LockdepError) as caught:
        lock.unlock()  # wrong spinlock
    where = place("wrong spinlock")
    assert str(caught.value) == f"wrong owner: task 'main' unlocks spinlock 'l' at {where}, which nobody owns"
    with pytest.raises(LockdepError) as caught:
        sem.up_write()  # wrong write
    where = place("wrong write")
    assert str(caught.value) == f"wrong owner: task 'main' write-unlocks rwsem 's' at {where}, which task 'holder' owns"
    with pytest.raises(LockdepError) as caught:
        sem.up_read()  # wrong read
    where = place("wrong read")
    assert str(caught.value) == f"wrong owner: task 'main' read-unlocks rwsem 's' at {where}, which task 'holder' owns"
    with pytest.raises(LockdepError) as caught:
        sem.downgrade_write()  # wrong downgrade
    where = place("wrong downgrade")
    assert str(caught.value) == f"wrong owner: task 'main' downgrades rwsem 's' at {where}, which task 'holder' owns"


def test_completion_lets_one_through_each_or_all(kernel):
    done = kernel.completion("done")
    through = []

    def waiter(name):
        done.wait()
        through.append(name)

    for name in "abc":
        kernel.spawn(waiter, name, name=name)
    kernel.settle()
    done.complete()
    kernel.settle()
    assert through == ["a"]
    done.complete_all()
    kernel.settle()
    assert through == ["a", "b", "c"]
    done.wait()
    done.reinit()
    assert not done.wait_timeout_ns(10)


def test_completion_timeout(kernel):
    done = kernel.completion("done")
    assert not done.wait_timeout_ns(500)
    assert kernel.now_ns == 500
    kernel.timer("t", done.complete).arm(600)
    assert done.wait_timeout_ns(500)
    assert kernel.now_ns == 600
    kernel.settle()
    assert kernel.now_ns == 600


def test_waitqueue_asks_again_after_each_wake_up(kernel):
    queue = kernel.waitqueue("q")
    state = {"n": 0}
    seen = []

    def waiter(n):
        queue.wait_event(lambda: state["n"] >= n)
        seen.append(n)

    for n in (3, 1, 2):
        kernel.spawn(waiter, n, name=f"waiter {n}")
    for _ in range(3):
        kernel.settle()
        state["n"] += 1
        queue.wake_up_all()
    kernel.settle()
    assert seen == [1, 2, 3]
    assert not queue.active


def test_waitqueue_timeout(kernel):
    queue = kernel.waitqueue("q")
    assert not queue.wait_event_timeout_ns(lambda: False, 100)
    assert queue.wait_event_timeout_ns(lambda: kernel.now_ns >= 200, 100)
    assert kernel.now_ns == 200
