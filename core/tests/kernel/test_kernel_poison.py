"""What is freed is poisoned: each use is named with the user, the one who freed it, and both places."""

import pytest
from attrs import define
from gpusvm.errors import LateWorkError, LedgerError, LockdepError, ModelError, UseAfterFreeError
from gpusvm.kernel import Kernel, Kref, Work, describe, is_freed, peek


class Node:
    """Be what a test frees: with slots, a name, and what is embedded."""

    __slots__ = ("_secret", "lock", "name", "value")
    outlives = frozenset({"name"})

    def __init__(self, kernel, name="n"):
        self.name = name
        self.value = 1
        self._secret = 2
        self.lock = kernel.mutex("node->lock")

    def __repr__(self):
        return f"<Node {self.value}>"

    def __len__(self):
        return self.value


@define(eq=False)
class Plain:
    value: int = 0


@pytest.fixture
def explored():
    with Kernel(mode="explored") as kernel:
        yield kernel


def _raised(kind, action):
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def test_a_read_and_a_write_name_both_tasks_and_both_places(explored, place):
    node = Node(explored)
    explored.spawn(lambda: explored.free(node), name="freer").join()  # the free
    where = f"task 'freer' freed it at {place('the free')}"
    read = _raised(UseAfterFreeError, lambda: node.value)  # the read
    assert read == f"use after free: task 'main' reads .value of <Node 1> at {place('the read')}; {where}"
    write = _raised(UseAfterFreeError, lambda: setattr(node, "value", 3))  # the write
    assert write == f"use after free: task 'main' writes .value of <Node 1> at {place('the write')}; {where}"
    delete = _raised(UseAfterFreeError, lambda: delattr(node, "value"))  # the delete
    assert delete == f"use after free: task 'main' deletes .value of <Node 1> at {place('the delete')}; {where}"
    with pytest.raises(UseAfterFreeError, match=r"reads \.value of"):
        len(node)


def test_messages_and_tests_may_look_at_what_is_freed(explored):
    node, plain = Node(explored), Plain(5)
    explored.free(node)
    explored.free(plain)
    assert is_freed(node)
    assert not is_freed(explored)
    assert isinstance(node, Node)
    assert bool(node)
    assert (repr(node), describe(node), describe(plain), describe("x")) == (
        "<freed <Node 1>>",
        "<Node 1>",
        "Plain",
        "'x'",
    )
    assert (peek(node, "value"), peek(node, "_secret"), peek(plain, "value")) == (1, 2, 5)
    assert is_freed(node)


def test_what_a_program_has_of_it_stays(explored):
    node = Node(explored, "handle")
    explored.free(node)
    assert node.name == "handle"


def test_a_part_is_named_with_what_it_is_a_part_of(explored, place):
    node = Node(explored)
    explored.free(node, lock := node.lock)  # whole
    message = _raised(UseAfterFreeError, lambda: lock.owner)  # lock
    assert message == (
        f"use after free: task 'main' reads .owner of mutex 'node->lock' of <Node 1> at {place('lock')}; "
        f"task 'main' freed it at {place('whole')}"
    )


def test_a_second_free_names_the_first(explored, place):
    node = Node(explored)
    explored.free(node)  # first
    message = _raised(UseAfterFreeError, lambda: explored.free(node))  # second
    assert message == (
        f"double free: task 'main' frees <Node 1> at {place('second')}; task 'main' freed it at {place('first')}"
    )


def test_a_lock_that_is_held_is_not_freed(explored, place):
    node = Node(explored)
    node.lock.lock()
    message = _raised(LockdepError, lambda: explored.free(node, node.lock))  # held
    assert message == (
        f"held lock freed: task 'main' frees <Node 1> at {place('held')}, "
        "while task 'main' holds its mutex 'node->lock'"
    )


def test_a_work_that_is_queued_is_not_freed(explored, place):
    queue, node = explored.workqueue("wq"), Node(explored)
    work = Work(int, "node->work")
    queue.queue(work)  # queued
    message = _raised(LateWorkError, lambda: explored.free(node, work))  # freed
    assert message == (
        f"late work: task 'main' frees <Node 1> at {place('freed')}, while its work 'node->work' is queued "
        f"(queued by task 'main' at {place('queued')})"
    )


