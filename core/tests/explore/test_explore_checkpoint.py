"""A checkpoint puts every kind of object back in place, and refuses what it cannot, naming the path."""

import ast
import functools
import inspect
import io
import itertools
import weakref
from array import array
from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType, SimpleNamespace

import attrs
import numpy as np
import pytest
from gpusvm.errors import ModelError, UseAfterFreeError
from gpusvm.explore.checkpoint import SETTLED, Checkpoint
from gpusvm.kernel import Kernel, SeededChoices, is_freed


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value


class Slotted:
    __slots__ = ("__private", "late", "value")

    def __init__(self, value: object) -> None:
        self.value = value
        self.__private = value

    def private(self) -> object:
        return self.__private

    def set_private(self, value: object) -> None:
        self.__private = value


class Derived(Slotted):
    __slots__ = ("own", "value")  # hides the slot of its base

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.own = value


class Both(Slotted):
    """Slots of a base and a dict of its own."""


class Guarded:
    __slots__ = ("value",)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("not by setattr")


class Chain(dict):
    __slots__ = ("parent",)


@attrs.frozen
class Frozen:
    inside: list


def checkpoint(*roots: object, **more: object) -> Checkpoint:
    return Checkpoint(roots, **more)


def test_attributes_come_back_and_later_ones_go():
    inside = [1]
    one = Plain(inside)
    saved = checkpoint(one)
    one.value = 2
    one.more = 3
    saved.restore()
    assert vars(one) == {"value": [1]}
    assert one.value is inside
    del one.value
    saved.restore()
    assert one.value is inside


def test_slots_come_back_inherited_private_hidden_and_unset_ones_too():
    one = Derived([1])
    Slotted.value.__set__(one, [2])
    hidden = Slotted.value.__get__(one)
    saved = checkpoint(one)
    one.value = one.own = one.late = 7
    Slotted.value.__set__(one, 8)
    one.set_private(9)
    saved.restore()
    assert one.value == one.own == one.private() == [1]
    assert Slotted.value.__get__(one) is hidden
    assert not hasattr(one, "late")
    saved.restore()
    assert not hasattr(one, "late")


def test_slots_and_a_dict_in_one_object():
    one = Both(1)
    one.extra = 2
    saved = checkpoint(one)
    one.value, one.extra = 3, 4
    saved.restore()
    assert (one.value, one.extra) == (1, 2)


def test_a_class_that_guards_its_attributes():
    one = Guarded()
    Guarded.value.__set__(one, 1)
    saved = checkpoint(one)
    Guarded.value.__set__(one, 2)
    saved.restore()
    assert one.value == 1


def test_a_frozen_value_is_looked_into():
    one = Frozen([1])
    saved = checkpoint(one)
    one.inside.append(2)
    saved.restore()
    assert one.inside == [1]


@pytest.mark.parametrize("make", [dict, OrderedDict, Chain, functools.partial(defaultdict, list)])
def test_dicts_keep_their_order_and_what_they_hold(make):
    one = make()
    one["a"], one["b"] = [1], [2]
    held = one["a"]
    saved = checkpoint(one)
    del one["a"]
    one["c"] = 3
    one["a"] = 4
    held.append(5)
    saved.restore()
    assert list(one.items()) == [("a", [1]), ("b", [2])]
    assert one["a"] is held


def test_keys_are_looked_into():
    key = Plain(1)
    saved = checkpoint({key: None})
    key.value = 2
    saved.restore()
    assert key.value == 1


def test_lists_sets_and_deques():
    inside = Plain(1)
    entries, members, queue = [inside, 2], {inside, 2}, deque([inside, 2], maxlen=3)
    empty_set: set = set()
    saved = checkpoint(entries, members, queue, empty_set)
    entries[:] = [3]
    members.clear()
    empty_set.add(1)
    queue.extend([3, 4])
    inside.value = 5
    saved.restore()
    assert entries == [inside, 2]
    assert members == {inside, 2}
    assert empty_set == set()
    assert list(queue) == [inside, 2]
    assert queue.maxlen == 3
    assert inside.value == 1


