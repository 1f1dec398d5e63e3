"""What an explanation leaves out and what it marks: invalidations, repeated rounds, preemptions, errnos."""

from gpusvm.explore.recording import Entry, Recording
from gpusvm.report.explanation import rows_of


def recording(*lines):
    """Make one of lines ``task kind what on``, step by step."""
    entries = []
    for number, line in enumerate(lines, start=1):
        task, kind, what, *on = line.split(" ", 3)
        entries.append(Entry(number, task, kind, what, on[0] if on else "", "a.py:1 in f" if kind == "step" else ""))
    return Recording(entries)


def said(one, **how):
    return [(row.task, row.text) for row in rows_of(one, "", **how)]


def test_an_invalidation_in_which_nothing_else_happens_is_one_line():
    one = recording(
        "a event notifier_start p CLEAR 0 1", "a step step", "a step step", "a event notifier_end p CLEAR 0 1"
    )
    assert said(one) == [("a", "* notifier p CLEAR 0 1, 2 steps")]
    assert len(said(one, full=True)) == 4


def test_an_invalidation_in_which_somebody_tells_something_is_not():
    one = recording("a event notifier_start p CLEAR 0 1", "a event zap 0", "a event notifier_end p CLEAR 0 1")
    assert [text for _, text in said(one)] == ["* notifier_start p CLEAR 0 1", "* zap 0", "* notifier_end p CLEAR 0 1"]


def test_an_invalidation_in_which_it_broke_is_not():
    one = recording("a event notifier_start p CLEAR 0 1", "a step step", "a event notifier_end p CLEAR 0 1")
    one.broken_at = 1
    assert len(said(one)) == 3


def test_rounds_that_only_repeat_themselves_are_counted():
    one = recording(*["a step lock", "b step retry"] * 5, "a step unlock")
    assert said(one) == [
        ("a", "lock"),
        ("b", "retry"),
        ("a", "… the same 2 rows 4 times more"),
        ("a", "unlock"),
    ]
    assert len(said(one, full=True)) == 11


def test_what_comes_twice_is_told_twice():
    one = recording(*["a step lock", "b step retry"] * 2)
    assert len(said(one)) == 4


def test_who_takes_over_from_one_that_could_go_on_is_marked():
    one = recording("a step lock", "b step lock", "b wait waits for a", "a step unlock", "b step end", "c step lock")
    assert [(row.task, row.preempts) for row in rows_of(one, "")] == [
        ("a", False),
        ("b", True),
        ("b", False),
        ("a", False),  # b waits
        ("b", False),  # a does nothing more
        ("c", False),
    ]


def test_an_errno_has_its_name():
    one = recording("a event get_pages_failed 0x1000 1 14")
    assert said(one) == [("a", "* get_pages_failed 0x1000 1 EFAULT")]
