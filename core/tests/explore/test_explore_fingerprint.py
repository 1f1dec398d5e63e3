"""A fingerprint says whether two states are the same, whoever the objects are and whenever they were reached."""

import numpy as np
import pytest
from gpusvm.drm import D3HOT, RuntimePm
from gpusvm.explore.fingerprint import Fingerprint
from gpusvm.kernel import FirstChoice, Kernel, SeededChoices
from gpusvm.mm import Geometry, MemoryManager
from gpusvm.mm.api import MADV_DONTNEED, PROT_READ, PROT_WRITE

PAGE = 4096
RW = PROT_READ | PROT_WRITE


class Plain:
    def __init__(self, **fields: object) -> None:
        vars(self).update(fields)


def same(one: object, other: object) -> bool:
    first, second = Fingerprint(one), Fingerprint(other)
    assert (first.take() == second.take()) == (first.lines() == second.lines())
    return first.take() == second.take()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (Plain(a=1, b=2), Plain(b=2, a=1)),
        ({1, "x", None}, {None, "x", 1}),
        (Plain(now=1, start_ns=2, steps=3), Plain(now=4, start_ns=5, steps=6)),
        ([Plain(invalidate_seq=3), Plain(invalidate_seq=3)], [Plain(invalidate_seq=7), Plain(invalidate_seq=7)]),
        (Plain(lock_seq=3, writes=4), Plain(lock_seq=5, writes=6)),
        (np.arange(4)[1:3], np.array([1, 2])),
    ],
)
def test_the_same(one, other):
    assert same(one, other)


def test_shared_and_equal_are_two_things():
    shared: list = []
    assert not same([shared, shared], [[], []])
    loop: list = []
    loop.append(loop)
    other: list = []
    other.append(other)
    assert same(loop, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({1}, {2}),
        (1, True),
        (Plain(a=1), Plain(b=1)),
        ([Plain(invalidate_seq=3)], [Plain(invalidate_seq=4)]),  # odd: the tree is frozen
        ([Plain(invalidate_seq=3), Plain(invalidate_seq=3)], [Plain(invalidate_seq=3), Plain(invalidate_seq=5)]),
        (Plain(lock_seq=3, writes=3), Plain(lock_seq=3, writes=4)),
        (Plain(lru_seq=0), Plain(lru_seq=1)),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([1, 2]), np.array([1, 2], np.int32)),
        (bytearray(b"a"), bytearray(b"b")),
    ],
)
def test_not_the_same(one, other):
    assert not same(one, other)


def test_what_a_closure_holds_counts():
    def holding(held: list) -> object:
        return lambda: held

    assert same(holding([1]), holding([1]))
    assert not same(holding([1]), holding([2]))


def test_what_is_left_is_not_looked_into():
    shared = Plain(a=1)
    one = Fingerprint([shared], leave=[shared])
    before = one.take()
    shared.a = 2
    assert one.take() == before
    assert Fingerprint([shared]).take() != Fingerprint([Plain(a=1)]).take()


def test_lines_say_where_two_states_differ():
    one = Fingerprint(Plain(a=[Plain(b=1)], c={"k": 2}))
    other = Fingerprint(Plain(a=[Plain(b=3)], c={"k": 2}))
    assert [pair for pair in zip(one.lines(), other.lines(), strict=True) if pair[0] != pair[1]] == [
        ("roots[0].a[0]: ['Plain', 'b', 1]", "roots[0].a[0]: ['Plain', 'b', 3]")
    ]


# --- tasks


class Watch:
    """Take a fingerprint at each yield point of some task."""

    def __init__(self, kernel: Kernel) -> None:
        self.fingerprint = Fingerprint(kernel)
        self.seen: list[int] = []

    def step(self, task, operation, what) -> None:
        self.seen.append(self.fingerprint.take())


def watched(*bodies) -> list[int]:
    kernel = Kernel(mode="explored", choices=FirstChoice())
    watch = kernel.observer = Watch(kernel)
    tasks = [kernel.spawn(body, kernel, name=f"t{i}") for i, body in enumerate(bodies)]
    for task in tasks:
        task.join()
    return watch.seen


def test_a_loop_without_progress_is_a_cycle():
    def spins(kernel: Kernel) -> None:
        for _ in range(4):
            pass
        x = 0
        while x < 4:
            kernel.step()
            kernel.cond_resched()
            x += kernel.sched.steps > 20

    seen = watched(spins)
    assert len(seen) > 16
    assert len(set(seen[1:])) < 12
    assert seen[1] == seen[3] == seen[5]
    assert seen[2] == seen[4] != seen[1]


def test_a_loop_that_counts_is_none():
    def counts(kernel: Kernel) -> None:
        for _ in range(5):
            kernel.step()

    seen = watched(counts)[1:]
    assert len(set(seen)) == len(seen)


def test_where_every_task_stands_counts():
    def first(kernel: Kernel) -> None:
        kernel.step()
        kernel.step()

    def second(kernel: Kernel) -> None:
        kernel.step()

    assert len(set(watched(first, second))) == len(watched(first, second))


def test_the_clock_does_not_count():
    kernel = Kernel(mode="explored", choices=SeededChoices(0))
    one = Fingerprint(kernel)
    before = one.take()
    kernel.sleep_ns(1_000_000)
    kernel.step()
    assert one.take() == before
    kernel.timer("t", lambda: None).arm(1 << 40)
    assert one.take() != before


# --- memory


def machine() -> tuple[MemoryManager, object]:
    kernel = Kernel(mode="explored", choices=FirstChoice())
    memory = MemoryManager(kernel, geometry=Geometry(pmd_order=2), ram_pages=64, thp="never")
    mm = memory.mm_alloc("p")
    for start in (1 << 20, 2 << 20):
        mm.mmap(start, 4 * PAGE, RW)
        for page in range(4):
            memory.cpu_write(mm, start + page * PAGE)
    return memory, mm


def after(*operations) -> int:
    memory, mm = machine()
    for operation in operations:
        operation(memory, mm)
    return Fingerprint(memory).take()


def protect(memory, mm) -> None:
    mm.mprotect(1 << 20, 2 * PAGE, PROT_READ)


def write_again(memory, mm) -> None:
    memory.cpu_write(mm, 2 << 20)


def drop(memory, mm) -> None:
    mm.madvise(2 << 20, PAGE, MADV_DONTNEED)


def read(memory, mm) -> None:
    memory.cpu_read(mm, 2 << 20)


def test_independent_operations_commute():
    assert after(protect, write_again) == after(write_again, protect)
    assert after(protect, drop) == after(drop, protect)
    assert after(read, protect) == after(protect, read) == after(protect)


def test_what_does_not_commute_is_told_apart():
    states = [after(), after(protect), after(drop), after(protect, drop)]
    assert len(set(states)) == len(states)


def test_versions_count_only_by_which_are_equal():
    assert after(write_again, write_again) == after(write_again) == after(drop, write_again) == after()


def slept(times: int) -> tuple[Kernel, RuntimePm]:
    kernel = Kernel(mode="explored", choices=FirstChoice())
    pm = RuntimePm(kernel, "gpu0", autosuspend_ms=0)
    for _ in range(times):
        pm.get("ioctl")
        pm.power_off(D3HOT)
        pm.power_on()
        pm.put("ioctl")
    return kernel, pm


def test_a_device_that_has_slept_twice_is_as_one_that_has_slept_once():
    assert same(slept(1), slept(2))
    awake, asleep = slept(1), slept(1)
    asleep[1].power_off(D3HOT)
    assert not same(awake, asleep)
