import pytest
from gpusvm.errors import DeadlockError, InputError, LivelockError
from gpusvm.kernel import EVERYTHING, FirstChoice, Kernel, RecordedChoices, SeededChoices, Work


class Flag:
    up = False


def schedules(run):
    """Run once for each sequence of choices there is and yield what came out."""
    prefix = []
    while True:
        choices = RecordedChoices(prefix)
        yield run(choices)
        taken, widths = choices.taken, choices.widths
        while taken and taken[-1] + 1 == widths[len(taken) - 1]:
            taken.pop()
        if not taken:
            return
        prefix = [*taken[:-1], taken[-1] + 1]


def orders(*, ask=False, steps=2, **cpus):
    """Let two tasks take some steps each; return every order that there is."""

    def run(choices):
        with Kernel(mode="explored", choices=choices, **cpus) as kernel:
            order = []

            def task(name):
                for i in range(steps):
                    kernel.cond_resched() if ask and i else kernel.step()
                    order.append(name)

            for name in "ab":
                kernel.spawn(task, name, name=name)
            kernel.settle()
            return "".join(order)

    return set(schedules(run))


def test_tasks_with_a_cpu_each_interleave_anywhere():
    every = {"aabb", "abab", "abba", "bbaa", "baba", "baab"}
    assert orders() == every
    assert orders(cpus=2) == every
    assert orders(cpus=2, preemptive=False) == every


def test_one_preemptive_cpu_is_given_away_at_any_operation():
    assert orders(cpus=1) == orders()


def test_one_cpu_without_preemption_is_kept_until_its_task_ends():
    assert orders(cpus=1, preemptive=False) == {"aabb", "bbaa"}


def test_cond_resched_gives_the_cpu_away():
    assert orders(ask=True, cpus=1, preemptive=False) == {"aabb", "abab", "abba", "bbaa", "baba", "baab"}


def test_who_sleeps_leaves_the_cpu():
    def run(choices):
        with Kernel(mode="explored", choices=choices, cpus=1, preemptive=False) as kernel:
            order = []

            def sleeper():
                order.append("s")
                kernel.sleep_ns(1000)
                order.append("S")

            def other():
                order.append("o")

            kernel.spawn(sleeper, name="sleeper")
            kernel.spawn(other, name="other")
            kernel.settle()
            return "".join(order)

    assert set(schedules(run)) == {"soS", "osS", "sSo"}


def test_a_user_task_gives_the_cpu_away_where_it_returns_to_user_space():
    def run(choices):
        with Kernel(mode="explored", choices=choices, cpus=1, preemptive=False) as kernel:
            order = []

            def task(name):
                order.append(name)
                kernel.exit_to_user_mode()
                order.append(name)

            for name in "ab":
                kernel.spawn(task, name, name=name)
            kernel.settle()
            return "".join(order)

    assert set(schedules(run)) == {"aabb", "abab", "abba", "bbaa", "baba", "baab"}


def test_an_atomic_task_keeps_its_cpu_though_the_kernel_is_preemptive():
    def run(choices):
        with Kernel(mode="explored", choices=choices, cpus=1) as kernel:
            order = []

            def task(name):
                with kernel.spinlock(name):
                    kernel.step()
                    order.append(name)
                    kernel.step()
                    order.append(name)

            for name in "ab":
                kernel.spawn(task, name, name=name)
            kernel.settle()
            return "".join(order)

    assert set(schedules(run)) == {"aabb", "bbaa"}


def test_whoever_waits_for_a_spinlock_keeps_the_cpu():
    # b and c share CPU 1; c never runs while b spins for the lock that a has.
    def run(choices):
        with Kernel(mode="explored", choices=choices, cpus=2) as kernel:
            lock, log = kernel.spinlock("l"), []

            def a():
                with lock:
                    kernel.step()
                    log.append((tasks["b"].waiting_on is lock, tasks["c"].done))
                    kernel.step()
                    log.append((tasks["b"].waiting_on is lock, tasks["c"].done))

            def b():
                with lock:
                    pass

            tasks = {
                "a": kernel.spawn(a, name="a", cpu=0),
                "b": kernel.spawn(b, name="b", cpu=1),
                "c": kernel.spawn(kernel.step, name="c", cpu=1),
            }
            kernel.settle()
            return tuple(log)

    seen = set(schedules(run))
    assert ((True, False), (True, False)) in seen
    assert all(not (before[0] and not before[1] and after[1]) for before, after in seen)


