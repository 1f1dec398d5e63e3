"""A module stays as long as anybody holds it, and its end runs once."""

from errno import EAGAIN, EBUSY

import pytest
from gpusvm.errors import KernelError, LedgerError, ModelError, UseAfterFreeError
from gpusvm.kernel import FirstChoice, Kernel, Module


def refused(module):
    with pytest.raises(KernelError) as error:
        module.unload()
    return error.value.errno, str(error.value)


def test_whoever_holds_it_keeps_it(kernel):
    ended = []
    module = Module(kernel, "acme", exit=lambda: ended.append(module.state))
    assert module.try_get("file")
    assert module.try_get("file")
    assert kernel.ledger.entries() == [("module", "'file'", 2)]
    assert refused(module) == (EAGAIN, "-EAGAIN: acme is in use, 2 references")
    module.put("file")
    module.put("file")
    assert ended == []
    module.unload()
    assert ended == ["going"]
    assert module.state == "gone"
    kernel.ledger.assert_empty()


def test_nobody_gets_it_while_it_goes_and_its_end_begins_once(kernel):
    answers = []
    module = Module(kernel, "acme", exit=lambda: answers.append((module.try_get("file"), *refused(module))))
    module.unload()
    assert answers == [(False, EBUSY, "-EBUSY: acme is going")]


def test_without_an_exit_function_it_stays(kernel):
    module = Module(kernel, "acme")
    assert refused(module) == (EBUSY, "-EBUSY: acme has no exit function")
    assert module.state == "live"


def test_an_exit_function_has_no_errno_to_return(kernel):
    def leave():
        raise KernelError(EBUSY, "a VM is open")

    module = Module(kernel, "acme", exit=leave)
    with pytest.raises(ModelError, match=r"^the exit function of acme failed: -EBUSY: a VM is open$"):
        module.unload()


def test_a_put_too_many_is_an_error(kernel):
    with pytest.raises(LedgerError, match=r"^ledger: 'file' puts 1 'module' and holds 0$"):
        Module(kernel, "acme").put("file")


def test_what_is_gone_cannot_be_held():
    with Kernel(mode="explored", choices=FirstChoice()) as kernel:
        module = Module(kernel, "acme", exit=lambda: None)
        module.unload()
        with pytest.raises(UseAfterFreeError, match=r"^use after free: task 'main' reads \.try_get of <Module 'acme'>"):
            module.try_get("file")
