import pytest
from gpusvm.errors import DeadlockError, ModelError
from gpusvm.kernel import FirstChoice, Kernel, RecordedChoices, SeededChoices, Work


class Counter:
    value = 0


def lost_update(choices):
    """Two tasks add one each without a lock; return what came out."""
    with Kernel(mode="explored", choices=choices) as kernel:
        counter = Counter()

        def add():
            kernel.write_once(counter, "value", kernel.read_once(counter, "value") + 1)

        for name in "ab":
            kernel.spawn(add, name=name)
        kernel.settle()
        return counter.value


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


def test_first_choice_loses_nothing():
    assert lost_update(FirstChoice()) == 2


def test_a_seeded_walk_finds_the_lost_update():
    assert {lost_update(SeededChoices(seed)) for seed in range(20)} == {1, 2}


def test_enumeration_finds_the_lost_update():
    outcomes = list(schedules(lost_update))
    assert set(outcomes) == {1, 2}
    # two tasks of three steps each (start, read, write) interleave in (6 over 3) ways
    assert len(outcomes) == 20
    assert outcomes.count(2) < outcomes.count(1)


def test_a_mutex_cures_it_in_every_schedule():
    def run(choices):
        with Kernel(mode="explored", choices=choices) as kernel:
            counter, mutex = Counter(), kernel.mutex("m")

            def add():
                with mutex:
                    kernel.write_once(counter, "value", kernel.read_once(counter, "value") + 1)

            for name in "ab":
                kernel.spawn(add, name=name)
            kernel.settle()
            return counter.value

    outcomes = list(schedules(run))
    assert set(outcomes) == {2}
    assert len(outcomes) > 20


def test_a_deadlock_is_found_in_some_schedule_and_replays():
    def run(choices):
        with Kernel(mode="explored", choices=choices, checked=False) as kernel:
            a, b = kernel.mutex("a"), kernel.mutex("b")

            def take(first, second):
                with first, second:
                    pass

            kernel.spawn(take, a, b, name="forward")
            kernel.spawn(take, b, a, name="backward")
            try:
                kernel.settle()
            except DeadlockError as error:
                return str(error), choices.taken[:]
            return None

    found = [outcome for outcome in schedules(run) if outcome is not None]
    assert found
    message, taken = found[0]
    assert message.startswith("deadlock: tasks wait for each other in a circle\n")
    assert run(RecordedChoices(taken)) == (message, taken)


def busy_run(choices):
    """Use most of the kernel at once and return its trace."""
    with Kernel(mode="explored", choices=choices) as kernel:
        emit = kernel.tracer.emit
        mutex, sem, lock = kernel.mutex("m"), kernel.rwsem("s"), kernel.spinlock("l")
        queue, wait, done = kernel.workqueue("wq", max_active=2), kernel.waitqueue("w"), kernel.completion("c")
        state = {"n": 0}
        kernel.explore_failures(failures_max=2)

        def reader(name):
            with sem.read():
                emit("read", name, state["n"])
                if kernel.inject("alloc"):
                    emit("failed", name)
            wait.wait_event(lambda: state["n"] > 0)
            done.complete()

        def writer():
            with sem.write(), mutex, lock:
                state["n"] += 1
                emit("write", state["n"])
            wait.wake_up_all()
            queue.queue(Work(lambda: emit("work", kernel.inject("dma")), "work"))

        timer = kernel.timer("t", lambda: (emit("timer"), wait.wake_up_all()))
        timer.arm(kernel.now_ns + 5000)
        for n in range(3):
            kernel.spawn(reader, n, name=f"reader {n}")
        kernel.spawn(writer, name="writer")
        for _ in range(3):
            done.wait()
        emit("timed out", not done.wait_timeout_ns(3000))
        queue.flush()
        kernel.run_until(kernel.now_ns + 20_000)
        return repr(kernel.tracer.events), choices.taken


@pytest.mark.parametrize("seed", range(25))
def test_the_same_choices_give_the_same_trace(seed):
    trace, taken = busy_run(SeededChoices(seed))
    assert busy_run(SeededChoices(seed)) == (trace, taken)
    replay = RecordedChoices(taken)
    assert busy_run(replay) == (trace, taken)
    assert replay.strayed == 0


