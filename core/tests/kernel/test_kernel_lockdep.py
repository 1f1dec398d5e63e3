"""Wrong locking, each with the whole message. Sections stand one a line, for their places."""

# ruff: noqa: SIM117

import pytest
from gpusvm.errors import LockdepError
from gpusvm.kernel import Kernel


def test_order_cycle_names_both_chains(kernel, place):
    a, b = kernel.mutex("a"), kernel.mutex("b")

    def forward():
        with a:  # forward a
            with b:  # forward b
                pass

    forward()
    forward()
    with b:  # backward b
        with pytest.raises(LockdepError) as caught:
            a.lock()  # backward a
    assert str(caught.value) == (
        f"lock order: mutex 'b' (taken at {place('backward b')}), then mutex 'a' at {place('backward a')} "
        f"by task 'main'; but before: "
        f"mutex 'a' (taken at {place('forward a')}), then mutex 'b' at {place('forward b')} by task 'main'"
    )
    assert not a.locked


def test_order_cycle_over_three_classes_and_instances(kernel, place):
    a, b, c = kernel.mutex("a"), kernel.rwsem("b"), kernel.spinlock("c")

    def first():
        with a, b.read():  # a b
            pass

    def second():
        with b.write(), c:  # b c
            pass

    kernel.spawn(first, name="first").join()
    kernel.spawn(second, name="second").join()
    other = kernel.mutex("a")
    assert other.trylock()
    with b.read():  # tried lock counts as held
        pass
    other.unlock()
    e = kernel.spinlock("e")
    with c, e:  # c e
        pass
    f = kernel.lock_map("page lock", "f")
    with e:  # e
        f.acquire()  # f
        f.release()
    f.acquire()  # f again
    with pytest.raises(LockdepError) as caught:
        a.lock()  # closing
    assert str(caught.value) == (
        f"lock order: page lock 'f' (taken at {place('f again')}), then mutex 'a' at {place('closing')} "
        f"by task 'main'; but before: "
        f"mutex 'a' (taken at {place('a b')}), then rwsem 'b' at {place('a b')} by task 'first'; "
        f"rwsem 'b' (taken at {place('b c')}), then spinlock 'c' at {place('b c')} by task 'second'; "
        f"spinlock 'c' (taken at {place('c e')}), then spinlock 'e' at {place('c e')} by task 'main'; "
        f"spinlock 'e' (taken at {place('e')}), then page lock 'f' at {place('f')} by task 'main'"
    )
    f.release()


def test_a_trylock_is_not_checked_but_what_follows_it_is(kernel):
    a, b = kernel.mutex("a"), kernel.mutex("b")
    with a, b:
        pass
    with b:
        assert a.trylock()
        a.unlock()
    c = kernel.mutex("c")
    assert c.trylock()
    with a:
        pass
    c.unlock()
    with a, pytest.raises(LockdepError, match="lock order"):
        c.lock()


def test_recursive_lock(kernel, place):
    mutex, sem = kernel.mutex("m"), kernel.rwsem("s")
    with mutex:  # outer
        with pytest.raises(LockdepError) as caught:
            mutex.lock()  # inner
    assert str(caught.value) == (
        f"recursive lock: task 'main' takes mutex 'm' at {place('inner')} and holds it since {place('outer')}"
    )
    with sem.read():  # outer read
        with pytest.raises(LockdepError) as caught:
            sem.down_read()  # inner read
    assert str(caught.value) == (
        f"recursive lock: task 'main' takes rwsem 's' at {place('inner read')} and holds it since {place('outer read')}"
    )


def test_two_locks_of_one_class_need_a_subclass(kernel, place):
    parent, child = kernel.rwsem("mmap_lock"), kernel.rwsem("mmap_lock")
    with parent.write():  # parent
        with pytest.raises(LockdepError) as caught:
            child.down_write()  # child
        child.down_write(1)
        child.up_write()
    assert str(caught.value) == (
        f"possible recursive locking: task 'main' takes rwsem 'mmap_lock' at {place('child')} and holds another "
        f"of that class since {place('parent')}; if they nest in a known order, say so with a subclass"
    )


def test_locks_may_be_released_in_any_order(kernel):
    a, b, c = kernel.mutex("a"), kernel.mutex("b"), kernel.mutex("c")
    d = kernel.spinlock("d")
    for _ in range(2):
        a.lock()
        b.lock()
        a.unlock()
        c.lock()
        d.lock()
        b.unlock()
        c.unlock()
        d.unlock()
    assert kernel.current.held == []
    assert kernel.current.chain is kernel.lockdep.root


