"""What breaks first is what is reported, though taking the tasks down breaks more."""

from itertools import pairwise

import pytest
from gpusvm.errors import KernelError, LedgerError, LockdepError, ModelError
from gpusvm.explore.execution import Failure, classify


def caught(errors):
    """Return the last of some errors, each of which was raised while the one before it was on its way."""
    for before, error in pairwise(errors):
        error.__context__ = before
    return errors[-1]


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([LedgerError("put twice")], "ledger"),
        ([LedgerError("put twice"), LockdepError("nobody owns it")], "ledger"),
        ([KernelError(16), LockdepError("nobody owns it")], "lockdep"),
        ([KernelError(16), ModelError("wrong"), LockdepError("nobody owns it")], "error"),
        ([AssertionError("never"), LockdepError("nobody owns it")], "error"),
    ],
)
def test_the_first_error_of_the_model_counts(errors, kind):
    assert classify(caught(errors)).kind == kind


def test_its_message_is_the_failures():
    failure = classify(caught([LedgerError("put twice"), LockdepError("nobody owns it")]))
    assert failure == Failure(kind="ledger", invariant="I-REF", message="put twice")
