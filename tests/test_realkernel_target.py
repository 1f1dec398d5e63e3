"""A recording of one driver's operations that another is to answer: the message names both."""

import pytest
from gpusvm.errors import InputError
from gpusvm.realkernel import check, write_recording

SEQUENCE = [("mmap 0 0 16 3 0", "0 0 0 0"), ("sr 0 0 0 1", "0 0 0 0 0")]


def refused(path, target):
    with pytest.raises(InputError) as caught:
        check(path, target=target)
    return str(caught.value)


def test_the_file_is_of_another_driver(tmp_path):
    path = write_recording(tmp_path / "svmdev-own.json.gz", [SEQUENCE])
    message = refused(path, "xe:tries=2")
    assert message.startswith(f"{path}: sequence 0, operation 1: unknown operation 'sr'; valid: ")
    assert message.endswith(
        "; by the file's name its operations are svmdev's, and --target says xe: leave --target out, or name svmdev "
        "with settings"
    )


def test_the_name_says_nothing_of_the_driver(tmp_path):
    path = write_recording(tmp_path / "own.json.gz", [SEQUENCE])
    assert refused(path, "xe").startswith(f"{path}: sequence 0, operation 1: unknown operation 'sr'; valid: ")
    assert "--target" not in refused(path, "xe")
