"""Who is found to get nowhere, and who is not: tasks that try, each in its own way, and a watch that listens."""

import pytest
from gpusvm.errors import LivelockError
from gpusvm.explore.livelock import CHANCES_MAX, ROUNDS_MAX, LivelockWatch
from gpusvm.kernel import FirstChoice, Kernel, SeededChoices
from gpusvm.mm import MemoryManager


class Bench:
    def __init__(self, choices=None, **options):
        self.kernel = Kernel(mode="explored", choices=choices or FirstChoice(), **options)
        self.memory = MemoryManager(self.kernel, ram_pages=8)
        self.done = 0
        self.tries = 0
        self.watch = LivelockWatch(self.memory, lambda: self.done)
        self.watch.begin()

    def try_for_ever(self, **why):
        while True:
            self.tries += 1
            self.kernel.retried(**why)
            self.kernel.cond_resched()

    def run(self, *names, **options):
        for name in names:
            self.kernel.spawn(self.try_for_ever, name=name, **options)
        self.kernel.settle()


def outcome(bench, *names):
    with pytest.raises(LivelockError) as caught:
        bench.run(*names)
    bench.kernel.close()
    return str(caught.value).splitlines()[0]


def test_one_task_that_tries_again_and_again():
    bench = Bench()
    assert outcome(bench, "a") == "livelock: 'a' began again 5 times each, and nobody got anything done"
    assert bench.tries == ROUNDS_MAX


def test_tasks_that_keep_each_other_busy():
    bench = Bench(SeededChoices(1))
    assert outcome(bench, "a", "b") == "livelock: 'a', 'b' began again 5 times each, and nobody got anything done"
    assert bench.tries >= 2 * ROUNDS_MAX


@pytest.mark.parametrize("cpus", [None, 1, 2])
def test_nobody_is_blamed_while_a_task_that_could_end_it_does_not_get_its_turn(cpus):
    bench = Bench(cpus=cpus)
    kernel = bench.kernel
    kernel.sched.steps_max = 200

    def last():
        bench.tries = -1

    kernel.spawn(bench.try_for_ever, name="a")
    kernel.spawn(last, name="patient")
    with pytest.raises(LivelockError) as caught:
        kernel.settle()
    assert str(caught.value).splitlines()[0] == "no end after 200 steps: tasks keep each other busy"
    assert bench.tries > ROUNDS_MAX
    kernel.close()


def test_a_task_that_is_kept_off_its_cpu_is_not_waited_for():
    bench = Bench(cpus=2, preemptive=False)

    def spin():
        while True:
            bench.kernel.retried()
            bench.kernel.give_way()

    bench.kernel.spawn(spin, name="a", cpu=1)
    bench.kernel.spawn(print, name="b", cpu=1)
    with pytest.raises(LivelockError) as caught:
        bench.kernel.settle()
    assert str(caught.value).splitlines()[0] == (
        "livelock: 'a' began again 5 times each, and nobody got anything done; kept off their CPUs: 'b'"
    )
    bench.kernel.close()


@pytest.mark.parametrize("what", ["operation", "write", "clock", "sleeper", "timer"])
def test_what_gets_done_or_will_come_by_itself_is_no_livelock(what):
    bench = Bench(SeededChoices(3))
    kernel, memory = bench.kernel, bench.memory
    mm = memory.mm_alloc("p")
    mm.mmap(1 << 30, 4096, 3)
    last = kernel.sched.steps_max = kernel.sched.steps + 500

    def work():
        while True:
            bench.tries += 1
            kernel.retried(by_clock=what == "clock")
            if bench.tries % (ROUNDS_MAX - 1) == 0:
                if what == "operation":
                    bench.done += 1
                elif what == "write":
                    memory.cpu_write(mm, 1 << 30)
            kernel.cond_resched()

    if what == "sleeper":
        kernel.spawn(kernel.sleep_ns, 10_000_000, name="sleeper")
    elif what == "timer":
        kernel.set_choices(FirstChoice())  # which never lets it fire
        kernel.timer("t", print).arm(0)
    kernel.spawn(work, name="a")
    with pytest.raises(LivelockError) as caught:
        kernel.settle()
    assert str(caught.value).splitlines()[0] == f"no end after {last} steps: tasks keep each other busy"
    assert bench.tries > 2 * ROUNDS_MAX
    kernel.close()


