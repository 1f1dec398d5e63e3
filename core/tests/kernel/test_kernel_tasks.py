import gc
import weakref

import pytest
from gpusvm.errors import DeadlockError, InputError, KernelError, LockdepError, ModelError
from gpusvm.kernel import Kernel


def test_main_calls_the_kernel_directly(kernel):
    kernel.charge("bind_base", 3)
    assert kernel.now_ns == 300
    assert kernel.current.name == "main"
    assert kernel.charged == {"bind_base": 300}


def test_a_kernel_without_costs_charges_nothing():
    kernel = Kernel()
    kernel.charge("bind_base", 3)
    kernel.charge_ns("copy", 7)
    assert (kernel.now_ns, kernel.charged) == (7, {"bind_base": 0, "copy": 7})


def test_an_unknown_event_is_bad_input(kernel):
    with pytest.raises(InputError) as caught:
        kernel.charge("bind_bas")
    assert str(caught.value) == "costs: no cost for event 'bind_bas'; did you mean 'bind_base'?"


def test_an_unknown_mode_is_bad_input():
    with pytest.raises(InputError) as caught:
        Kernel(mode="time")
    assert str(caught.value) == "kernel mode 'time': did you mean 'timed'?"


def test_join_returns_the_result_and_the_time(kernel):
    def work(a, b):
        kernel.charge("tlb_invalidate")
        return a + b

    task = kernel.spawn(work, 2, 3, name="work")
    assert not task.done
    assert task.join() == 5
    assert task.done
    assert kernel.now_ns == 1000


def test_the_task_that_is_due_first_runs(kernel):
    order = []

    def work(name, event):
        for _ in range(3):
            kernel.charge(event)
            order.append((kernel.now_ns, name))

    slow = kernel.spawn(work, "slow", "tlb_invalidate", name="slow")
    fast = kernel.spawn(work, "fast", "bind_base", name="fast")
    slow.join()
    fast.join()
    assert order == [(100, "fast"), (200, "fast"), (300, "fast"), (1000, "slow"), (2000, "slow"), (3000, "slow")]


def test_an_atomic_task_is_not_preempted_before_it_ends_that(kernel):
    order = []

    def work(name):
        with kernel.atomic():
            kernel.charge("tlb_invalidate")
            order.append(f"{name} atomic")
        order.append(name)

    a = kernel.spawn(work, "a", name="a")
    b = kernel.spawn(work, "b", name="b")
    a.join()
    b.join()
    assert order == ["a atomic", "b atomic", "b", "a"]


def test_a_woken_task_resumes_when_it_was_woken_or_at_its_own_time(kernel):
    done = kernel.completion("done")
    seen = []

    def early():
        done.wait()
        seen.append(kernel.now_ns)

    def late():
        kernel.sleep_ns(9000)
        done.wait()
        seen.append(kernel.now_ns)

    kernel.spawn(early, name="early")
    kernel.spawn(late, name="late")
    kernel.sleep_ns(5000)
    done.complete_all()
    kernel.settle()
    assert seen == [5000, 9000]


def test_settle_waits_for_sleepers_and_leaves_future_timers_and_daemons(kernel):
    seen = []

    def sleeper():
        kernel.sleep_ns(500)
        seen.append("sleeper")

    def daemon():
        while True:
            kernel.sleep_ns(1000)
            seen.append("daemon")

    kernel.spawn(sleeper, name="sleeper")
    kernel.spawn(daemon, name="daemon", daemon=True)
    kernel.timer("soon", lambda: seen.append("soon")).arm(400)
    late = kernel.timer("late", lambda: seen.append("late"))
    late.arm(600)
    kernel.settle()
    assert (seen, kernel.now_ns, late.pending) == (["soon", "sleeper"], 500, True)
    kernel.run_until(1000)
    assert (seen, kernel.now_ns, late.pending) == (["soon", "sleeper", "late", "daemon"], 1000, False)


