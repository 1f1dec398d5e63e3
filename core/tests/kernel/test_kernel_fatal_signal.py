"""Fatal signals: killable waits end, others do not, and the next in line goes on."""

import pytest
from gpusvm.kernel import Kernel

MODES = ["timed", "explored"]


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_that_is_killed_leaves_the_line(mode) -> None:
    with Kernel(mode=mode) as kernel:
        sem = kernel.rwsem("sem")
        got = []

        def killable() -> None:
            got.append(("killable", sem.down_read_killable()))

        def writer() -> None:
            sem.down_write()
            got.append(("writer", True))
            sem.up_write()

        sem.down_write()
        waiting = kernel.spawn(killable, name="killable")
        kernel.settle()
        kernel.spawn(writer, name="writer")
        kernel.settle()
        waiting.kill()
        kernel.settle()
        assert got == [("killable", False)]
        sem.up_write()
        kernel.settle()
        assert got == [("killable", False), ("writer", True)]
        assert not sem.is_locked


@pytest.mark.parametrize("mode", MODES)
def test_readers_behind_a_killed_reader_still_get_in(mode) -> None:
    with Kernel(mode=mode) as kernel:
        sem = kernel.rwsem("sem")
        got = []

        def reader(name: str) -> None:
            if sem.down_read_killable():
                got.append(name)
                sem.up_read()

        sem.down_write()
        tasks = [kernel.spawn(reader, name, name=name) for name in ("a", "b", "c")]
        kernel.settle()
        tasks[1].kill()
        sem.up_write()
        kernel.settle()
        assert got == ["a", "c"]


def test_a_free_lock_is_taken_even_by_who_is_killed() -> None:
    # The signal is looked at only where the task would sleep (rwsem_down_read_slowpath).
    with Kernel() as kernel:
        sem = kernel.rwsem("sem")
        kernel.current.kill()
        assert sem.down_read_killable()
        sem.up_read()


@pytest.mark.parametrize("mode", MODES)
def test_a_killable_wait_for_an_event_ends_with_the_signal(mode) -> None:
    with Kernel(mode=mode) as kernel:
        queue = kernel.waitqueue("queue")
        flag = []

        def wait() -> bool:
            return queue.wait_event_killable(lambda: bool(flag))

        killed, woken = kernel.spawn(wait, name="killed"), kernel.spawn(wait, name="woken")
        kernel.settle()
        killed.kill()
        assert killed.join() is False
        flag.append(1)
        queue.wake_up_all()
        assert woken.join() is True
        late = kernel.spawn(wait, name="late")
        late.kill()
        assert late.join() is True  # what has happened needs no wait


def test_other_waits_go_on() -> None:
    with Kernel() as kernel:
        done = kernel.completion("done")
        task = kernel.spawn(done.wait, name="waits")
        kernel.settle()
        task.kill()
        kernel.settle()
        assert not task.done
        assert task.fatal_signal_pending
        done.complete()
        task.join()
