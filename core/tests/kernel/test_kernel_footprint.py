"""What a kernel tells its footprint: where steps end, what they touch, who was started by whom."""

from contextlib import nullcontext

from gpusvm.kernel import EVERYTHING, Kernel


class Told:
    def __init__(self, kernel):
        self.kernel = kernel
        self.lines = []

    def spawned(self, task, by):
        self.lines.append(f"{by.name} starts {task.name}")

    def step(self, task, label, what, write):
        name = what if what is None or what is EVERYTHING else getattr(what, "name", what)
        self.lines.append(f"{task.name}: {label} {name} {'w' if write else 'r'}")

    def touch(self, what, write):
        self.lines.append(f"  touches {getattr(what, 'name', what)} {'w' if write else 'r'}")

    def aside(self):
        return nullcontext()

    def ended(self, task):
        self.lines.append(f"{task.name} ends")


def told(body):
    with Kernel(mode="explored") as kernel:
        kernel.footprint = footprint = Told(kernel)
        body(kernel)
        return footprint.lines


def test_a_wait_and_a_wake_up_touch_the_lock():
    def body(kernel):
        mutex = kernel.mutex("m")

        def other():
            with mutex:
                pass

        mutex.lock()
        task = kernel.spawn(other, name="other")
        kernel.sleep_ns(5000)
        mutex.unlock()
        task.join()

    assert told(body) == [
        "main: mutex_lock m w",
        "main starts other",
        "main: slept None r",
        "other: mutex_lock m w",
        "other: woken m w",
        "main: mutex_unlock m w",
        "  touches other w",
        "main: join other w",
        "main: woken other w",
        "other: mutex_unlock m w",
        "  touches main w",
        "  touches other w",
        "other ends",
    ]


def test_readers_of_a_lock_only_read_it():
    def body(kernel):
        sem, srcu = kernel.rwsem("sem"), kernel.srcu("srcu")
        with sem.read():
            srcu.read_unlock(srcu.read_lock())
            assert kernel.read_once(kernel, "mode") == "explored"
        with sem.write():
            kernel.step("here", write=False)
            kernel.step("there")
            kernel.touch(("zone", 3))
            kernel.cond_resched()

    kernel_field = told(body)[3]
    assert kernel_field.startswith("main: read_once (<gpusvm.kernel.core.Kernel object")
    assert kernel_field.endswith("'mode') r")
    lines = told(body)
    del lines[3]
    assert lines == [
        "main: down_read sem r",
        "main: srcu_read_lock srcu r",
        "main: srcu_read_unlock srcu r",
        "main: up_read sem r",
        "main: down_write sem w",
        "main: step_read here r",
        "main: step there w",
        "  touches ('zone', 3) w",
        "main: cond_resched None w",
        "main: up_write sem w",
    ]


def test_a_timer_starts_the_task_that_it_fires_in():
    def body(kernel):
        timer = kernel.timer("t", lambda: kernel.touch("fired"))
        timer.arm(3000)
        kernel.run_until(10_000)
        kernel.settle()

    assert told(body) == [
        "main: mod_timer t w",
        "main: settled everything w",
        "t starts timer/t",
        "  touches fired w",
        "  touches timer/t w",
        "timer/t ends",
        "main: settled everything w",
    ]


def test_nothing_is_told_in_timed_mode():
    with Kernel() as kernel:
        kernel.step("here")
        kernel.touch("there")
        assert kernel.footprint is None