def test_different_choices_give_different_traces():
    assert len({busy_run(SeededChoices(seed))[0] for seed in range(25)}) == 25


def test_a_step_costs_a_microsecond_whatever_is_charged():
    kernel = Kernel(mode="explored")
    kernel.step()
    kernel.charge("bind_base", 1000)
    kernel.charge_ns("copy", 1000)
    assert kernel.now_ns == 1000
    kernel.cond_resched()
    assert kernel.now_ns == 2000


def test_sleeping_jumps_when_nothing_else_can_run():
    kernel = Kernel(mode="explored")
    fired = []
    kernel.timer("t", lambda: fired.append(kernel.now_ns)).arm(10**9)
    kernel.settle()
    assert fired == []
    kernel.sleep_ns(2 * 10**9)
    assert 10**9 <= fired[0] < 10**9 + 10_000
    assert kernel.now_ns >= 2 * 10**9


def test_a_due_timer_may_fire_late():
    fired = set()
    for seed in range(20):
        kernel = Kernel(mode="explored", choices=SeededChoices(seed))
        order = []
        kernel.timer("t", lambda order=order: order.append("timer")).arm(0)
        for n in range(3):
            kernel.step()
            order.append(n)
        kernel.settle()
        fired.add(tuple(order))
    assert fired == {(0, "timer", 1, 2), (0, 1, "timer", 2), (0, 1, 2, "timer"), ("timer", 0, 1, 2)}


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_spinning_tasks_let_each_other_go(seed):
    kernel = Kernel(mode="explored", choices=None if seed is None else SeededChoices(seed))
    order = []

    def work(turn):
        while len(order) % 3 != turn:
            kernel.cpu_relax()
        order.append(turn)

    for turn in (2, 1, 0):
        kernel.spawn(work, turn, name=f"turn {turn}")
    kernel.settle()
    assert order == [0, 1, 2]
    timer = kernel.timer("t", lambda: order.append("timer"))
    timer.arm(kernel.now_ns + 10**6)
    while timer.pending:
        kernel.cpu_relax()
    kernel.settle()
    kernel.cpu_relax()
    with pytest.raises(DeadlockError, match=r"deadlock: task .main. spins at "):
        kernel.cpu_relax()


def test_a_livelock_ends_with_an_error():
    kernel = Kernel(mode="explored")
    kernel.sched.steps_max = 1000

    def work():
        while True:
            kernel.step()

    kernel.spawn(work, name="work")
    with pytest.raises(ModelError) as caught:
        kernel.settle()
    assert str(caught.value).splitlines()[0] == "no end after 1000 steps: tasks keep each other busy"


def test_the_observer_sees_what_each_step_touches():
    kernel = Kernel(mode="explored")
    seen = []

    class Observer:
        def step(self, task, operation, what):
            seen.append((task.name, operation, what))

    kernel.observer = Observer()
    mutex, counter = kernel.mutex("m"), Counter()
    with mutex:
        kernel.write_once(counter, "value", 1)
    assert seen == [
        ("main", "mutex_lock", mutex),
        ("main", "write_once", (counter, "value")),
        ("main", "mutex_unlock", mutex),
    ]
    kernel.observer = object()
    kernel.step()


def test_failures_are_choices_within_a_budget():
    kernel = Kernel(mode="explored", choices=RecordedChoices([0, 1, 1, 1]))
    kernel.explore_failures(["alloc"], failures_max=2)
    assert [kernel.inject("alloc") for _ in range(4)] == [False, True, True, False]
    assert not kernel.inject("other")
    assert kernel.choices.taken == [0, 1, 1]


def test_recorded_choices_that_no_longer_fit_carry_on():
    choices = RecordedChoices([2, 5, -1])
    assert [choices.pick(3, "task") for _ in range(4)] == [2, 0, 0, 0]
    assert (choices.strayed, choices.taken, choices.widths) == (2, [2, 0, 0, 0], [3, 3, 3, 3])


def test_seeded_choices_are_the_same_everywhere():
    choices = SeededChoices(1)
    assert [choices.pick(10, "task") for _ in range(12)] == [5, 7, 9, 4, 4, 7, 8, 5, 2, 7, 4, 6]
    assert Kernel(choices=choices).choose(1, "data") == 0
    assert len(choices.taken) == 12