def test_timers_fire_while_main_waits(kernel):
    done = kernel.completion("done")
    kernel.timer("done", done.complete).arm(700)
    done.wait()
    assert kernel.now_ns == 700


def test_cond_resched_lets_others_go_that_are_due_now(kernel):
    order = []

    def work(name):
        for _ in range(2):
            order.append(name)
            kernel.cond_resched()

    kernel.spawn(work, "a", name="a")
    kernel.spawn(work, "b", name="b")
    kernel.settle()
    assert order == ["a", "b", "a", "b"]


def test_a_spinning_task_lets_time_pass(kernel, place):
    seen = []
    kernel.timer("t", lambda: seen.append(kernel.now_ns)).arm(500)
    while not seen:
        kernel.cpu_relax()
    assert (seen, kernel.now_ns) == ([500], 500)
    kernel.cpu_relax()  # what it waits for may have come about since it looked
    with pytest.raises(DeadlockError) as caught:
        kernel.cpu_relax()  # alone
    assert str(caught.value) == f"deadlock: task 'main' spins at {place('alone')}"


def test_a_task_that_looked_before_the_others_ended_spins_once(kernel):
    others = [kernel.spawn(kernel.cond_resched, name=name) for name in "ab"]
    tries = 0

    def evacuate():
        left = sum(not task.done for task in others)
        for task in others:
            task.join()
        return left

    while evacuate():
        tries += 1
        kernel.cpu_relax()
    assert tries == 1
    kernel.spawn(kernel.cond_resched, name="c").join()
    kernel.cpu_relax()  # somebody has run meanwhile, so it counts anew
    with pytest.raises(DeadlockError, match="deadlock: task 'main' spins at "):
        kernel.cpu_relax()


def test_an_exception_comes_out_of_join_each_time(kernel):
    def work():
        raise KernelError(16)

    task = kernel.spawn(work, name="work")
    for _ in range(2):
        with pytest.raises(KernelError, match="-EBUSY"):
            task.join()
    kernel.settle()


def test_an_exception_that_nobody_joins_is_raised_in_main(kernel):
    def work():
        raise KernelError(16)

    kernel.spawn(work, name="work")
    with pytest.raises(KernelError, match="-EBUSY"):
        kernel.settle()
    kernel.settle()


def test_an_exception_explains_better_than_the_deadlock_it_causes(kernel):
    done = kernel.completion("done")

    def work():
        if kernel.now_ns == 0:
            raise KernelError(12)
        done.complete()

    kernel.spawn(work, name="work")
    with pytest.raises(KernelError, match="-ENOMEM"):
        done.wait()


def test_an_exception_does_not_take_a_lock_from_main(kernel):
    mutex = kernel.mutex("m")

    def work():
        with mutex:
            kernel.charge("tlb_invalidate")
        raise KernelError(12)

    kernel.spawn(work, name="work")
    kernel.sleep_ns(1)
    mutex.lock()
    assert mutex.owner is kernel.current
    mutex.unlock()
    with pytest.raises(KernelError, match="-ENOMEM"):
        kernel.settle()


def test_a_keyboard_interrupt_goes_to_main_at_once(kernel):
    def work():
        raise KeyboardInterrupt

    kernel.spawn(work, name="work")
    other = kernel.spawn(kernel.sleep_ns, 10, name="other")
    with pytest.raises(KeyboardInterrupt):
        other.join()
    assert not other.done


def test_a_task_must_not_end_with_a_lock(kernel):
    mutex = kernel.mutex("m")
    kernel.spawn(mutex.lock, name="forgetful")
    with pytest.raises(LockdepError) as caught:
        kernel.settle()
    assert str(caught.value) == "task 'forgetful' ends and holds mutex 'm'"


