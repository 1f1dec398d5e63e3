"""One execution in so many is run again on a freshly booted machine; what hides from the checkpoint is found so."""

import pytest
from gpusvm.explore.campaign import Campaign
from gpusvm.explore.case import Case
from gpusvm.explore.random_walk import RandomWalk
from gpusvm.explore.scenario import find_scenario
from gpusvm.mm.memory_manager import MemoryManager
from gpusvm.plugins import Installed


@pytest.fixture
def campaign():
    (scenario,) = find_scenario("fault-cpu-write")
    case = Case(scenario=scenario, driver="dmirror", drivers=Installed(()))
    return Campaign(boot=case.boot, scheduler=RandomWalk(seed=3), self_test_every=5)


def test_the_same_again(campaign):
    assert list(campaign.run(schedules=20)) == []
    assert campaign.self_tests == 4


def test_a_global_counter_is_found(campaign, monkeypatch):
    plain = MemoryManager.cpu_write
    calls = []  # where no checkpoint reaches

    def cpu_write(self, *arguments):
        calls.append(None)
        if self.kernel.explored and len(calls) > 30 and len(calls) % 2:
            self.kernel.step()
        return plain(self, *arguments)

    monkeypatch.setattr(MemoryManager, "cpu_write", cpu_write)
    failures = [execution.failure for _, execution in campaign.run(schedules=20)]
    assert {failure.kind for failure in failures} == {"nondeterminism"}
    first = failures[0].message
    assert first.startswith("the same answers led to another execution on a freshly booted machine: line ")
    assert " of its trace was " in first