def test_tasks_begin_in_turn_and_go_to_a_free_cpu():
    with Kernel(mode="explored", choices=FirstChoice(), cpus=2, preemptive=False) as kernel:
        where = []

        def task(name):
            where.append((name, kernel.smp_processor_id))
            done.wait()

        done = kernel.completion("done")
        for name in "abc":
            kernel.spawn(task, name, name=name)
        assert [task.cpu for task in kernel.tasks] == [0, 0, 1, 0]  # main first
        kernel.settle()
        done.complete_all()
        kernel.settle()
        assert where == [("a", 0), ("b", 1), ("c", 0)]


@pytest.mark.parametrize("bound", [False, True])
def test_a_free_cpu_pulls_a_task_that_is_not_bound_to_its_own(bound):
    with Kernel(mode="explored", cpus=2, preemptive=False) as kernel:
        flag = Flag()

        def spin():
            while not flag.up:
                kernel.cpu_relax()

        def raise_flag():
            flag.up = True

        kernel.spawn(spin, name="spin", cpu=0)
        task = kernel.spawn(raise_flag, name="raise", cpu=0 if bound else None)
        assert task.cpu == 0
        if bound:
            with pytest.raises(LivelockError):
                kernel.settle()
        else:
            kernel.settle()
            assert task.cpu == 1


def test_a_loop_that_keeps_its_cpu_from_whom_it_waits_for_is_a_livelock(place):
    def run(preemptive):
        with Kernel(mode="explored", cpus=1, preemptive=preemptive) as kernel:
            flag = Flag()

            def spin():
                while not flag.up:
                    kernel.cpu_relax()  # spins

            def raise_flag():
                flag.up = True

            kernel.spawn(spin, name="spin")
            kernel.spawn(raise_flag, name="raise")
            kernel.settle()

    run(True)
    with pytest.raises(LivelockError) as caught:
        run(False)
    assert str(caught.value).splitlines()[:2] == [
        f"livelock: task 'spin' on CPU 0 spins at {place('spins')}, and nobody else can go on; for a CPU wait 'raise'",
        f"    {place('spins')} in spin",
    ]


def test_a_loop_of_operations_is_noticed_by_the_watchdog(place):
    with Kernel(mode="explored", cpus=2, preemptive=False) as kernel:
        flag = Flag()

        def spin():
            kernel.spawn(raise_flag, name="flag", cpu=0)
            while not flag.up:
                kernel.step()  # tries again

        def raise_flag():
            flag.up = True

        kernel.sched.watchdog_steps = 8
        kernel.spawn(spin, name="spin", cpu=0)
        with pytest.raises(LivelockError) as caught:
            kernel.settle()
    assert str(caught.value).splitlines()[:2] == [
        "livelock: task 'spin' on CPU 0 has kept it for 9 operations, and nobody else can go on; for a CPU wait 'flag'",
        f"    {place('tries again')} in spin",
    ]


def test_who_gives_way_lets_others_first_and_goes_on_alone():
    def run(choices):
        with Kernel(mode="explored", choices=choices, cpus=2, preemptive=False) as kernel:
            order = []

            def patient():
                order.append("p")
                kernel.give_way()
                order.append("P")
                kernel.give_way()
                order.append("P")

            kernel.spawn(patient, name="patient")
            kernel.spawn(order.append, "o", name="other")
            kernel.settle()
            return "".join(order)

    assert run(FirstChoice()) == "poPP"
    assert set(schedules(run)) == {"poPP", "pPoP", "pPPo", "opPP"}


def test_a_due_timer_goes_at_any_time():
    def run(choices):
        with Kernel(mode="explored", choices=choices, cpus=1, preemptive=False) as kernel:
            order = []

            def task():
                for _ in range(2):
                    kernel.step()
                    order.append("t")

            kernel.timer("timer", lambda: order.append("!")).arm(0)
            kernel.spawn(task, name="task")
            kernel.run_until(1_000_000)
            return "".join(order)

    assert set(schedules(run)) == {"!tt", "t!t", "tt!"}


def test_per_cpu_work_runs_where_it_is_queued():
    for seed in range(10):
        with Kernel(mode="explored", choices=SeededChoices(seed), cpus=3, preemptive=bool(seed % 2)) as kernel:
            queue = kernel.workqueue("wq")
            ran = []
            works = [Work(lambda ran=ran, kernel=kernel: ran.append(kernel.smp_processor_id), "work") for _ in range(3)]
            for cpu in (2, 0, 1):
                assert queue.queue_on(cpu, works[cpu])
            works[2].flush()
            assert 2 in ran
            queue.flush()
            assert sorted(ran) == [0, 1, 2]
            assert not queue.busy
            works[0].cancel_sync()
            assert works[0].pending is False