def test_a_work_that_runs_is_not_freed_but_by_itself(explored, place):
    queue, node = explored.workqueue("wq"), Node(explored)
    begun, free = explored.completion("begun"), explored.completion("free")

    def run():
        begun.complete()
        free.wait()

    work = Work(run, "node->work")
    queue.queue(work)  # queued it
    begun.wait()
    message = _raised(LateWorkError, lambda: explored.free(node, work))  # freed it
    assert message == (
        f"late work: task 'main' frees <Node 1> at {place('freed it')}, while its work 'node->work' runs in task "
        f"'kworker/wq:0' (queued by task 'main' at {place('queued it')})"
    )
    free.complete()
    explored.settle()
    own = Work(lambda: explored.free(Plain(), own), "own")
    queue.queue(own)
    explored.settle()
    assert is_freed(own)
    assert not queue.busy


def test_a_timer_that_is_armed_is_not_freed(explored, place):
    timer = explored.timer("tick", int)
    timer.arm(10_000_000)
    message = _raised(LateWorkError, lambda: explored.free(Plain(), timer))  # the plain
    assert message == f"late work: task 'main' frees Plain at {place('the plain')}, while its timer 'tick' is armed"


def test_what_a_task_waits_for_is_not_freed(explored, place):
    done = explored.completion("done")
    explored.spawn(done.wait, name="waiter")
    explored.cond_resched()
    explored.settle()
    message = _raised(UseAfterFreeError, lambda: explored.free(Plain(), done))  # not yet
    assert message == (
        f"use after free: task 'waiter' waits for completion 'done' when task 'main' frees Plain at {place('not yet')}"
    )


def test_a_queue_of_a_freed_work_names_it(explored, place):
    work = Work(int, "gc")
    explored.free(Plain(), work)  # gone
    message = _raised(UseAfterFreeError, lambda: explored.workqueue("wq").queue(work))  # late
    assert message == (
        f"use after free: task 'main' reads .pending of work 'gc' of Plain at {place('late')}; "
        f"task 'main' freed it at {place('gone')}"
    )


def test_a_disabled_work_is_not_queued(explored):
    ran = []
    queue, work = explored.workqueue("wq"), Work(lambda: ran.append(1), "w")
    assert queue.queue(work)
    assert work.disable_sync()
    assert not queue.queue(work)
    assert not queue.queue_delayed(work, 1)
    explored.settle()
    assert ran == []
    work.enable()
    assert queue.queue(work)
    explored.settle()
    assert ran == [1]
    assert _raised(ModelError, work.enable) == "work 'w' is enabled and was not disabled"


def test_nothing_may_be_queued_or_armed_when_all_owners_have_ended(explored, place):
    explored.assert_idle()
    explored.timer("second", int).arm(20_000_000)
    explored.timer("first", int).arm(30_000_000)
    explored.workqueue("wq").queue(Work(int, "w"))  # the last
    message = _raised(LateWorkError, explored.assert_idle)
    assert message.splitlines() == [
        "late work: all owners have ended",
        f"  work 'w' is queued (queued by task 'main' at {place('the last')})",
        "  timer 'second' is armed",
        "  timer 'first' is armed",
    ]


def test_the_ledger_names_a_holder_that_is_freed(explored):
    node = Node(explored, "keeper")
    explored.ledger.get("bo", node)
    explored.free(node)
    assert (
        _raised(LedgerError, explored.ledger.assert_empty) == "ledger: not given back\n  'bo' held by Node 'keeper': 1"
    )


def test_a_reference_of_a_dead_object_is_a_use_after_free(explored):
    kref = Kref(explored, "bo", int)
    kref.put()
    assert _raised(UseAfterFreeError, kref.get) == "kref 'bo': a reference is taken after the last was put"


@pytest.mark.parametrize(("mode", "checked"), [("timed", True), ("timed", False), ("explored", False)])
def test_other_kernels_free_nothing(mode, checked):
    with Kernel(mode=mode, checked=checked) as kernel:
        node = Node(kernel)
        node.lock.lock()
        kernel.free(node, node.lock)
        kernel.free(node)
        assert node.value == 1
