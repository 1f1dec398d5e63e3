import errno
import pickle

import pytest
from gpusvm.errors import GpusvmError, InputError, KernelError, ModelError, PluginError, nearest


def test_all_are_gpusvm_errors():
    for kind in (InputError, KernelError, ModelError, PluginError):
        assert issubclass(kind, GpusvmError)


def test_a_kernel_error_has_the_errno_and_its_name():
    assert KernelError(errno.EBUSY).errno == errno.EBUSY
    assert str(KernelError(errno.EBUSY)) == "-EBUSY"
    assert str(KernelError(errno.ENOMEM, "no folio of order 9")) == "-ENOMEM: no folio of order 9"
    assert str(KernelError(9999)) == "-9999"
    assert str(KernelError(errno.EOPNOTSUPP)) == "-EOPNOTSUPP"  # and not POSIX's name for the same number


@pytest.mark.parametrize("number", [0, -errno.EBUSY])
def test_an_errno_is_positive(number):
    with pytest.raises(ValueError, match=f"an errno is positive here, got {number}"):
        KernelError(number)


def test_a_kernel_error_survives_a_process_pool():
    copy = pickle.loads(pickle.dumps(KernelError(errno.EAGAIN, "seq moved")))
    assert (copy.errno, str(copy)) == (errno.EAGAIN, "-EAGAIN: seq moved")


def test_nearest():
    assert nearest("nouvaeu", ["dmirror", "nouveau", "xe"]) == "did you mean 'nouveau'?"
    assert nearest("q", ["dmirror", "xe"]) == "valid: dmirror, xe"


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("kdf", "kfd"),
        ("sey", "say"),
        ("evict", "evict_order"),
        ("size", "chunk_sizes"),
        ("map-falt", "map-fault"),
    ],
)
def test_a_slip_a_part_and_a_transposition_are_near(name, valid):
    assert nearest(name, ["other", valid]) == f"did you mean {valid!r}?"


@pytest.mark.parametrize(
    ("name", "valid"),
    [("evict-fault", "exit-fault"), ("sr", "r"), ("xf", "xe"), ("i915", "xe")],
)
def test_what_only_has_letters_in_common_is_not_near(name, valid):
    assert nearest(name, ["other", valid]) == f"valid: other, {valid}"
