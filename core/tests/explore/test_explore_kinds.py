"""Each kind of error that ends an execution has a name and the oracle that it comes from."""

import errno

import pytest
from gpusvm.check import InvariantError, Violation
from gpusvm.errors import (
    DeadlockError,
    DriverError,
    KernelError,
    LateWorkError,
    LedgerError,
    LivelockError,
    LockdepError,
    ModelError,
    ProgressError,
    UseAfterFreeError,
)
from gpusvm.explore.execution import ContentsError, Failure, classify

KINDS = [
    (InvariantError((Violation(invariant=2, what="m"),)), "invariant", "2"),
    (LockdepError("m"), "lockdep", "I-LOCK"),
    (LedgerError("m"), "ledger", "I-REF"),
    (DeadlockError("m"), "deadlock", "I-PROG"),
    (DriverError("acme_fini", "m"), "driver", "acme_fini"),
    (LivelockError("m"), "livelock", "I-PROG"),
    (ProgressError("m"), "progress", "I-PROG"),
    (UseAfterFreeError("m"), "use-after-free", "I-LIFE"),
    (LateWorkError("m"), "late-work", "I-LIFE"),
    (ContentsError("m"), "contents", "I-DATA"),
    (KernelError(errno.EBUSY), "errno", "I-ERRNO"),
    (ModelError("m"), "error", "ModelError"),
    (AssertionError("m"), "error", "AssertionError"),
]


@pytest.mark.parametrize(("error", "kind", "invariant"), KINDS, ids=[type(kind[0]).__name__ for kind in KINDS])
def test_an_error_is_of_the_kind_of_its_oracle(error, kind, invariant):
    assert classify(error) == Failure(kind=kind, invariant=invariant, message=str(error))
