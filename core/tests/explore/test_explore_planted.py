"""Exploration finds each kind of use after free and of late work that is planted, and says who did what to what.

Planted are the lifetimes of a driver: a context with a lock, a work and a timer, which one task closes while another
uses it. A `careful` one waits for its users before it frees.
"""

import re

import pytest
from gpusvm.explore import random_walk
from gpusvm.explore.execution import classify
from gpusvm.kernel import Kernel, Timer, Work

SCHEDULES = 60


class Context:
    def __init__(self, kernel, wq):
        self.kernel = kernel
        self.wq = wq
        self.users = 1
        self.served = 0
        self.lock = kernel.mutex("ctx->lock")
        self.work = Work(self.run, "ctx_work")
        self.timer = Timer(kernel, "ctx_timer", self.tick)

    def __repr__(self):
        return "<Context>"

    def run(self):
        self.kernel.step()
        self.served += 1

    def tick(self):
        self.wq.queue(self.work)

    def close(self):
        self.timer.cancel_sync()
        self.work.cancel_sync()
        self.kernel.step()  # whatever else there is to take down
        self.kernel.free(self, self.lock, self.work, self.timer)


def reads(context):
    context.kernel.step()
    return context.served


def writes(context):
    context.kernel.step()
    context.served = 1


def queues(context):
    wq, work = context.wq, context.work
    wq.queue(work)


def arms(context):
    kernel, timer = context.kernel, context.timer
    timer.arm(kernel.now_ns + 20_000)


def locks(context):
    kernel, lock = context.kernel, context.lock
    with lock:
        kernel.step()


def frees(context):
    kernel, lock, work, timer = context.kernel, context.lock, context.work, context.timer
    kernel.step()
    kernel.free(context, lock, work, timer)


def _program(use, *, careful):
    def program(choices):
        with Kernel(mode="explored", choices=choices) as kernel:
            context = Context(kernel, kernel.workqueue("ctx"))
            user = kernel.spawn(use, context, name="user")

            def close():
                if careful:
                    user.join()
                if use is not frees:
                    context.close()
                elif not careful:
                    frees(context)

            closer = kernel.spawn(close, name="closer")
            user.join()
            closer.join()
            kernel.assert_idle()

    return program


def _found(use, *, careful=False):
    """Return the kinds and messages that are found, without line numbers."""
    findings = [classify(each.error) for each in random_walk(_program(use, careful=careful), schedules=SCHEDULES)]
    return {(each.kind, re.sub(r"\.py:\d+", ".py", each.message)) for each in findings}


HERE = "explore/test_explore_planted.py"
FREED = f"; task 'closer' freed it at {HERE}"
LATE = f"late work: task 'closer' frees <Context> at {HERE}"
PLANTED = {
    reads: [("use-after-free", f"use after free: task 'user' reads .served of <Context> at {HERE}{FREED}")],
    writes: [("use-after-free", f"use after free: task 'user' writes .served of <Context> at {HERE}{FREED}")],
    frees: [
        (
            "use-after-free",
            f"double free: task 'user' frees <Context> at {HERE}; task 'closer' freed it at {HERE}",
        ),
        (
            "use-after-free",
            f"double free: task 'closer' frees <Context> at {HERE}; task 'user' freed it at {HERE}",
        ),
    ],
    queues: [
        ("late-work", f"{LATE}, while its work 'ctx_work' is queued (queued by task 'user' at {HERE})"),
        (
            "late-work",
            f"{LATE}, while its work 'ctx_work' runs in task 'kworker/ctx:0' (queued by task 'user' at {HERE})",
        ),
        (
            "use-after-free",
            f"use after free: task 'user' reads .pending of work 'ctx_work' of <Context> at {HERE}{FREED}",
        ),
    ],
    arms: [
        ("late-work", f"{LATE}, while its timer 'ctx_timer' is armed"),
        (
            "use-after-free",
            f"use after free: task 'user' writes .entry of timer 'ctx_timer' of <Context> at {HERE}{FREED}",
        ),
    ],
    locks: [
        (
            "lockdep",
            f"held lock freed: task 'closer' frees <Context> at {HERE}, while task 'user' holds its mutex 'ctx->lock'",
        ),
        (
            "use-after-free",
            f"use after free: task 'user' reads ._checked of mutex 'ctx->lock' of <Context> at {HERE}{FREED}",
        ),
    ],
}


@pytest.mark.parametrize("use", PLANTED, ids=lambda use: use.__name__)
def test_what_is_planted_is_found_and_nothing_without_it(use):
    assert _found(use, careful=True) == set()
    found = _found(use)
    assert [each for each in PLANTED[use] if each not in found] == []


def test_a_work_that_nobody_stops_is_found_at_the_end():
    def program(choices):
        with Kernel(mode="explored", choices=choices) as kernel:
            context = Context(kernel, kernel.workqueue("ctx"))
            kernel.spawn(context.tick, name="user").join()
            kernel.assert_idle()

    findings = [classify(each.error) for each in random_walk(program, schedules=SCHEDULES)]
    messages = {(each.kind, re.sub(r"\.py:\d+", ".py", each.message)) for each in findings}
    by = f"(queued by task 'user' at {HERE})"
    assert messages == {
        ("late-work", f"late work: all owners have ended\n  work 'ctx_work' is queued {by}"),
        ("late-work", f"late work: all owners have ended\n  work 'ctx_work' runs in task 'kworker/ctx:0' {by}"),
    }