def test_nothing_is_heard_after_the_end():
    bench = Bench()
    bench.watch.end()
    bench.kernel.sched.steps_max = 100
    assert outcome(bench, "a") == "no end after 100 steps: tasks keep each other busy"


def test_where_it_is_chance_many_rounds_have_to_be_in_vain_the_last_of_them_undisturbed():
    bench = Bench(SeededChoices(2))
    for name in ("a", "b"):
        bench.kernel.spawn(lambda: bench.try_for_ever(by_chance=True), name=name)
    with pytest.raises(LivelockError) as caught:
        bench.kernel.settle()
    title = f"livelock: 'a', 'b' began again {2 * CHANCES_MAX} times each, and nobody got anything done"
    assert str(caught.value).splitlines()[0] == title
    assert bench.tries >= 4 * CHANCES_MAX
    bench.kernel.close()


def test_two_who_get_in_each_others_way_by_chance_are_left_alone_to_find_out():
    bench = Bench(SeededChoices(5))
    kernel = bench.kernel
    kernel.sched.steps_max = 5000
    taken, got, undisturbed = [None], [], []

    def contend(name):
        while True:
            taken[0] = name
            for _ in range(30):  # so long nobody may come in between
                kernel.step()
            if taken[0] == name:
                got.append(name)
                bench.done += 1
                return
            kernel.retried(by_chance=True)
            undisturbed.append(kernel.choices is not choices)
            kernel.cond_resched()

    choices = kernel.choices
    for name in ("a", "b"):
        kernel.spawn(contend, name, name=name)
    kernel.settle()
    assert sorted(got) == ["a", "b"]
    assert any(undisturbed)
    bench.watch.end()
    assert kernel.choices is choices
    kernel.close()


def test_a_task_that_gives_itself_more_time_is_found_at_once():
    bench = Bench()
    kernel = bench.kernel

    def unbounded():
        due_ns = kernel.now_ns + 1_000_000_000
        while True:
            kernel.cond_resched()
            kernel.retried(by_chance=True, deadlines=(due_ns, kernel.now_ns + 1_000_000_000))  # again

    kernel.spawn(unbounded, name="get_pages")
    with pytest.raises(LivelockError) as caught:
        kernel.settle()
    title, *rest = str(caught.value).splitlines()
    assert title == (
        "livelock: 'get_pages' was to give up at 1000001000 ns, and begins again with time until 1000002000 ns: "
        "nothing bounds its attempts"
    )
    at = rest.index("  task 'get_pages' runs")
    assert [line.split(" in ")[-1] for line in rest[at + 1 :]] == ["unbounded"]
    kernel.close()


def test_the_message_says_of_each_who_began_again_where_it_stands_and_what_it_holds():
    bench = Bench(SeededChoices(3))
    kernel = bench.kernel
    lock = kernel.mutex("mm->lock")

    def spin():
        with lock:
            bench.try_for_ever()

    def wait():
        with lock:
            pass

    kernel.spawn(spin, name="spin")
    kernel.spawn(wait, name="wait")
    with pytest.raises(LivelockError) as caught:
        kernel.settle()
    title, *rest = str(caught.value).splitlines()
    assert title == "livelock: 'spin' began again 5 times each, and nobody got anything done"
    told = [line.split(" (taken at ")[0] for line in rest if line.startswith(("  task", "    holds"))]
    assert told == [
        "  task 'spin' runs",
        "    holds mutex 'mm->lock'",
        "  task 'wait' waits for mutex 'mm->lock', held by task 'spin'",
    ]
    kernel.close()