def test_nothing_can_run(kernel, place):
    mutex = kernel.mutex("m")
    done = kernel.completion("done")

    def holder():
        with mutex:  # holder takes
            done.wait()  # holder waits

    def waiter():
        with mutex:  # waiter waits
            pass

    kernel.spawn(holder, name="holder")
    task = kernel.spawn(waiter, name="waiter")
    with pytest.raises(DeadlockError) as caught:
        task.join()  # main waits
    lines = str(caught.value).splitlines()
    main = lines.index("  task 'main' waits for end of task 'waiter'")
    assert lines[0] == "deadlock: nothing can run"
    assert lines[main + 1] == f"    {place('main waits')} in test_nothing_can_run"
    rest = lines[lines.index("  task 'holder' waits for completion 'done'") :]
    assert rest == [
        "  task 'holder' waits for completion 'done'",
        f"    holds mutex 'm' (taken at {place('holder takes')})",
        f"    {place('holder waits')} in holder",
        "  task 'waiter' waits for mutex 'm', held by task 'holder'",
        f"    {place('waiter waits')} in waiter",
    ]


def test_a_circle_is_found_though_others_can_run(unchecked, place):
    kernel = unchecked
    a, b = kernel.mutex("a"), kernel.rwsem("b")

    def forward():
        with a:
            kernel.sleep_ns(10)
            with b.write():  # forward
                pass

    def backward():
        with b.read():
            kernel.sleep_ns(20)
            with a:  # backward
                pass

    kernel.spawn(forward, name="forward")
    kernel.spawn(backward, name="backward")
    kernel.spawn(kernel.sleep_ns, 1000, name="other")
    with pytest.raises(DeadlockError) as caught:
        kernel.settle()
    assert str(caught.value) == "\n".join(
        [
            "deadlock: tasks wait for each other in a circle",
            "  task 'backward' waits for mutex 'a', held by task 'forward'",
            f"    {place('backward')} in backward",
            "  task 'forward' waits for rwsem 'b' to write, held by task 'backward' to read",
            f"    {place('forward')} in forward",
        ]
    )
    assert not a.locked
    assert not b.is_locked


def test_a_task_that_joins_itself_is_an_error(kernel):
    def work():
        kernel.current.join()

    kernel.spawn(work, name="self")
    with pytest.raises(ModelError) as caught:
        kernel.settle()
    assert str(caught.value) == "task 'self' joins itself"


def test_close_ends_waiting_tasks_and_runs_what_they_left_to_do():
    ended = []
    kernel = Kernel()
    mutex, never = kernel.mutex("m"), kernel.completion("never")

    def waits():
        try:
            with mutex:
                never.wait()
        finally:
            ended.append("waits")

    def stubborn():
        try:
            never.wait()
        finally:
            ended.append("stubborn")
            never.wait()
            ended.append("not reached")

    kernel.spawn(waits, name="waits")
    kernel.spawn(stubborn, name="stubborn")
    kernel.settle()
    kernel.close()
    kernel.close()
    assert ended == ["waits", "stubborn"]
    assert not mutex.locked


def test_ten_thousand_tasks_come_and_go(kernel):
    for n in range(10_000):
        kernel.spawn(kernel.charge, "bind_base", name=f"task {n}")
    kernel.settle()
    assert [task.name for task in kernel.tasks] == ["main"]
    assert kernel.charged == {"bind_base": 1_000_000}


def test_tasks_that_start_each_other_do_not_nest(kernel):
    depth = []

    def work(n):
        if n:
            kernel.spawn(work, n - 1, name=f"task {n - 1}")
            kernel.charge("bind_base")
            kernel.sleep_ns(10**9)
        depth.append(n)

    kernel.spawn(work, 2000, name="task 2000")
    kernel.settle()
    assert len(depth) == 2001


def test_a_kernel_without_waiting_tasks_is_freed_without_close():
    kernel = Kernel()
    for n in range(3):
        kernel.spawn(kernel.sleep_ns, n, name=f"task {n}")
    kernel.settle()
    freed = weakref.ref(kernel)
    del kernel
    gc.collect()
    assert freed() is None
