"""Quirks of kfd that orders of a few operations find as it is written, and not as a reviewer would want it."""

import pytest
from gpusvm.explore import explore

FREE = ("invariant", "54")


@pytest.mark.parametrize(
    ("scenario", "quirk", "schedules", "label"),
    [
        ("kfd-cut-swap", "notifier_gap", 200, FREE),
        ("kfd-queues-none", "no_access", 20, FREE),
        ("kfd-queues-swap", "split_invalid", 60, FREE),
        ("kfd-unmap", "unmap_gap", 60, ("errno", "I-ERRNO")),
        ("kfd-unmap", "child_mapped", 60, FREE),
        ("kfd-freed", "freed_range", 60, ("use-after-free", "I-LIFE")),
        ("kfd-devices", "fault_under_lock", 60, ("invariant", "50")),
        ("kfd-clone", "clone_reference", 100, ("driver", "svm_range_clone")),
        ("kfd-child", "last_user", 60, ("invariant", "49")),
    ],
)
def test_each_is_found_as_written_and_not_fixed(scenario, quirk, schedules, label):
    options = {"scheduler": "pct", "schedules": schedules, "shrunk": False}
    found = explore([scenario], [f"kfd:quirk.{quirk}=as_written"], **options)
    assert [(each.finding.kind, each.finding.invariant) for each in found.findings] == [label]
    assert explore([scenario], ["kfd"], **options).findings == []


def test_a_range_that_there_is_no_memory_to_cut():
    options = {"scheduler": "pct", "schedules": 100, "shrunk": False, "failures_max": 1}
    found = explore(["kfd-unmap"], ["kfd:quirk.split_unchecked=as_written"], **options)
    labels = [(each.finding.kind, each.finding.invariant) for each in found.findings]
    assert labels == [("driver", "svm_range_unmap_split")]
    assert explore(["kfd-unmap"], ["kfd"], **options).findings == []


def test_no_dropped_fault_is_lost_while_another_is_answered():
    """An answer wakes a task: a timer that came in between found nothing that waits, and was not armed again."""
    options = {"scheduler": "pct", "seed": 9101, "schedules": 60, "shrunk": False}
    assert explore(["fault-together"], ["kfd:access=in_place"], quirks="fixed", **options).findings == []