def test_per_cpu_work_is_queued_once():
    with Kernel(mode="explored", cpus=1, preemptive=False) as kernel:
        queue, ran = kernel.workqueue("wq"), []
        work = Work(lambda: ran.append(kernel.smp_processor_id), "work")
        assert queue.queue_on(0, work)
        assert not queue.queue_on(0, work)
        assert queue.busy
        queue.drain()
        assert ran == [0]


def test_a_flush_waits_for_a_cpu_that_is_kept():
    with Kernel(mode="explored", choices=FirstChoice(), cpus=2, preemptive=False) as kernel:
        flag, queue, log = Flag(), kernel.workqueue("wq"), []

        def spin():
            while not flag.up:
                kernel.cpu_relax()
            log.append("lets go")

        def flush():
            work = Work(lambda: log.append("work"), "work")
            queue.queue_on(1, work)
            kernel.step()
            flag.up = True
            work.flush()
            log.append("flushed")

        kernel.spawn(flush, name="flush", cpu=0)
        kernel.spawn(spin, name="spin", cpu=1)
        kernel.settle()
        assert log == ["lets go", "work", "flushed"]


def test_a_deadlock_is_still_one():
    with Kernel(mode="explored", cpus=1, preemptive=False) as kernel, pytest.raises(DeadlockError) as caught:
        kernel.completion("never").wait()
    assert str(caught.value).splitlines()[:2] == [
        "deadlock: nothing can run",
        "  task 'main' waits for completion 'never'",
    ]


def test_what_there_is_not():
    with pytest.raises(InputError) as caught:
        Kernel(cpus=2)
    assert str(caught.value) == "a kernel of 2 CPUs in timed mode: CPUs count in explored mode, from 1"
    with pytest.raises(InputError) as caught:
        Kernel(mode="explored", cpus=0)
    assert str(caught.value) == "a kernel of 0 CPUs in explored mode: CPUs count in explored mode, from 1"
    with pytest.raises(InputError) as caught:
        Kernel(mode="explored", preemptive=False)
    assert str(caught.value) == "a kernel without preemption needs a number of CPUs that its tasks keep"
    with Kernel() as kernel:
        with pytest.raises(InputError) as caught:
            kernel.spawn(print, name="t", cpu=0)
        assert str(caught.value) == "task 't' is bound to CPU 0, and this kernel does not count its CPUs"
        with pytest.raises(InputError) as caught:
            kernel.workqueue("wq").queue_on(0, Work(print, "w"))
        assert str(caught.value) == "work 'w' is queued on CPU 0, and this kernel counts 0"
    with Kernel(mode="explored", cpus=2) as kernel:
        with pytest.raises(InputError) as caught:
            kernel.spawn(print, name="t", cpu=2)
        assert str(caught.value) == "task 't' is bound to CPU 2, and there are 2, counted from 0"


def test_same_choices_same_order():
    def run(choices):
        with Kernel(mode="explored", choices=choices, cpus=2, preemptive=False) as kernel:
            emit, mutex = kernel.tracer.emit, kernel.mutex("m")
            kernel.tracer.on = True

            def task(name):
                for i in range(3):
                    with mutex:
                        emit("step", name, i, kernel.smp_processor_id)
                    kernel.cond_resched()

            for name in "abcd":
                kernel.spawn(task, name, name=name)
            kernel.settle()
            return list(kernel.tracer.events)

    choices = SeededChoices(7)
    events = run(choices)
    assert run(RecordedChoices(choices.taken)) == events
    assert len({event[3:] for event in events}) > 3


def test_no_two_steps_can_be_swapped_where_cpus_count():
    class Recorder:
        def __init__(self):
            self.steps = []
            self.touched = []

        def spawned(self, task, by):
            pass

        def step(self, task, label, what, write):
            self.steps.append((label, self.touched))
            self.touched = []

        def touch(self, what, write):
            self.touched.append((what, write))

        ended = spawned

    with Kernel(mode="explored", cpus=1) as kernel:
        kernel.footprint = Recorder()
        kernel.step()
        kernel.cond_resched()
        assert kernel.footprint.steps == [
            ("step", [(EVERYTHING, True)]),
            ("cond_resched", [(EVERYTHING, True)]),
        ]
        kernel.footprint = None