def test_sleeping_under_a_spinlock(kernel, place):
    lock, mutex, done = kernel.spinlock("s"), kernel.mutex("m"), kernel.completion("done")
    with lock:
        pass
    with lock:  # atomic
        with pytest.raises(LockdepError) as caught:
            mutex.lock()  # sleeps
        with pytest.raises(LockdepError) as caught_waiting:
            done.wait()  # waits
        with pytest.raises(LockdepError, match="sleeping while atomic"):
            kernel.sleep_ns(1)
        with pytest.raises(LockdepError, match="sleeping while atomic"):
            kernel.settle()
    since = f"atomic since {place('atomic')} (spinlock 's')"
    assert str(caught.value) == (
        f"sleeping while atomic: task 'main' is taking mutex 'm' at {place('sleeps')}, {since}"
    )
    assert str(caught_waiting.value) == f"sleeping while atomic: task 'main' is sleeping at {place('waits')}, {since}"
    mutex.lock()
    mutex.unlock()


def test_sleeping_in_an_atomic_section(kernel, unchecked, place):
    with kernel.atomic():
        pass
    with kernel.atomic():  # section
        with pytest.raises(LockdepError) as caught:
            kernel.might_sleep()  # might sleep
    assert str(caught.value) == (
        f"sleeping while atomic: task 'main' is sleeping at {place('might sleep')}, "
        f"atomic since {place('section')} (context 'preempt_disable')"
    )
    unchecked.preempt_disable()
    with pytest.raises(LockdepError) as caught:
        unchecked.might_sleep()  # unchecked
    unchecked.preempt_enable()
    assert str(caught.value) == f"sleeping while atomic: task 'main' is sleeping at {place('unchecked')}"
    with pytest.raises(LockdepError) as caught:
        kernel.preempt_enable()  # enable
    assert str(caught.value) == f"task 'main' enables preemption at {place('enable')} and has not disabled it"


def test_what_only_the_kernel_called_has_a_place_too(kernel):
    seen = []
    kernel.timer("t", lambda: seen.extend(node.place for node in kernel.current.chain.path())).arm(10)
    kernel.sleep_ns(100)
    (place,) = seen
    assert place.startswith("kernel/timers.py:")


def test_a_timer_must_not_sleep(kernel, place):
    mutex = kernel.mutex("m")

    def fire():
        mutex.lock()  # in timer

    kernel.timer("t", fire).arm(10)
    with pytest.raises(LockdepError) as caught:
        kernel.run_until(10)
    assert str(caught.value).startswith(
        f"sleeping while atomic: task 'timer/t' is taking mutex 'm' at {place('in timer')}, "
        "atomic since kernel/timers.py:"
    )


def test_rules_inside_a_notifier(kernel, place):
    mmap_lock, user_lock = kernel.rwsem("mmap_lock"), kernel.mutex("user_lock")
    task = kernel.current
    task.in_notifier += 1  # callback
    with user_lock:
        with pytest.raises(LockdepError) as caught:
            mmap_lock.down_read()  # mmap_lock
        with pytest.raises(LockdepError) as caught_alloc:
            kernel.might_alloc()  # alloc
        assert mmap_lock.down_read_trylock()
        mmap_lock.up_read()
        kernel.might_sleep()
    kernel.lockdep.forbid_in_notifier |= {"sleep"}
    with pytest.raises(LockdepError) as caught_sleep:
        user_lock.lock()  # sleep
    task.in_notifier -= 1
    inside = f"inside a notifier callback made at {place('callback')}"
    prefix = "in an mmu notifier: task 'main'"
    assert str(caught.value) == f"{prefix} takes rwsem 'mmap_lock' at {place('mmap_lock')}, {inside}"
    assert str(caught_alloc.value) == f"{prefix} is allocating at {place('alloc')}, {inside}"
    assert str(caught_sleep.value) == f"{prefix} takes mutex 'user_lock' at {place('sleep')}, {inside}"
    with mmap_lock.read():
        kernel.might_alloc()


def test_a_notifier_may_end_while_its_lock_is_held(kernel):
    lock = kernel.mutex("notifier_lock")
    task = kernel.current
    task.in_notifier += 1
    lock.lock()
    task.in_notifier -= 1
    lock.unlock()
    assert (task.held, task.in_notifier, task.chain) == ([], 0, kernel.lockdep.root)


def test_flushing_under_a_lock_that_the_work_takes(kernel):
    from gpusvm.kernel import Work

    queue, mutex = kernel.workqueue("wq"), kernel.mutex("m")

    def work():
        with mutex:
            pass

    queue.queue(Work(work, "work"))
    kernel.settle()
    with mutex, pytest.raises(LockdepError, match=r"lock order: mutex 'm' .*, then workqueue 'wq'"):
        queue.flush()


def test_synchronizing_inside_a_read_section(kernel, place):
    srcu = kernel.srcu("unplug")
    index = srcu.read_lock()  # section begins
    with pytest.raises(LockdepError) as caught:
        srcu.synchronize()  # synchronizes
    assert str(caught.value) == (
        f"recursive lock: task 'main' takes srcu 'unplug' at {place('synchronizes')} "
        f"and holds it since {place('section begins')}"
    )
    srcu.read_unlock(index)
    srcu.synchronize()


def test_an_unchecked_kernel_keeps_no_account_of_locks():
    kernel = Kernel(checked=False)
    a, b = kernel.mutex("a"), kernel.mutex("b")
    with a, b:
        assert kernel.current.held == []
    with b, a:
        pass
