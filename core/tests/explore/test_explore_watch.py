"""Which fields of which objects a watch sees, and that it leaves nothing behind."""

import sys
import textwrap

import numpy as np
import pytest
from gpusvm.errors import ModelError
from gpusvm.explore.footprint import Footprints
from gpusvm.explore.watch import watching
from gpusvm.explore.watch_log import LOG
from gpusvm.kernel import Kernel, RecordedChoices
from gpusvm.mm.page import Zone

SOURCE = """
    import numpy as np


    class Part:
        __slots__ = ("count", "fixed", "items", "table", "view")

        def __init__(self):
            self.count = 0
            self.fixed = 1
            self.items = []
            self.table = np.zeros(4, np.int64)
            self.view = self.table.data

        def bump(self):
            self.count += 1


    class Whole:
        state = "new"
        ended = None

        def __init__(self):
            self.part = Part()
            self.late = lambda: setattr(self, "state", "late")

        def run(self):
            self.state = "running"

        def end(self):
            was, self.ended = self.ended, True
            return was


    def hidden(part, name):
        setattr(part, name, 2)
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    (tmp_path / "watched_model.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(str(tmp_path))
    import watched_model

    yield watched_model
    del sys.modules["watched_model"]


def touched(thing):
    LOG.compare()
    found = (
        sorted(f"{part}" for which, part in LOG.reads if which == id(thing)),
        sorted(f"{part}" for which, part in LOG.writes if which == id(thing)),
    )
    LOG.clear()
    return found


def test_fields_that_change_are_seen(model):
    with watching("watched_model"):
        whole = model.Whole()
        part = whole.part
        LOG.clear()
        assert part.fixed == 1
        assert touched(part) == ([], [])
        part.bump()
        assert touched(part) == (["count"], ["count"])
        assert whole.state == "new"
        assert touched(whole) == (["state"], [])
        whole.run()
        whole.late()
        assert whole.state == "late"
        assert touched(whole) == (["state"], ["state"])


def test_a_container_is_written_if_it_changes(model):
    with watching("watched_model"):
        part = model.Part()
        LOG.clear()
        assert part.items == []
        assert touched(part) == (["items"], [])
        part.items.append([1])
        assert touched(part) == (["items"], ["items"])
        part.items[0].append(2)
        assert touched(part) == (["items"], ["items"])


def test_an_array_is_one_thing_through_whichever_field(model):
    with watching("watched_model"):
        part = model.Part()
        LOG.clear()
        part.table[1] = 5
        LOG.compare()
        (written,) = LOG.writes
        LOG.clear()
        assert part.view[1] == 5
        assert written in LOG.reads
        assert LOG.objects[written[0]] is part.table


def test_an_array_that_a_field_is_given_after_it_was_read_is_seen(model):
    with watching("watched_model"):
        part = model.Part()
        other = model.Part()
        other.table = table = np.ones(2)
        LOG.clear()
        assert len(part.table) == 4
        part.table = table
        part.table[0] = 2
        LOG.compare()
        assert (id(table), "") in LOG.writes


def test_struct_pages_are_seen_one_by_one():
    with watching():
        zone = Zone(0, 8)
        LOG.clear()
        zone.m_refcount[3] += 1
        zone.flags[np.array([1, 2])] = 4
        assert zone.mapcount[2:4].any() == np.False_
        assert (zone.order[np.array([True] + [False] * 7)] == 0).all()
        refcount, flags, mapcount, order = zone.refcount, zone.flags, zone.mapcount, zone.order
        assert touched(refcount) == (["3"], ["3"])
        zone.flags[1] = 4
        assert touched(flags) == ([], ["1"])
        zone.m_mapcount[2]
        assert touched(mapcount) == (["2"], [])
        zone.order[0]
        assert touched(order) == (["0"], [])
        assert (zone.refcount == [0, 0, 0, 1, 0, 0, 0, 0]).all()
        assert touched(refcount) == ([str(i) for i in range(8)], [])
        np.add(zone.refcount, 1, out=zone.refcount)
        assert touched(refcount)[1] == [str(i) for i in range(8)]
        assert len(zone.m_refcount) == 8
        assert zone.refcount.tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
        assert zone.refcount.copy().tolist() == [*zone.refcount] == zone.refcount.take(np.arange(8)).tolist()
        assert zone.refcount.nonzero()[0].tolist() == list(range(8))


def test_nothing_stays_behind(model):
    before = dict(vars(model.Part)), dict(vars(model.Whole)), dict(vars(Zone))
    with watching("watched_model"):
        model.Whole().run()
        assert model.Whole().end() is None
        assert vars(model.Part)["count"] is not before[0]["count"]
        assert vars(model.Whole)["ended"] is not None
    assert (dict(vars(model.Part)), dict(vars(model.Whole)), dict(vars(Zone))) == before
    assert not LOG.objects
    assert type(Zone(0, 2).refcount) is np.ndarray


def test_one_watch_at_a_time():
    with watching(), pytest.raises(ModelError, match=r"^a watch is on already$"), watching():
        pass


def test_a_field_that_changes_behind_the_back_of_the_source_is_an_error(model):
    with watching("watched_model"):
        part = model.Part()
        with pytest.raises(
            ModelError, match=r"^Part\.fixed changes, which the source does not show; assign it by name$"
        ):
            model.hidden(part, "fixed")


def test_a_class_that_is_not_watched_is_an_error(model):
    with watching("watched_model"):

        class Other(model.Part):
            pass

        with pytest.raises(ModelError, match=r"\.Other is not watched: name its package$"):
            Other()


def test_what_an_observer_looks_at_is_not_seen(model):
    with watching("watched_model"):
        part = model.Part()
        LOG.clear()
        with LOG.paused():
            part.bump()
        assert touched(part) == ([], [])


KEPT = np.zeros(1)


@pytest.mark.parametrize("first", [0, 1])
def test_what_tasks_make_is_named_alike_whoever_meets_a_kept_array_first(model, first):
    footprints = Footprints("watched_model")
    written = []
    with footprints.watching():
        for choice in (first, 1 - first):
            with Kernel(mode="explored", choices=RecordedChoices([choice])) as kernel:
                footprints.begin(kernel)

                def body(kernel=kernel):
                    part = model.Part()
                    part.table = KEPT
                    part.table = np.ones(2)
                    part.table[0] = 2
                    kernel.cond_resched()

                for name in "ab":
                    kernel.spawn(body, name=name)
                kernel.settle()
                footprints.end()
            steps = {step.task: step.writes for step in footprints.steps if step.label == "starts"}
            assert list(steps) == [(choice,), (1 - choice,)]
            written.append(steps)
    assert written[0] == written[1]
