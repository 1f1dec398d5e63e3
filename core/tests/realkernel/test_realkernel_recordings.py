"""Bad recordings: one line each, with the file, the sequence and the operation, before anything is executed."""

import gzip
import json
from pathlib import Path

import pytest
from gpusvm.errors import InputError
from gpusvm.realkernel import check
from gpusvm.realkernel.recordings import load_recording


@pytest.fixture
def refused(target):
    def refused(path):
        with pytest.raises(InputError) as error:
            load_recording(path, target)
        return str(error.value)

    return refused


def test_a_recording_is_read(write, target):
    path = write([("mmap 0 0 16 3 0", "0 0 0 0"), ("say 5", "0 0 0 0 5")], [])
    recording = load_recording(path, target)
    assert recording.file == str(path)
    assert recording.sequences == ((("mmap 0 0 16 3 0", "0 0 0 0"), ("say 5", "0 0 0 0 5")), ())


def test_a_missing_file(refused, tmp_path):
    path = tmp_path / "echo-none.json.gz"
    assert refused(path) == f"{path}: expected a recording: No such file or directory"


def test_a_directory(refused, tmp_path):
    assert refused(tmp_path) == f"{tmp_path}: expected a recording: Is a directory"


@pytest.mark.parametrize("data", [b"[]", b"", gzip.compress(b"[[]]")[:-9]], ids=["plain", "empty", "cut off"])
def test_what_is_not_gzip(refused, tmp_path, data):
    path = tmp_path / "echo.json.gz"
    path.write_bytes(data)
    assert refused(path).startswith(f"{path}: expected JSON in gzip")


def test_what_is_not_json(refused, tmp_path):
    path = tmp_path / "echo.json.gz"
    path.write_bytes(gzip.compress(b"[1, 2"))
    assert refused(path) == f"{path}: expected JSON in gzip: Expecting ',' delimiter: line 1 column 6 (char 5)"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"a": 1}, "expected a recording of schema 1, got null"),
        ([], "expected sequences, got an empty list"),
        ([[], 5], "sequence 1: expected a list of [operation, answer] pairs, got 5"),
        ([["say 5"]], 'sequence 0, operation 0: expected an [operation, answer] pair of two texts, got "say 5"'),
        (
            [[["say 5", "0 0 0 0 5"], ["say 5", 0]]],
            'sequence 0, operation 1: expected an [operation, answer] pair of two texts, got ["say 5", 0]',
        ),
        ([[["say 5", "0 0"]]], "expected an answer of four numbers, then data and events, got '0 0'"),
        ([[["", "0 0 0 0"]]], "unknown operation ''; valid: "),
        ([[["sey 5", "0 0 0 0"]]], "sequence 0, operation 0: unknown operation 'sey'; did you mean 'say'?"),
        (
            [[["say", "0 0 0 0"]]],
            "sequence 0, operation 0: expected 'say' with 1 whole numbers (word), got 'say'",
        ),
        (
            [[["r 0 0 two", "0 0 0 0"]]],
            "sequence 0, operation 0: expected 'r' with 3 whole numbers (slot page n), got 'r 0 0 two'",
        ),
        ([[["where 2", "0 0 0 0"]]], "dev of 'where 2': expected a device from 0 to 1, got 2"),
        ([[["say -2", "0 0 0 0"]]], "word of 'say -2': expected 0 or more, got -2"),
        ([[["r 64 0 1", "0 0 0 0"]]], "slot of 'r 64 0 1': expected a slot from 0 to 63, got 64"),
        ([[["r 0 0 0", "0 0 0 0"]]], "n of 'r 0 0 0': expected 1 to 4096 pages, got 0"),
        ([[["r 0 4090 7", "0 0 0 0"]]], "'r 0 4090 7' goes beyond the 4096 pages of a slot"),
        (
            [[["say 5", "HANG"], ["say 5", "0 0 0 0 5"]]],
            "sequence 0, operation 0: expected the sequence to end with HANG, got more operations behind it",
        ),
        ([[["mprot 0 0 1 2", "0 0 0 0"]]], "prot of 'mprot 0 0 1 2': expected 0, 1 or 3, got 2"),
    ],
)
def test_what_is_no_recording(refused, tmp_path, document, problem):
    path = tmp_path / "echo.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert problem in message


def test_a_bad_file_among_good_ones_stops_everything(write, echo, tmp_path):
    good = write([("break", "0 0 0 0")])
    bad = write([("brake", "0 0 0 0")], name="echo-bad.json.gz")
    with pytest.raises(InputError) as error:
        check([good, bad], registry=echo(), out=tmp_path / "out")
    assert str(error.value) == f"{bad}: sequence 0, operation 0: unknown operation 'brake'; did you mean 'break'?"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["recording.json.gz", "echo.json.gz", "zebra-test.json.gz"])
def test_a_name_without_a_driver(write, echo, name):
    path = write([("say 1", "0 0 0 0 1")], name=name)
    with pytest.raises(InputError) as error:
        check(path, registry=echo())
    assert str(error.value) == (
        f"{path}: the name does not begin with a driver that executes operations (echo) and a dash; "
        "name the driver with --target"
    )
    assert check(path, registry=echo(), target="echo").ok


def test_a_driver_that_executes_nothing(write, silent):
    path = write([("say 1", "0 0 0 0 1")])
    with pytest.raises(InputError) as error:
        check(path, registry=silent, target="echo")
    assert str(error.value) == (
        "driver echo cannot execute recorded operations: its plugin has no hook gpusvm_operations"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"target": "ecco"}, "driver spec 'ecco': unknown driver 'ecco'; did you mean 'echo'?"),
        (
            {"target": "echo:quirk.leek=fixed"},
            "driver spec 'echo:quirk.leek=fixed': unknown key 'quirk.leek' of driver echo; did you mean 'quirk.leak'?",
        ),
        ({"level": "L4"}, "--level: unknown level 'L4'; valid: L0, L1, L2, L3"),
    ],
)
def test_bad_arguments(write, echo, arguments, problem):
    path = write([("say 1", "0 0 0 0 1")])
    with pytest.raises(InputError) as error:
        check(path, registry=echo(), **arguments)
    assert str(error.value) == problem


def test_no_file_at_all(echo):
    with pytest.raises(InputError) as error:
        check([], registry=echo())
    assert str(error.value) == "no recording is named; name a file such as dmirror-base.json.gz"


def test_a_directory_that_is_not_empty(write, echo):
    path = write([("say 1", "0 0 0 0 1")])
    with pytest.raises(InputError) as error:
        check(path, registry=echo(), out=Path(path).parent)
    assert str(error.value) == f"{path.parent}: expected a new or empty directory; name another one"