def test_what_is_inside_constant_containers():
    lists = [[i] for i in range(4)]
    hashable = Plain(lists[3])
    saved = checkpoint((lists[0],), MappingProxyType({"a": lists[1]}), slice(None), frozenset({hashable}), lists[2])
    for one in lists:
        one.append(9)
    saved.restore()
    assert lists == [[0], [1], [2], [3]]


def test_a_proxy_leads_to_its_dict():
    behind = {"a": 1}
    saved = checkpoint(MappingProxyType(behind))
    behind["b"] = 2
    saved.restore()
    assert behind == {"a": 1}


def test_arrays_and_what_looks_at_them():
    numbers = np.arange(6, dtype=np.int32)
    column = np.asfortranarray(np.arange(6).reshape(2, 3))
    raw, words = bytearray(b"abc"), array("q", [1, 2])
    saved = checkpoint(numbers[2:4], column, raw, memoryview(words), np.empty(0))
    view = numbers.data
    numbers[:] = 7
    column[1, 2] = 7
    raw[0] = 0
    words[1] = 7
    saved.restore()
    assert numbers.tolist() == view.tolist() == [0, 1, 2, 3, 4, 5]
    assert column.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert raw == b"abc"
    assert words.tolist() == [1, 2]
    assert saved.array_bytes == 24 + 48 + 3 + 16
    raw.extend(b"def")
    saved.restore()
    assert raw == b"abc"


def test_closures_methods_and_partials():
    count, empty = 0, None

    def next_number() -> int:
        nonlocal count
        count += 1
        return count

    def unset() -> None:
        nonlocal empty
        empty = None

    del empty
    one = Plain(1)
    inside: list = []
    queue: list = []
    functions = [
        next_number,
        unset,
        SimpleNamespace,
        functools.partial(setattr, one),
        Plain(inside).__repr__,
        queue.append,
        lambda at=queue: at,
    ]
    functions[3].keywords["x"] = inside
    with pytest.raises(ModelError):  # a namespace is an object of C
        checkpoint(SimpleNamespace())
    saved = checkpoint(functions)
    next_number()
    unset()
    one.value = 2
    inside.append(1)
    queue.append(1)
    saved.restore()
    assert next_number() == 1
    assert one.value == 1
    assert inside == []
    assert queue == []
    with pytest.raises(ValueError, match="empty"):
        _ = unset.__closure__[0].cell_contents


def test_attributes_of_functions():
    def program() -> None:
        pass

    program.calls = []
    saved = checkpoint(program)
    program.calls.append(1)
    program.more = 1
    saved.restore()
    assert vars(program) == {"calls": []}


def test_errors_that_are_kept():
    error = ValueError([1])
    saved = checkpoint([error])
    error.args[0].append(2)
    saved.restore()
    assert error.args == ([1],)


def test_objects_left_alone():
    scheduler = Plain([1])
    one = Plain(scheduler)
    saved = checkpoint(one, leave=[scheduler])
    scheduler.value.append(2)
    one.value = None
    saved.restore()
    assert one.value is scheduler
    assert scheduler.value == [1, 2]


def test_many_restores_are_as_good_as_one():
    one = Plain({"a": [deque([1])]})
    saved = checkpoint(one)
    for _ in range(3):
        one.value["a"][0].append(2)
        one.value["a"].append(3)
        one.value["b"] = 4
        saved.restore()
        assert one.value == {"a": [deque([1])]}


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: iter([1]), "builtins.list_iterator"),
        (lambda: (i for i in [1]), "builtins.generator"),
        (itertools.count, "itertools.count"),
        (io.StringIO, "_io.StringIO"),
        (lambda: weakref.ref(Plain), "weakref.ReferenceType"),
        (SimpleNamespace, "types.SimpleNamespace"),
        ({}.keys, "builtins.dict_keys"),
    ],
)
def test_what_cannot_be_put_back_is_an_error(make, kind):
    root = Plain([{"driver": Plain((make(),))}])
    with pytest.raises(ModelError) as error:
        checkpoint(None, root)
    assert str(error.value) == (
        f"checkpoint: cannot put back roots[1].value[0]['driver'].value[0], a {kind}: its state is out of reach"
    )


