"""What the tests of svmdev share: benches that are torn down, and so checked for leaks, and the words of recordings."""

import pytest
from gpusvm.driver import read_spec
from gpusvm.driver.operations import PROCESS_OPERATIONS
from gpusvm.realkernel.operations import read_operation
from gpusvm.realkernel.sequence import Player
from gpusvm.testing import Bench
from gpusvm_svmdev.info import INFO
from gpusvm_svmdev.operations import OPERATIONS

FORMS = {**PROCESS_OPERATIONS, **OPERATIONS.operations}


@pytest.fixture
def bench():
    made = []

    def make(spec="svmdev", **options):
        made.append(Bench(spec, drivers={"svmdev": INFO}, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Words:
    """Do operations in the words of recordings, on two devices of a fresh machine; the answers as text."""

    def __init__(self, spec):
        self.player = Player(read_spec(spec, {"svmdev": INFO}), OPERATIONS)

    def __call__(self, *operations):
        """Do them in order; the last one's answer."""
        answers = [str(self.player.answer(read_operation(each, FORMS, devices=2))) for each in operations]
        return answers[-1]


@pytest.fixture
def do():
    made = []

    def make(spec="svmdev", *, close=True):
        words = Words(spec)
        if close:  # not where somebody waits for ever
            made.append(words)
        return words

    yield make
    for each in made:
        each.player.close()
