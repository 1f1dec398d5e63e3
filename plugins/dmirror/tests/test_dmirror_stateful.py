"""Random sequences of what processes and dmirror devices do, against the second model (`second_model`).

`pytest --hypothesis-profile=soak` goes on for hours; `python plugins/dmirror/tests/soak.py` walks much faster, without
Hypothesis, over the same steps.
"""

import pytest
from dmirror_world import SETTINGS, STEPS, Setting, World
from found import FOUND
from gpusvm.mm.pgtable import PteTable
from gpusvm_dmirror.device import DmirrorDevice
from gpusvm_dmirror.mirror import Dmirror
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from soak import draw_walk, run_walk, walk


def numbers(bounds):
    return st.sampled_from(bounds) if len(bounds) != 2 else st.integers(*bounds)


class Walk(RuleBasedStateMachine):
    """Do what Hypothesis draws."""

    quirks = "fixed"
    check_every = 1

    @initialize(**{name: st.sampled_from(choices) for name, choices in SETTINGS.items()})
    def boot(self, **setting):
        self.world = World(Setting(quirks=self.quirks, check_every=self.check_every, **setting))

    def teardown(self):
        if hasattr(self, "world"):
            self.world.finish()


for name, (_, taken) in STEPS.items():

    def step(self, name=name, **given):
        self.world.step(name, **given)

    step.__name__ = name
    setattr(Walk, name, rule(**{key: numbers(bounds) for key, bounds in taken.items()})(step))


class AsWritten(Walk):
    """Do it with every quirk as it is written."""

    quirks = "as_written"
    check_every = 4


@pytest.mark.parametrize("machine", [Walk, AsWritten], ids=["fixed", "as_written"])
def test_both_models_agree(machine):
    profile = settings()
    run_state_machine_as_test(
        machine, settings=settings(profile, max_examples=max(200, profile.max_examples), stateful_step_count=20)
    )


def walks(quirks="fixed"):
    """Walk a few times over what a soak walks over; the first finding."""
    for number in range(4):
        setting, steps = draw_walk(7, number, quirks, 8)
        found = run_walk(setting, steps)
        if found is not None:
            return found[0]
    return None


@pytest.mark.parametrize(
    ("where", "broken", "finding"),
    [
        (Dmirror, "invalidate", "InvariantError: invariant 54 "),
        (DmirrorDevice, "copy", "InvariantError: invariant 23"),
        (PteTable, "set_write", "InvariantError: invariant "),
    ],
    ids=["no_invalidation", "no_copy", "no_write_protection"],
)
def test_what_is_broken_is_found(monkeypatch, where, broken, finding):
    monkeypatch.setattr(where, broken, lambda *_, **__: True)
    assert finding in walks()


def test_a_finding_becomes_short(monkeypatch):
    monkeypatch.setattr(DmirrorDevice, "copy", lambda *_: None)
    number, _, finding = next(found for found in map(walk, ((7, k, "fixed") for k in range(20))) if found[2])
    assert len(finding["steps"]) <= 5
    assert run_walk(finding["setting"], finding["steps"])[0].startswith("InvariantError: invariant 23 (contents): ")
    assert finding["walk"] == number


def test_nothing_broken_is_not_found():
    assert walks("both") is None


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once(name):
    assert run_walk(*FOUND[name]) is None