def test_a_class_derived_from_an_object_of_c_is_an_error():
    class Counter(itertools.count):
        pass

    with pytest.raises(ModelError, match=r"derived from count, whose state is out of reach$"):
        checkpoint(Counter())


def test_an_array_of_objects_is_an_error():
    with pytest.raises(ModelError, match=r"^checkpoint: cannot put back roots\[0\], a numpy.ndarray: an array of obj"):
        checkpoint(np.array([[1], None], object))


def test_a_task_under_way_is_an_error():
    with Kernel(mode="explored", choices=SeededChoices(0)) as kernel:
        queue = kernel.waitqueue("never")
        kernel.spawn(lambda: queue.wait_event(lambda: False), name="waits", daemon=True)
        kernel.settle()
        with pytest.raises(ModelError) as error:
            checkpoint(kernel)
    assert str(error.value) == (
        "checkpoint: cannot put back roots[0].sched.tasks[1].greenlet, a greenlet.greenlet: "
        "a task that has begun and not ended holds state in its stack"
    )


def test_a_kernel_starts_again_with_its_greenlets():
    kernel = Kernel(mode="explored", choices=SeededChoices(0))
    done: list = []
    saved = checkpoint(kernel, done, leave=[kernel.choices])
    kernel.tracer.on = True
    traces = []
    for _ in range(3):
        kernel.choices = SeededChoices(5)
        lock = kernel.mutex("lock")

        def body(lock=lock) -> None:
            for _ in range(3):
                with lock:
                    done.append(kernel.current.name)

        tasks = [kernel.spawn(body, name=name) for name in "abc"]
        for task in tasks:
            task.join()
        idle = list(kernel.sched._idle)
        traces.append((list(done), kernel.sched.steps, kernel.now_ns, kernel.choices.taken))
        saved.restore()
        assert kernel.sched._idle == idle
        assert (kernel.sched.steps, kernel.now_ns, done) == (0, 0, [])
        assert [task.name for task in kernel.tasks] == ["main"]
    assert traces[0] == traces[1] == traces[2]


def test_a_kernel_comes_back_from_a_deadlock():
    kernel = Kernel(mode="explored", choices=SeededChoices(0))
    unwound: list = []
    saved = checkpoint(kernel, leave=[kernel.choices])

    def forever(queue: object) -> None:
        try:
            queue.wait_event(lambda: False)
        finally:
            unwound.append(kernel.closing)

    for _ in range(3):
        task = kernel.spawn(forever, kernel.waitqueue("never"), name="waits")
        with pytest.raises(ModelError):
            task.join()
        kernel.close()
        saved.restore()
        assert not kernel.closing
        assert [task.name for task in kernel.tasks] == ["main"]
    assert unwound == [True] * 3


def test_what_was_freed_lives_again_and_what_was_free_stays_so() -> None:
    with Kernel(mode="explored") as kernel:
        early, slotted, plain = Slotted(1), Slotted(2), Plain(3)
        kernel.free(early)
        checkpoint = Checkpoint([kernel, early, slotted, plain])
        for _ in range(2):
            kernel.free(slotted)
            kernel.free(plain)
            with pytest.raises(UseAfterFreeError):
                _ = plain.value
            checkpoint.restore()
            assert (slotted.value, slotted.private(), plain.value) == (2, 2, 3)
            assert [is_freed(one) for one in (early, slotted, plain)] == [True, False, False]
            assert len(kernel.graveyard.graves) == 1


@pytest.mark.parametrize("kind", SETTLED, ids=lambda kind: kind.__name__)
def test_what_is_not_put_back_is_declared_final(kind):
    """mypy sees to it that nothing writes it."""
    (made,) = [each for each in ast.walk(ast.parse(inspect.getsource(kind))) if is_init(each)]
    final = {
        each.target.attr
        for each in ast.walk(made)
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Attribute)
        and ast.unparse(each.annotation).partition("[")[0] == "Final"
    }
    assert SETTLED[kind]
    assert SETTLED[kind] - final == set()


def is_init(node):
    return isinstance(node, ast.FunctionDef) and node.name == "__init__"
